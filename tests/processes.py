"""Commands as processes that a test stops, kills, or runs out of disk."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Process = subprocess.Popen[str]


@contextmanager
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

    line = [str(Path(sys.executable).with_name(command)), *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, cwd=folder, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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
