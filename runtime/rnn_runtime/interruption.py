"""Ctrl-C and SIGTERM that wait until what is under way is finished."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from rnn_runtime.errors import TerminatedError


class StopRequest:
    """Takes note of the first Ctrl-C or SIGTERM, instead of letting it interrupt what is going on.

    A second one does what it would have done without. Used in a `with` block, after which everything is as it was.
    Signals reach the main thread of a process only; elsewhere this never takes note of any.

    Attributes:
        interrupt: What the signal that came would have raised, or None.
    """

    def __init__(self) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # `nohup`, or a shell that starts something in the background, wants some of them ignored
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._take_note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _take_note(self, number: int, _frame: FrameType | None) -> None:
        self.interrupt = TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
