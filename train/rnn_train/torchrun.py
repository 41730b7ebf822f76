"""What `torchrun` says to each process that it starts, in environment variables."""

import os
import signal
from dataclasses import dataclass

_LONGEST_WAIT = 10  # seconds


@dataclass(frozen=True, slots=True)
class Launch:
    """The place of this process among those that were started together. Without torchrun, it is the only one.

    Attributes:
        rank: Its number among all processes, from 0 on.
        count: Number of all processes.
        local_rank: Its number among those of this machine, from 0 on.
        local_count: Number of processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def of_this_process(cls) -> "Launch":
        """Read the variables, as https://docs.pytorch.org/docs/stable/elastic/run.html lists them."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))

    def wait_for_others(self) -> None:
        """Let the first process of this machine end before this one.

        Once one process has ended, torchrun sends SIGTERM to the others. It would come before they can report an error.
        """
        if self.local_rank:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            signal.sigtimedwait([signal.SIGTERM], _LONGEST_WAIT)
