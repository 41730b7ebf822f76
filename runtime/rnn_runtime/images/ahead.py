"""Work on files ahead of the caller, in order and in bounded memory: in its own thread, in threads, or in processes.

The way is decided once, before the first file is read, from the number of files, the sizes of the first ones, and the
cores (docs/explanation/decisions.md, "Reading ahead").
"""

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, Literal, TypeVar

import numpy as np

from rnn_runtime.errors import ImageError, RnnOnnxWarning
from rnn_runtime.files.atomic import REMOTE
from rnn_runtime.images.decode import TakenImage, result_or_error
from rnn_runtime.interruption import result_of, stop_if_signaled
from rnn_runtime.threads import ThreadPool

Item = TypeVar("Item")
Value = TypeVar("Value")
_Submit = Callable[[list[Item]], list[Future[list[Value]]]]

PEEKED = 2_000  # files that make it worth starting processes
_SAMPLED = 64  # files whose size is looked up
# Bytes. Up to here, Python's interpreter lock is held most of the time that a file takes (some 400 µs at most): two
# threads wait for each other, and processes don't (docs/explanation/measurements.md, "Decoding").
_SMALL = 32 << 10
_FEW = 16  # small files that take less time than starting a thread
_FILES_PER_TASK = 16  # files that a thread takes at a time
_AHEAD = 3  # batches, per process, that are worked on while the caller works on the one before
_LARGEST_IN_PROCESSES = 1_024  # files that a process takes at a time, so that all have some
_MOST_PROCESSES = 16  # from some six on, they wait for the first one, which writes the results
# Files in object storage: threads mostly wait for its answers, so many wait at the same time.
_REMOTE_THREADS, _REMOTE_FILES_PER_TASK = 32, 4


@dataclass(frozen=True, slots=True)
class Workers:
    """Who works on the files of a run.

    Attributes:
        kind: `here` is the thread of the caller.
        count: Number of threads or processes.
        files_per_task: The most files that one takes at a time; None for a whole batch.
    """

    kind: Literal["here", "threads", "processes"]
    count: int = 1
    files_per_task: int | None = None


class ReadAhead(Generic[Item]):
    """Files, and who works on them.

    Args:
        items: Any number of paths, or of images in memory. Drawn only as far ahead as they are worked on; the first
            ones are drawn here.
        batch_size: Files per batch.
        threads: The most threads. Small files get one, those in object storage 32.
        processes: The most processes, for many small files. They are forked from this one, so choose more than 1 only
            where no other thread of the program holds a lock that they might need.

    Attributes:
        workers: Who works on them.
    """

    def __init__(self, items: Iterable[Item], *, batch_size: int, threads: int, processes: int = 1) -> None:
        remaining = iter(items)
        forks = processes > 1 and hasattr(os, "fork")
        peeked = PEEKED if forks else min(batch_size, _SAMPLED) + 1
        first = list(islice(remaining, peeked))
        complete = len(first) < peeked
        self.workers = _choose_workers(first, complete, threads, min(processes, _MOST_PROCESSES) if forks else 1)
        self._items = chain(first, remaining)
        many = self.workers.kind == "processes"
        self._batch_size = min(batch_size, _LARGEST_IN_PROCESSES) if many else batch_size

    @contextmanager
    def map(
        self, function: Callable[[Iterable[Item]], list[Value]]
    ) -> Iterator[Iterator[tuple[list[Item], list[Value]]]]:
        """Call a function for the files, ahead of the caller, until the end of the block.

        Args:
            function: Gives a value for each of several files. Several threads or processes call it at once.

        Yields:
            An iterator: each batch and its values, in the order of the files.

        Raises:
            ProcessLostError: a process has ended, for instance because it was killed.
            KeyboardInterrupt: a signal was noted.
            Exception: what the function raised.
        """
        batches = iter(lambda: list(islice(self._items, self._batch_size)), [])
        if self.workers.kind == "here":
            yield ((batch, function(batch)) for batch in batches)
            return
        ahead = _AHEAD * self.workers.count if self.workers.kind == "processes" else _AHEAD
        with _started(function, self.workers) as submit:
            yield _results(((batch, submit(batch)) for batch in batches), ahead)


def read_each(
    function: Callable[[Item], Value], items: Iterable[Item], *, batch_size: int, threads: int
) -> Generator[tuple[Item, Value | ImageError], None, None]:
    """Call a function for each file, ahead of the caller, and yield the results in order.

    Args:
        function: Reads a file. Several threads may call it at once.
        items: Any number of files.
        batch_size: Files per batch.
        threads: The most threads.

    Yields:
        Each file with what the function returned, or its `ImageError`. Other exceptions end the run.
    """

    def read(several: Iterable[Item]) -> list[Value | ImageError]:
        return [result_or_error(function, item) for item in several]

    with ReadAhead(items, batch_size=batch_size, threads=threads).map(read) as batches:
        for batch, values in batches:
            yield from zip(batch, values, strict=True)


def _choose_workers(first: Sequence[object], complete: bool, threads: int, processes: int) -> Workers:
    if any(isinstance(item, str) and item.startswith(REMOTE) for item in first):
        return Workers("threads", max(threads, _REMOTE_THREADS), _REMOTE_FILES_PER_TASK)
    sizes = [_size(item) for item in first[:: len(first) // _SAMPLED + 1]]
    small = not sizes or np.median(sizes) <= _SMALL
    if small and not complete and processes > 1:
        return Workers("processes", processes)
    if complete and len(first) <= (_FEW if small else 1):
        return Workers("here")
    return Workers("threads") if small else Workers("threads", threads, _FILES_PER_TASK)


def _size(item: object) -> int:
    """Bytes of an encoded image; 0 for decoded ones and for files that can't be read."""
    if isinstance(item, TakenImage):
        return len(item.content) if isinstance(item.content, bytes) else 0
    with suppress(OSError, ValueError):
        return os.stat(item).st_size  # type: ignore[arg-type]
    return 0


def _results(
    submitted: Iterator[tuple[list[Item], list[Future[list[Value]]]]], ahead: int
) -> Iterator[tuple[list[Item], list[Value]]]:
    """The values of each batch, in order, with up to `ahead` more batches under way."""
    waiting: deque[tuple[list[Item], list[Future[list[Value]]]]] = deque()
    while True:
        waiting.extend(islice(submitted, 1 + ahead - len(waiting)))
        if not waiting:
            return
        stop_if_signaled()
        batch, futures = waiting.popleft()
        yield batch, [value for future in futures for value in result_of(future)]


@contextmanager
def _started(function: Callable[[Iterable[Item]], list[Value]], workers: Workers) -> Iterator[_Submit[Item, Value]]:
    """Start the workers, and give the function that hands them a batch. They end with the block."""
    if workers.kind == "threads":
        with _threads(function, workers.count, workers.files_per_task) as submit:
            yield submit
        return
    from rnn_runtime.images.processes import Processes

    with Processes(function, workers.count) as processes:
        if processes.problem:
            found = f"{processes.count} of {workers.count} processes could be started ({processes.problem.strerror})"
            warnings.warn(f"Only {found}, so a run takes longer", RnnOnnxWarning, stacklevel=2)
        if not processes.count:
            with _threads(function, 1, None) as submit:
                yield submit
            return
        with (
            _threads(processes.call, processes.count, None) as in_process,
            _threads(function, _REMOTE_THREADS, _REMOTE_FILES_PER_TASK) as in_thread,
        ):
            # A connection to object storage can't be shared with a forked process.
            yield (
                lambda batch: (
                    in_thread(batch) if any(str(name).startswith(REMOTE) for name in batch) else in_process(batch)
                )
            )


@contextmanager
def _threads(
    function: Callable[[Iterable[Item]], list[Value]], count: int, files_per_task: int | None
) -> Iterator[_Submit[Item, Value]]:
    stopped = threading.Event()

    def until_stopped(items: list[Item]) -> Iterator[Item]:
        for item in items:
            if stopped.is_set():
                return
            yield item

    def work(items: list[Item]) -> list[Value]:
        try:
            return function(until_stopped(items))
        except BaseException:
            stopped.set()  # the run ends with this error, so no further file need be read
            raise

    def submit(batch: list[Item]) -> list[Future[list[Value]]]:
        size = files_per_task or len(batch)
        return [pool.submit(work, batch[start : start + size]) for start in range(0, len(batch), size)]

    pool = ThreadPool(count, thread_name_prefix="read")
    try:
        yield submit
    finally:
        stopped.set()
        # Not waited for: this may be one of its own threads, if it collects a generator that wasn't read to its end.
        pool.shutdown(wait=False, cancel_futures=True)
