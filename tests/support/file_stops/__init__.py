"""Processes that stop before each change to a folder, until a test lets them go on.

What lies in the folder at a stop is what a kill at that moment would leave. No test has to hit a moment by waiting.
"""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.commands import heeding_ctrl_c, installed, modules_from

_LONGEST_STOP = 300  # seconds; a process that neither stops nor ends by then hangs


class StoppingProcess:
    """A command that stops before each change to its folder.

    Iterated over, it gives each stop: `open NAME`, `move NAME`, `remove NAME` or `mkdir NAME`, with `*` for what is
    random in a temporary name. It stays there until the next stop is asked for.

    Attributes:
        process: To send it a signal, or to kill it.
    """

    def __init__(self, process: subprocess.Popen[str], connection: socket.socket) -> None:
        self.process = process
        self._connection = connection
        self._stopped = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._stopped:
            self._connection.sendall(b"\n")
        stop = self._connection.recv(4096).decode()
        self._stopped = bool(stop)
        if not stop:
            raise StopIteration
        return stop

    def go_to(self, stop: str, time: int = 1) -> None:
        """Go on until it is there for the first time, or for another."""
        found = 0
        for place in self:
            found += place == stop
            if found == time:
                return
        raise AssertionError(f"it never stopped before {stop!r}: {self.process.communicate()}")

    def run_freely(self) -> None:
        """Let it go on without any stop."""
        self._connection.close()

    def run_to_the_end(self) -> tuple[str, str]:
        """Let it go on without any stop; gives what it printed on stdout and stderr."""
        self.run_freely()
        return self.process.communicate(timeout=_LONGEST_STOP)


@contextlib.contextmanager
def stopping(command: str, *arguments: object, folder: Path) -> Iterator[StoppingProcess]:
    """Start a command in a folder; killed at the end of the block if it runs on."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_LONGEST_STOP)
    variables = modules_from(Path(__file__).parent) | {
        "STOPS_FOLDER": os.path.realpath(folder),
        "STOPS_SOCKET": str(theirs.fileno()),
    }
    with ours, theirs:
        with heeding_ctrl_c():
            process = subprocess.Popen(
                [installed(command), *map(str, arguments)],
                cwd=folder,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        try:
            yield StoppingProcess(process, ours)
        finally:
            process.kill()
            process.communicate()
