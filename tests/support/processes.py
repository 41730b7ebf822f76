"""Commands as processes that a test stops, kills, or runs out of disk."""

import contextlib
import os
import pty
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.commands import installed

Process = subprocess.Popen[str]


@contextlib.contextmanager
def started(command: str, *arguments: object, folder: Path, largest_file: int | None = None) -> Iterator[Process]:
    """A command that runs in a folder, its stdout and stderr in pipes; killed at the end of the block if it runs on.

    Args:
        command: One that is installed, such as `rnn-train`.
        arguments: Its arguments.
        folder: Where it runs.
        largest_file: Bytes; what goes beyond them can't be written, as on a disk that is full.
    """

    def prepare() -> None:
        # a shell that runs the tests in the background has it ignored, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    line = [installed(command), *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, cwd=folder, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def at_a_terminal(command: str, *arguments: object, folder: Path, **streams: Any) -> str:
    """What a terminal of 80 columns shows that is a command's stdout and stderr, but for those that are given."""
    leader, follower = pty.openpty()
    streams = {"stdin": subprocess.DEVNULL, "stdout": follower, "stderr": follower} | streams
    shown = b""
    with subprocess.Popen([installed(command), *map(str, arguments)], cwd=folder, **streams) as process:
        os.close(follower)
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while piece := os.read(leader, 65536):
                shown += piece
    os.close(leader)
    assert process.returncode == 0
    return shown.decode()


def wait_until(condition: Callable[[], bool], process: Process) -> None:
    """Wait, for a minute at most, until a condition holds while the process runs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def size(path: Path) -> int:
    """Bytes of a file, 0 of none."""
    return path.stat().st_size if path.exists() else 0
