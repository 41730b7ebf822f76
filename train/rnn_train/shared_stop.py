"""Ctrl-C and SIGTERM in any of the processes that train together: all stop after the same step."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from rnn_runtime.interruption import SIGNALS, StopRequest, signal_of
from rnn_train.processes import Processes


class SharedStop:
    """Records signals as `StopRequest` does, and shares them with the other processes.

    Args:
        processes: Those that train together.
    """

    def __init__(self, processes: Processes) -> None:
        # torchrun passes a signal on that the process may have had already, and kills those that don't end in 30 s.
        self._processes, self._own = processes, StopRequest(second_ends=processes.is_alone)
        self._learned = False

    def __enter__(self) -> Self:
        self._own.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.__exit__(kind, error, trace)

    @property
    def interrupt(self) -> KeyboardInterrupt | None:
        """The exception that the signal stands for, once all processes know of it; or None."""
        return self._own.interrupt if self._processes.is_alone or self._learned else None

    def recorded(self) -> Tensor:
        """Which signals came to this process, to be added up over all: float32, one number per signal."""
        came = self._own.interrupt and signal_of(self._own.interrupt)
        return torch.tensor([float(number == came) for number in SIGNALS])

    def learn(self, totals: Tensor) -> None:
        """Take over what the sum of all processes' signals says."""
        for number, total in zip(SIGNALS, totals.tolist(), strict=True):
            if total:
                self._own.adopt(number)
                self._learned = True

    def share(self) -> None:
        """Share signals outside of a step."""
        self.learn(torch.stack(self._processes.gather(self.recorded())).sum(dim=0))
