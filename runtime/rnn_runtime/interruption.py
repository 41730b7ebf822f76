"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: what they do in a command, and how a step is finished first.

In a command, a signal ends the process at once, with one line. While something is under way that is to be kept, it is
only noted, and loops look for it:

```python
with signals_noted():
    for batch in batches:
        stop_if_signaled()
        ...
```

A second signal ends the process at once there as well. No exception comes out of a signal handler: it could come
between any two instructions, such as those that take and release a lock.

Outside of commands, `signals_noted` is all that changes signal handlers, and restores them at its end.
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from rnn_runtime.errors import Argument, RnnOnnxError

if TYPE_CHECKING:
    from concurrent.futures import Future

SIGNALS: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal was closed",
    signal.SIGUSR1: "told to stop by SIGUSR1",  # as Slurm does before the time is over
}
POLL_SECONDS = 0.1  # the longest wait in which nobody looks for a signal
# `timeout` sends a signal to the process and to its group, and so may whatever passes a Ctrl-C on: both are one.
_ONE_SIGNAL_SECONDS = 0.2

_Value = TypeVar("_Value")
_ended_with: int | None = None  # the exit code of a command that has printed its last line
_noted: int | None = None
_is_noting = False  # whether a block of `signals_noted` is open


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, SIGHUP or SIGUSR1, as `KeyboardInterrupt` is Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


class RunInterruptedError(KeyboardInterrupt, RnnOnnxError):
    """Ctrl-C or SIGTERM. The text says what is kept and how to continue."""

    def __init__(self, *parts: str | Argument, interrupt: KeyboardInterrupt) -> None:
        super().__init__(*parts)
        self.exit_code = exit_code_of(interrupt)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of an interrupted command: 128 plus the signal's number, as in shells."""
    return 128 + _signal_of(interrupt)


def describe_interrupt(interrupt: KeyboardInterrupt) -> str:
    """`interrupted`, `terminated` or the like."""
    return SIGNALS[_signal_of(interrupt)]


@contextmanager
def signals_noted(*, second_ends: bool = True) -> Iterator[None]:
    """Until the end of the block, only note signals. A block within another one changes nothing.

    Loops in the block call `stop_if_signaled`, and the end of the block does. Signals reach only the main thread of a
    process; in other threads, nothing changes.

    Args:
        second_ends: Whether a second signal ends the process at once, unless it is one of two at the same moment. If
            not, it does nothing.

    Raises:
        KeyboardInterrupt: at the end of the block, for a signal that no loop has seen.
    """
    global _noted, _is_noting
    if threading.current_thread() is not threading.main_thread() or _is_noting:
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

    _is_noting = True
    try:
        with kept_handlers():
            _set_handlers(note)
            yield
            stop_if_signaled()
    finally:
        _noted, _is_noting = None, False


def noted_signal() -> int | None:
    """The first signal that was noted in the block that is open; None if there was none."""
    return _noted


def note_signal(number: int) -> None:
    """Note a signal that came to another process. This one's own first signal stays."""
    global _noted
    _noted = _noted or number


def stop_if_signaled() -> None:
    """Raise `KeyboardInterrupt`, or `TerminatedError` for another than Ctrl-C, if a signal was noted; in any thread."""
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


def end_process_at_signals(code: int | None = None) -> None:
    """From here on, a signal ends this process at once.

    Args:
        code: The exit code of a process that is about to end and has printed all that it has to say; None to print one
            line, and for the signal's own code.
    """
    global _ended_with
    _ended_with = code
    if threading.current_thread() is threading.main_thread():
        _set_handlers(_end_at_once)
    if code is not None:
        atexit.register(_set_handlers, signal.SIG_IGN)  # while exiting, Python restores the system's handlers


@contextmanager
def last_line(code: int) -> Iterator[None]:
    """Print why a command ends with this exit code. A signal meanwhile or later prints nothing more."""
    global _ended_with
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
        _ended_with = code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _set_handlers(handler: Any) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored, as in a shell's background jobs
            signal.signal(number, handler)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    if _ended_with is not None:
        os._exit(_ended_with)
    with suppress(OSError):
        # On a terminal, in place of a progress bar's line, and with the cursor that a bar hides.
        start = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
        os.write(2, f"{start}Error: {SIGNALS[number]}\n".encode())
    os._exit(128 + number)


def _exception_for(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else TerminatedError(number)


def _signal_of(interrupt: KeyboardInterrupt) -> int:
    return interrupt.number if isinstance(interrupt, TerminatedError) else signal.SIGINT
