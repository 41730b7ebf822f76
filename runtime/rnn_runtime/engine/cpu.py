"""Runs on the CPU: a batch is divided among threads, into parts that fit into a core's cache."""

import ctypes
import os
import re
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.session import BatchT, divide, run_session, share
from rnn_runtime.model.spec import ModelSpec

if TYPE_CHECKING:
    import onnxruntime

_PLACE = "the CPU"
_SMALLEST_CHUNK = 16  # images that are worth waking a thread
_KIB = 1024
_USUAL_BYTES = 512 * _KIB  # the least of the servers' processors in use: Zen 3
_FEWEST, _MOST = 16, 256  # images per run; beyond, nothing is gained (docs/explanation/measurements.md)
_OPERATOR_IMAGES = 64  # GRU and LSTM: their kernels divide a batch by themselves
_HIDDEN_STATES = 12  # per image and direction, the products of several steps counted
_FLOAT_BYTES = 4


class CpuRunner:
    """A model on the CPU that divides batches among threads: a `Runner`.

    Safe to use from several threads, and in a forked process.

    Args:
        session: A session of one thread, with the input `images` and the outputs `logits` and `probabilities`.
        threads: Number of threads that share a batch.
        largest_chunk: The most images that a thread runs at once.
        threaded_session: The same model with onnxruntime's own threads, for batches of a single chunk.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        threads: int,
        largest_chunk: int,
        threaded_session: "onnxruntime.InferenceSession | None" = None,
    ) -> None:
        self._session, self._threads, self._threaded_session = session, threads, threaded_session
        self._largest_chunk = largest_chunk
        self._pool: ThreadPoolExecutor | None = None
        _instances.add(self)

    def run(self, output: str, images: NDArray[np.uint8], *, alone: bool = False) -> NDArray[np.float32]:
        """Run one batch, as `Runner.run` says."""
        count, session, pool, chunk_size = len(images), self._session, None, self._largest_chunk
        if self._threaded_session and count <= self._largest_chunk and not alone:
            session = self._threaded_session
        elif self._threads > 1 and count > _SMALLEST_CHUNK and not alone:
            pool = self._pool = self._pool or ThreadPoolExecutor(self._threads - 1, thread_name_prefix="model")
            chunk_size = self._chunk_size(count)
        if count <= chunk_size:
            return run_session(session, output, images, _PLACE)
        run = partial(run_session, session, output, place=_PLACE)
        return np.concatenate(share([partial(run, chunk) for chunk in divide(images, chunk_size)], pool))

    def stream(self, output: str, batches: Iterable[BatchT]) -> Iterator[tuple[BatchT, NDArray[np.float32]]]:
        """Run batches one after the other, as `Runner.stream` says."""
        for batch in batches:
            yield batch, self.run(output, batch.images)

    def _chunk_size(self, images: int) -> int:
        """Images per run: all threads get as many runs, none of more than the largest chunk."""
        runs = -(-images // (self._threads * self._largest_chunk)) * self._threads
        return max(-(-images // runs), _SMALLEST_CHUNK)

    def forget_threads(self) -> None:
        """In a forked child, where no threads survive: drop them; the next run starts new ones."""
        if self._threaded_session is not None:
            # Destroying it could wait forever for its threads, or for locks that they held at the fork.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._threaded_session))
        self._pool = self._threaded_session = None


_instances: "weakref.WeakSet[CpuRunner]" = weakref.WeakSet()


def _forget_threads() -> None:
    for instance in list(_instances):
        instance.forget_threads()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)


def images_per_run(spec: ModelSpec) -> int:
    """The most images that a thread runs at once.

    For a vanilla RNN, their pixels and hidden states fill the second-level cache of a core. On Linux, the kernel tells
    its size; elsewhere, 512 KiB are assumed.
    """
    if spec.cell != "rnn":
        return _OPERATOR_IMAGES
    values = spec.image_spec.height * spec.input_size + _HIDDEN_STATES * spec.num_directions * spec.hidden_size
    return min(max(_second_level_bytes() // (_FLOAT_BYTES * values), _FEWEST), _MOST)


@cache
def _second_level_bytes() -> int:
    """The size that Linux tells in sysfs (Documentation/ABI/testing/sysfs-devices-system-cpu in its source)."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = (index / "level").read_text(), (index / "size").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        found = re.fullmatch(r"(\d+)K\s*", size)
        if level.strip() == "2" and found:
            return int(found[1]) * _KIB
    return _USUAL_BYTES
