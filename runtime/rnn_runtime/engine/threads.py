"""Runs on the CPU: a batch is divided among threads."""

import ctypes
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.calls import run_session

if TYPE_CHECKING:
    import onnxruntime

_SMALLEST_CHUNK = 16  # images that are worth to wake a thread


class CpuThreads:
    """A session on the CPU that divides batches among threads.

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

    def run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            output: `logits` or `probabilities`.
            images: uint8 `(batch, height, width, channels)`, in C order, batch 1 or more.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            ProviderError: the run failed, for instance because memory ran out.
        """
        count = len(images)
        if self._threaded_session and count <= self._largest_chunk:
            return run_session(self._threaded_session, output, images)
        if self._threads == 1 or count <= _SMALLEST_CHUNK:
            return self.run_alone(output, images)
        return self._share(_chunks(images, self._chunk_size(count)), output)

    def run_alone(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same in the calling thread alone."""
        chunks = _chunks(images, self._largest_chunk)
        return np.concatenate([run_session(self._session, output, chunk) for chunk in chunks])

    def _share(self, chunks: list[NDArray[np.uint8]], output: str) -> NDArray[np.float32]:
        """Run the first chunk in the calling thread, which is awake, and then the last ones that no other has begun."""
        self._pool = self._pool or ThreadPoolExecutor(self._threads - 1, thread_name_prefix="model")
        run = partial(run_session, self._session, output)
        others = [self._pool.submit(run, chunk) for chunk in chunks[1:]]
        try:
            first, last = run(chunks[0]), []
            for chunk, other in zip(reversed(chunks), reversed(others), strict=False):
                if not other.cancel():
                    break
                last.append(run(chunk))
            between = [other.result() for other in others if not other.cancelled()]
        finally:
            for other in others:
                other.cancel()
        return np.concatenate([first, *between, *reversed(last)])

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


def _chunks(images: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


_instances: "weakref.WeakSet[CpuThreads]" = weakref.WeakSet()


def _forget_threads() -> None:
    for instance in list(_instances):
        instance.forget_threads()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)
