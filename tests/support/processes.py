"""Commands as processes that a test stops, kills, or runs out of disk."""

import contextlib
import fcntl
import os
import pty
import resource
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.commands import UNMEASURED, heeding_ctrl_c, installed, modules_from, run_in_process

_PAUSED = Path(__file__).with_name("paused")  # what a process imports that can be held
_LONGEST = 300  # seconds that a test waits for a process to come where it is to be held


class Process(subprocess.Popen[str]):
    """A process that can be held at a place, and the pipes through which it tells that it is there and goes on."""

    def __init__(self, *arguments: Any, pause_at: str | None = None, **options: Any) -> None:
        says, say = os.pipe()
        wait, hold = os.pipe()
        self._says = says
        self._hold: int | None = hold
        if pause_at is not None:
            variables = modules_from(_PAUSED) | {"PAUSE_AT": pause_at, "PAUSE_PIPES": f"{say} {wait}"}
            options |= {"pass_fds": (say, wait), "env": options.get("env", dict(os.environ)) | variables}
        try:
            super().__init__(*arguments, **options)
        finally:
            os.close(say)
            os.close(wait)

    def wait_for_pause(self) -> None:
        """Return when the process is held at `pause_at`."""
        ready, _, _ = select.select([self._says], [], [], _LONGEST)
        assert ready, f"not there after {_LONGEST} s"
        assert os.read(self._says, 1), self.communicate()  # nothing: it has ended

    def go_on(self) -> None:
        """Let it go on from there."""
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def end(self) -> None:
        """Kill it if it still runs, and close what leads to it."""
        self.kill()
        self.communicate()
        self.go_on()
        os.close(self._says)


@contextlib.contextmanager
def started(
    command: str, *arguments: object, folder: Path, largest_file: int | None = None, pause_at: str | None = None
) -> Iterator[Process]:
    """A command that runs in a folder, its stdout and stderr in pipes; killed at the end of the block if it runs on.

    Args:
        command: One that is installed, such as `rnn-train`.
        arguments: Its arguments.
        folder: Where it runs.
        largest_file: Bytes; what goes beyond them can't be written, as on a disk that is full.
        pause_at: One of Python's audit events and the end of one of its arguments, as in `open:images/9.png` or
            `os.rename:model.pt`, at which the process is held when it first comes there, until `go_on`.
    """

    line = [installed(command), *map(str, arguments)]
    pipe = subprocess.PIPE
    env = {name: value for name, value in os.environ.items() if name not in UNMEASURED}
    prepare = None
    if largest_file is not None:
        prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with heeding_ctrl_c():
        process = Process(
            line, cwd=folder, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare, pause_at=pause_at, env=env
        )
    try:
        yield process
    finally:
        process.end()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(found for child in children for found in descendants(child))]


@contextlib.contextmanager
def started_with_children(
    line: Sequence[str], folder: Path, env: Mapping[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """A process in a folder, its stdout and stderr in pipes; killed at the end of the block, and all that it started.

    Args:
        line: The program and its arguments.
        folder: Where it runs.
        env: Variables beside those of this process.
    """
    pipe = subprocess.PIPE
    with heeding_ctrl_c():
        process = subprocess.Popen(line, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=os.environ | env)
    try:
        yield process
    finally:
        for pid in (process.pid, *descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Return once something holds that a process brings about."""
    for _ in range(100 * _LONGEST):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"not so after {_LONGEST} s")


def at_a_terminal(command: str, *arguments: object, folder: Path, **streams: Any) -> str:
    """What a terminal of 80 columns shows that is a command's stdout and stderr, but for those that are given."""
    exit_code, shown = on_a_terminal([installed(command), *map(str, arguments)], folder, **streams)
    assert exit_code == 0
    return shown


def on_a_terminal(line: list[str], folder: Path, **options: Any) -> tuple[int, str]:
    """Run a program on a terminal of 80 columns: its exit code, and what the terminal gets.

    Args:
        line: The program and its arguments.
        folder: Where it runs.
        options: Passed to `Popen`, such as a stream that is not to be the terminal.
    """
    leader, follower = _open_terminal()
    options = {"stdin": subprocess.DEVNULL, "stdout": follower, "stderr": follower} | options
    with subprocess.Popen(line, cwd=folder, **options) as process:
        os.close(follower)
        shown = _read_terminal(leader)
    return process.returncode, shown


def until_the_terminal_closes(line: list[str], folder: Path, shown: str) -> int:
    """The exit code of a program whose terminal is closed once it shows something."""
    leader, follower = _open_terminal()
    line = ["setsid", "--ctty", *line]
    with subprocess.Popen(line, cwd=folder, stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        seen = ""
        while shown not in seen:
            seen += os.read(leader, 65536).decode(errors="replace")
        os.close(leader)
        return process.wait(_LONGEST)


def on_a_terminal_in_process(command: str, *arguments: str, folder: Path, **options: Any) -> tuple[int, str]:
    """Run a command as `on_a_terminal` does, but in this process, where torch is imported already.

    Args:
        command: One of `COMMANDS`.
        arguments: Its arguments.
        folder: Where it runs.
        options: Passed to `run_in_process`.
    """
    leader, follower = _open_terminal()
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(_read_terminal, leader)
        with os.fdopen(follower, "wb") as terminal:
            result = run_in_process(command, *arguments, folder=folder, terminal=terminal, **options)
        return result.returncode, shown.result()


def _open_terminal() -> tuple[int, int]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return leader, follower


def _read_terminal(leader: int) -> str:
    """All that a terminal gets, until its other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(leader, 65536):
            shown += piece
    os.close(leader)
    return shown.decode()
