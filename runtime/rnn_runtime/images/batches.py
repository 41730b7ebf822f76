"""Image files in batches, decoded by threads ahead of the model that takes them, in bounded memory."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import ImageError
from rnn_runtime.images.decode import read_image
from rnn_runtime.model.spec import ImageSpec

_AHEAD = 3  # batches decoded or being decoded while the model runs
_PER_TASK = 16  # files that a thread takes at once, where several share a batch
# Seconds a file. Below, Python's interpreter lock is held most of the time, and a second thread would only make each
# wait for the other: reading and decoding PNG files of 28 x 28 takes one thread half as long as two (docs/design.md).
_QUICK = 250e-6


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Decoded files.

    Attributes:
        paths: The files.
        images: uint8 `(files, height, width, channels)`; the rows of files with an error hold anything.
        errors: What is wrong, by row.
    """

    paths: list[str]
    images: NDArray[np.uint8]
    errors: dict[int, str]


def decode_files(paths: Iterable[str], spec: ImageSpec, *, batch_size: int, threads: int) -> Iterator[FileBatch]:
    """Read and decode image files, in their order; at most a few batches are in memory at a time.

    Args:
        paths: Any number of files; read only as far ahead as is decoded.
        spec: What to bring them to.
        batch_size: Files a batch. The first is smaller, to see how long a file takes.
        threads: How many to use where that pays; small files are decoded by one.
    """
    names = iter(paths)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(threads) as many:
        waiting: deque[_Pending] = deque()
        size, quick = min(batch_size, _PER_TASK), True
        try:
            while True:
                while len(waiting) < _AHEAD and (part := list(islice(names, size))):
                    waiting.append(_Pending(part, spec, one, size) if quick else _Pending(part, spec, many, _PER_TASK))
                    if size < batch_size:
                        break  # how to go on is known once it is done
                if not waiting:
                    return
                batch, seconds = waiting[0].wait()  # and stays among those that are cancelled meanwhile
                waiting.popleft()
                size, quick = batch_size, seconds < _QUICK * len(batch.paths)
                yield batch
        finally:
            for pending in waiting:
                pending.cancel()


class _Pending:
    """Files on their way into one array, each decoded straight to its row."""

    def __init__(self, paths: list[str], spec: ImageSpec, pool: ThreadPoolExecutor, per_task: int) -> None:
        self._batch = FileBatch(paths, np.empty((len(paths), *spec.shape), np.uint8), {})
        self._spec = spec
        self._cancelled = False
        count = len(paths)
        self._tasks: list[Future[float]] = [
            pool.submit(self._decode, range(start, min(start + per_task, count))) for start in range(0, count, per_task)
        ]

    def wait(self) -> tuple[FileBatch, float]:
        """The batch once every file is decoded or has failed, and the seconds that all threads together took."""
        return self._batch, sum(task.result() for task in self._tasks)

    def cancel(self) -> None:
        """Don't begin with further files: after Ctrl-C, only those under way are waited for."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()

    def _decode(self, rows: range) -> float:
        start, batch = time.perf_counter(), self._batch
        for row in rows:
            if self._cancelled:
                break
            try:
                batch.images[row] = read_image(batch.paths[row], self._spec)
            except ImageError as error:
                batch.errors[row] = str(error)
        return time.perf_counter() - start
