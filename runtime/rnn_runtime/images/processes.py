"""Processes that work on files for this one. Imported only where there are many files, since it takes some time."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from rnn_runtime.errors import ProcessLostError
from rnn_runtime.interruption import SIGNALS

Item = TypeVar("Item")
Value = TypeVar("Value")


class ProcessesError(Exception):
    """Processes can't be started here."""


@contextmanager
def started_processes(
    function: Callable[[Iterable[Item]], list[Value]], count: int
) -> Iterator[Callable[[list[Item]], list[Future[list[Value]]]]]:
    """Fork processes from this one, which ignore Ctrl-C and SIGTERM, and end with this one or with the block.

    Args:
        function: Gives a value for each of several files.
        count: Number of processes.

    Yields:
        A function that hands a batch to a process.

    Raises:
        ProcessesError: they can't be started.
        ProcessLostError: one of them has ended, for instance because it was killed.
    """
    ended, end = multiprocessing.Pipe(duplex=False)
    executor = None
    try:
        try:
            executor = ProcessPoolExecutor(
                count, multiprocessing.get_context("fork"), initializer=_begin, initargs=(function, ended, end)
            )
            with _signals_blocked():
                executor.submit(int)  # the first task forks all processes
        except (OSError, RuntimeError, ImportError) as error:  # no semaphores without /dev/shm; a limit on processes
            raise ProcessesError(str(error)) from error
        yield lambda batch: [executor.submit(_call, batch)]
    except BrokenProcessPool:
        raise ProcessLostError("a process that reads images has ended: it was killed, or memory ran out") from None
    finally:
        end.close()  # whatever they do, they end
        if executor:
            executor.shutdown(cancel_futures=True)
        ended.close()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM, for processes that are forked in the block: this process ends them in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on: a thread may hold a lock at the fork. No thread of ours runs yet, and those of
            # NumPy's and onnxruntime's libraries hold none between two calls.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_function: Callable[[Any], list[Any]]  # of a process that was started here


def _begin(function: Callable[[Any], list[Any]], ended: Connection, end: Connection) -> None:
    global _function
    _function = function
    end.close()  # the parent's is the only one then, so closing that is noticed
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()


def _end_with_parent(ended: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel, ended])
    os._exit(1)


def _call(batch: list[Any]) -> list[Any]:
    return _function(batch)
