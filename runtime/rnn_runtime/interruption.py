"""Ctrl-C and SIGTERM: what they do in a command, how a step is finished first, and what is said of them.

A command goes through three phases. While it imports what it needs, a signal ends the process at once with one line: an
exception in the middle of an import may be swallowed, or come out as another one. While it works, a signal is an
exception, so that what is begun is cleaned up. Once it has ended, signals are ignored.

The library itself changes no handler, but for the time of a training run (`StopRequest`).
"""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from rnn_runtime.errors import RnnOnnxError

SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, while a command works."""


class RunInterruptedError(KeyboardInterrupt, RnnOnnxError):
    """Ctrl-C or SIGTERM; the text says what is kept and how to continue."""

    def __init__(self, text: str, interrupt: KeyboardInterrupt) -> None:
        super().__init__(text)
        self.exit_code = exit_code_of(interrupt)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a command that was interrupted: 128 plus the signal's number, as shells have it."""
    return 128 + _signal_of(interrupt)


def describe_interrupt(interrupt: KeyboardInterrupt) -> str:
    """`interrupted` or `terminated`."""
    return SIGNALS[_signal_of(interrupt)]


class StopRequest:
    """Takes note of the first Ctrl-C or SIGTERM, instead of letting it interrupt what is going on.

    A second one does what it would have done without. Used in a `with` block, after which everything is as it was.
    Signals reach the main thread of a process only; elsewhere this never takes note of any.

    Attributes:
        interrupt: What the signal that came would have raised, or None.
    """

    def __init__(self) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # `nohup`, or a shell that starts something in the background, wants some of them ignored
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._take_note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def resend(self) -> None:
        """After the block: let the signal that came do what it would have done without."""
        if self.interrupt:
            signal.raise_signal(_signal_of(self.interrupt))

    def _take_note(self, number: int, _frame: FrameType | None) -> None:
        self.interrupt = _exception_for(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


def end_process_at_signals() -> None:
    """From here on, a signal ends this process at once, with one line; until it exits, where they are ignored."""
    if threading.current_thread() is threading.main_thread():
        _set_handlers(_end_at_once)
        atexit.register(_set_handlers, signal.SIG_IGN)  # at its end Python puts the system's handlers back


@contextmanager
def command_signals() -> Iterator[None]:
    """Run a command: signals end the process at once until `raise_at_signals`; afterwards handlers are as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _set_handlers(_end_at_once)
    try:
        yield
    finally:
        _cancel_retry()
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_at_signals() -> None:
    """In a command: from here on signals are exceptions, so that what is begun is cleaned up."""
    if signal.getsignal(signal.SIGTERM) is _end_at_once or signal.getsignal(signal.SIGINT) is _end_at_once:
        _set_handlers(_raise)


def _set_handlers(handler: Any) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell wants it of what runs in the background
            signal.signal(number, handler)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"Error: {SIGNALS[number]}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    _set_handlers(_end_at_once)  # a second one doesn't wait for what the first has begun to clean up
    if _holds_locks(frame):
        _retry_soon(number)
        return
    _cancel_retry()
    raise _exception_for(number)


# Python's own code for threads. An exception that a signal handler raises between `Condition.__enter__` and its `with`
# block leaves the lock held, and the thread that needs it next waits forever: so does the process, for that thread.
_THREADING = (threading.__file__, os.path.join(os.path.dirname(threading.__file__), "concurrent", ""))
_RETRY_SECONDS = 0.001


def _holds_locks(frame: FrameType | None) -> bool:
    """Whether the code that the signal interrupted is, or was called by, Python's own code for threads."""
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


def _signal_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    return signal.SIGTERM if isinstance(interrupt, TerminatedError) else signal.SIGINT
