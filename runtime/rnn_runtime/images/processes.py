"""Processes that work on files for this one. Imported only where there are many files, since it takes some time."""

import ctypes
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from rnn_runtime.errors import ProcessLostError
from rnn_runtime.interruption import SIGNALS

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, of prctl(2)
Item = TypeVar("Item")
Value = TypeVar("Value")


class Processes(Generic[Item, Value]):
    """Processes that are forked from this one, ignore signals that it gets, and end with it or with the `with` block.

    Each is at the other end of a pipe, so nothing of the system's is needed that a container may lack: no shared
    memory, no semaphores, no threads.

    Args:
        function: Gives a value for each of several files.
        most: Number of processes.

    Attributes:
        count: How many could be started.
        problem: Why not all could be started; None if they were.
    """

    def __init__(self, function: Callable[[Iterable[Item]], list[Value]], most: int) -> None:
        self.problem: OSError | None = None
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._free: SimpleQueue[Connection] = SimpleQueue()
        with _signals_blocked():
            try:
                for _ in range(most):
                    self._start(function)
            except OSError as error:
                self.problem = error
        self.count = len(self._processes)

    def _start(self, function: Callable[[Iterable[Item]], list[Value]]) -> None:
        own, other = multiprocessing.Pipe()
        try:
            process = multiprocessing.get_context("fork").Process(
                target=_work, args=(function, other, [*self._connections, own]), daemon=True
            )
            process.start()
        except BaseException:
            own.close()
            raise
        finally:
            other.close()  # the process's is the only one then, so its end is noticed here
        self._processes.append(process)
        self._connections.append(own)
        self._free.put(own)

    def __enter__(self) -> "Processes[Item, Value]":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # whatever it does, and there is nothing that it would have to finish
        for process in self._processes:
            process.join()
        # The connections close when nobody uses them any more, such as a thread that waits for an answer.

    def call(self, batch: Iterable[Item]) -> list[Value]:
        """Have one of the processes work on a batch, and wait for the values. Several threads may call it at once.

        Raises:
            ProcessLostError: the process has ended, for instance because it was killed.
            Exception: what the function raised.
        """
        connection = self._free.get()
        try:
            connection.send(list(batch))
            values, error = connection.recv()
        except (EOFError, OSError):
            raise ProcessLostError("a process that reads images has ended: it was killed, or memory ran out") from None
        finally:
            self._free.put(connection)
        if error is not None:
            raise error
        return values  # type: ignore[no-any-return]


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals to commands, for processes that are forked in the block: this process ends them in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on: a thread may hold a lock at the fork. No thread of ours runs yet, and those of
            # NumPy's and onnxruntime's libraries hold none between two calls.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(function: Callable[[Any], list[Any]], connection: Connection, inherited: list[Connection]) -> None:
    """In a process: answer batches, until the first process closes the pipe or ends."""
    if hasattr(ctypes.CDLL(None), "prctl"):  # Linux: whatever it does, it ends with its parent, and so do its locks
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    for other in inherited:  # or its end wouldn't be noticed
        other.close()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            batch = connection.recv()
            answer: tuple[list[Any] | None, Exception | None]
            try:
                answer = function(batch), None
            except Exception as error:
                error.add_note(traceback.format_exc())  # pickled with it, as the traceback itself isn't
                answer = None, error
            connection.send(answer)
