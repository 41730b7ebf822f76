"""Ctrl-C and SIGTERM: what they do in a command, and how a step is finished first.

While something is under way that is to be kept, a signal is only noted, and loops look for it:

```python
with signals_noted():
    for batch in batches:
        stop_if_signaled()
        ...
```

Outside of such a block, a signal ends a command at once, with one line: there is nothing to keep or to tidy up.

A command has three phases. While it imports modules, a signal ends the process at once with one line, because an
exception during an import may be swallowed or turn into another one. While it works, a signal raises an exception, so
that it can clean up. Once it has ended, signals are ignored.

The library itself changes signal handlers only during a training run (`StopRequest`).
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rnn_runtime.errors import Argument, RnnOnnxError

if TYPE_CHECKING:
    from concurrent.futures import Future

SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class TerminatedError(KeyboardInterrupt):
    """SIGTERM while a command works."""


class RunInterruptedError(KeyboardInterrupt, RnnOnnxError):
    """Ctrl-C or SIGTERM. The text says what is kept and how to continue."""

    def __init__(self, *parts: str | Argument, interrupt: KeyboardInterrupt) -> None:
        super().__init__(*parts)
        self.exit_code = exit_code_of(interrupt)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of an interrupted command: 128 plus the signal's number, as in shells."""
    return 128 + signal_of(interrupt)


def describe_interrupt(interrupt: KeyboardInterrupt) -> str:
    """`interrupted` or `terminated`."""
    return SIGNALS[signal_of(interrupt)]


class StopRequest:
    """Records the first Ctrl-C or SIGTERM instead of being interrupted by it.

    Use it in a `with` block, which restores the handlers at its end. Signals reach only the main thread of a process;
    in other threads, nothing is recorded.

    Args:
        second_ends: Whether a second signal acts as usual. If not, it does nothing.

    Attributes:
        interrupt: The exception that the recorded signal stands for, or None.
    """

    def __init__(self, *, second_ends: bool = True) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._second_ends = second_ends
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # `nohup` and shells that start a background job have some of them ignored
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._take_note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def resend(self) -> None:
        """After the block: send the recorded signal again."""
        if self.interrupt:
            signal.raise_signal(signal_of(self.interrupt))

    def adopt(self, number: int) -> None:
        """Record a signal that came to another process. This one's own first signal is still recorded."""
        self.interrupt = self.interrupt or _exception_for(number)

    def _take_note(self, number: int, _frame: FrameType | None) -> None:
        self.interrupt = self.interrupt or _exception_for(number)
        if self._second_ends:
            self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


# `timeout` sends a signal to the process and to its group, and so may whatever passes a Ctrl-C on: both are one.
_ONE_SIGNAL_SECONDS = 0.2
POLL_SECONDS = 0.1  # the longest wait in which nobody looks for a signal
_Value = TypeVar("_Value")
_noted: int | None = None
_blocks = 0  # of `signals_noted` that are open, one in another


@contextmanager
def signals_noted(*, second_ends: bool = True) -> Iterator[None]:
    """Until the end of the block, only note Ctrl-C and SIGTERM. A block within another one changes nothing.

    Loops in the block call `stop_if_signaled`, and the end of the block does. Signals reach only the main thread of a
    process; in other threads, nothing changes.

    Args:
        second_ends: Whether a second signal ends the process at once, unless it is one of two at the same moment. If
            not, it does nothing.

    Raises:
        KeyboardInterrupt: at the end of the block, for a signal that no loop has seen.
    """
    global _noted, _blocks
    if threading.current_thread() is not threading.main_thread() or _blocks:
        yield
        return
    noted_at = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        global _noted
        nonlocal noted_at
        if _noted is None:
            _noted, noted_at = number, time.monotonic()
        elif second_ends and time.monotonic() - noted_at > _ONE_SIGNAL_SECONDS:
            _end_at_once(number, None)

    _blocks = 1
    try:
        with kept_handlers():
            _set_handlers(note)
            yield
            stop_if_signaled()
    finally:
        _noted, _blocks = None, 0


def noted_signal() -> int | None:
    """The first signal that was noted in the block that is open; None if there was none."""
    return _noted


def note_signal(number: int) -> None:
    """Note a signal that came to another process. This one's own first signal stays."""
    global _noted
    _noted = _noted or number


def stop_if_signaled() -> None:
    """Raise `KeyboardInterrupt`, or `TerminatedError` for SIGTERM, if a signal was noted; in any thread."""
    if _noted is not None:
        raise _exception_for(_noted)


def result_of(future: "Future[_Value]") -> _Value:
    """Wait for a future, and look for signals meanwhile.

    Raises:
        KeyboardInterrupt: as `stop_if_signaled`.
        Exception: what the future raised.
    """
    from concurrent.futures import wait

    while not wait([future], POLL_SECONDS).done:
        stop_if_signaled()
    return future.result()


def wait_for(work: Callable[[], _Value]) -> _Value:
    """Call a function that may block for long in a thread of its own, and look for signals meanwhile.

    After a signal, the thread is left alone; it doesn't keep the process from ending.

    Raises:
        KeyboardInterrupt: as `stop_if_signaled`.
        Exception: what the function raised.
    """
    from concurrent.futures import Future

    future: Future[_Value] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result_of(future)


def end_process_at_signals() -> None:
    """From here on, a signal ends this process at once, with one line. While Python exits, signals are ignored."""
    if threading.current_thread() is threading.main_thread():
        _set_handlers(_end_at_once)
        atexit.register(_set_handlers, signal.SIG_IGN)  # while exiting, Python restores the system's handlers


def end_process_silently_at_signals(code: int) -> None:
    """From here on, a signal ends this process at once with this exit code. Its error is printed already."""
    if threading.current_thread() is threading.main_thread():
        _set_handlers(lambda *_: os._exit(code))


@contextmanager
def command_signals() -> Iterator[None]:
    """Run a command: until `raise_at_signals`, signals end the process at once. At the end, handlers are restored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with kept_handlers():
        _set_handlers(_end_at_once)
        try:
            yield
        finally:
            _cancel_retry()


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore the handlers at the end of the block. Only the main thread has any; in others, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_at_signals() -> None:
    """In a command: from here on, signals raise exceptions, so that the command can clean up."""
    if signal.getsignal(signal.SIGTERM) is _end_at_once or signal.getsignal(signal.SIGINT) is _end_at_once:
        _set_handlers(_raise)


def _set_handlers(handler: Any) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored, as in a shell's background jobs
            signal.signal(number, handler)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"Error: {SIGNALS[number]}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    _set_handlers(_end_at_once)  # a second signal doesn't wait for the clean-up
    if _holds_locks(frame):
        _retry_soon(number)
        return
    _cancel_retry()
    raise _exception_for(number)


# Python's own code for threads. An exception from a signal handler between `Condition.__enter__` and its `with` block
# leaves the lock held. The next thread that needs it waits forever, and the process waits for that thread.
_THREADING = (threading.__file__, os.path.join(os.path.dirname(threading.__file__), "concurrent", ""))
_RETRY_SECONDS = 0.001


def _holds_locks(frame: FrameType | None) -> bool:
    """Whether the interrupted code is Python's own code for threads, or was called by it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_THREADING):
            return True
        frame = frame.f_back
    return False


def _retry_soon(number: int) -> None:
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda _, frame: _raise(number, frame))
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
    else:  # Windows
        raise _exception_for(number)


def _cancel_retry() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _exception_for(number: int) -> KeyboardInterrupt:
    return TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()


def signal_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    """The signal that an interrupt was."""
    return signal.SIGTERM if isinstance(interrupt, TerminatedError) else signal.SIGINT
