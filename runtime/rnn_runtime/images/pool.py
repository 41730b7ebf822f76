"""Read files ahead in a pool of threads: results in order, in bounded memory."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

from rnn_runtime.errors import ImageError
from rnn_runtime.files.remote import is_remote
from rnn_runtime.images.decode import result_or_error

Item = TypeVar("Item")  # training passes paths; inference also passes images in memory
Value = TypeVar("Value")

_AHEAD = 3  # batches that are read or being read while the caller works on the previous one
_FILES_PER_TASK = 16  # files that one thread takes at a time
# Seconds per file. Below this, Python's interpreter lock is held most of the time, and two threads mostly wait for each
# other: one thread reads and decodes 28 x 28 PNG files twice as fast as two (docs/explanation/measurements.md).
_QUICK = 250e-6
# For files in object storage: threads mostly wait for its answers, so many wait at the same time.
_REMOTE_THREADS, _REMOTE_FILES_PER_TASK = 32, 4


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_files(
    function: Callable[[Item], Value], paths: Iterable[Item], *, batch_size: int, threads: int
) -> Iterator[list[tuple[Item, Value | ImageError]]]:
    """Call a function for each file, ahead of the caller, and yield the results in order.

    Args:
        function: Reads a file. Several threads may call it at once.
        paths: Any number of files. Drawn only as far ahead as they are read.
        batch_size: Files per batch. The first batch is smaller, to time one file.
        threads: The most threads to use. Files that take little time are read by one, those in object storage by 32.

    Yields:
        A batch: each path with what the function returned, or its `ImageError`. Other exceptions end the run.
    """
    names = iter(paths)
    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(threads) as many,
        ThreadPoolExecutor(max(threads, _REMOTE_THREADS)) as remote,
    ):
        waiting: deque[_Batch[Item, Value]] = deque()
        size, quick = min(batch_size, _FILES_PER_TASK), True
        try:
            while True:
                while len(waiting) < _AHEAD and (batch := list(islice(names, size))):
                    if isinstance(batch[0], str) and is_remote(batch[0]):
                        pool, files_per_task = remote, _REMOTE_FILES_PER_TASK
                    else:
                        pool, files_per_task = (one, size) if quick else (many, _FILES_PER_TASK)
                    waiting.append(_Batch(function, batch, pool, files_per_task))
                    if size < batch_size:
                        break  # its time decides between one thread and many
                if not waiting:
                    return
                results, seconds = waiting[0].wait()  # still in the queue, so that an interruption cancels it too
                waiting.popleft()
                size, quick = batch_size, seconds < _QUICK * len(results)
                yield results
        finally:
            for pending in waiting:
                pending.cancel()


class _Batch(Generic[Item, Value]):
    """Files that are being read."""

    def __init__(
        self, function: Callable[[Item], Value], paths: list[Item], pool: ThreadPoolExecutor, files_per_task: int
    ) -> None:
        self._function = function
        self._cancelled = False
        # Waiting for this queue is one call into C, which Ctrl-C ends at once and leaves whole; waiting for a future is
        # Python code with locks, in which the command's signal handler holds back (interruption.py).
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._tasks: list[Future[tuple[list[tuple[Item, Value | ImageError]], float]]] = [
            pool.submit(self._read, paths[start : start + files_per_task])
            for start in range(0, len(paths), files_per_task)
        ]

    def wait(self) -> tuple[list[tuple[Item, Value | ImageError]], float]:
        """Wait for all results; also gives the seconds that all threads took together."""
        for _ in self._tasks:
            self._finished.get()
        done = [task.result() for task in self._tasks]
        return [result for results, _ in done for result in results], sum(seconds for _, seconds in done)

    def cancel(self) -> None:
        """Start no further file. After Ctrl-C, only files that are being read are waited for."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()

    def _read(self, paths: list[Item]) -> tuple[list[tuple[Item, Value | ImageError]], float]:
        try:
            return self._read_each(paths)
        except BaseException:
            self._cancelled = True  # the run ends with this error, so the rest of the batch needn't be read
            raise
        finally:
            self._finished.put(None)

    def _read_each(self, paths: list[Item]) -> tuple[list[tuple[Item, Value | ImageError]], float]:
        start = time.perf_counter()
        results: list[tuple[Item, Value | ImageError]] = []
        for path in paths:
            if self._cancelled:
                break
            results.append((path, result_or_error(self._function, path)))
        return results, time.perf_counter() - start
