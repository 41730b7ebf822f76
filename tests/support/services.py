"""`rnn-serve` as a process that a test talks to."""

import contextlib
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.support.commands import heeding_ctrl_c, installed

_ADDRESS = re.compile(r"Serving .* at (http://\S+), on cpu\n")


class Service(subprocess.Popen[str]):
    """A service that listens.

    Attributes:
        url: Its address, as `http://127.0.0.1:40123`.
    """

    url: str

    @property
    def address(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://")


@contextlib.contextmanager
def serving(
    model: Path, *arguments: object, most_files: int | None = None, prepare: Callable[[], object] | None = None
) -> Iterator[Service]:
    """Start a service on the CPU and a free port of the loopback interface; kill it at the end if it still runs.

    Args:
        model: The model to serve.
        arguments: More for `rnn-serve`.
        most_files: How many files it may have open; None for as many as this process.
        prepare: Called in the process before it becomes the service.
    """

    line = [installed("rnn-serve"), "--model", model, "--provider", "cpu", "--port", 0, *arguments]
    pipe = subprocess.PIPE
    if most_files is not None:
        prepare = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most_files, most_files))
    with heeding_ctrl_c():
        service = Service(list(map(str, line)), stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)
    try:
        assert service.stderr
        first = service.stderr.readline()
        if first.startswith(("Only ", "The memory is small")):  # threads, or memory
            first = service.stderr.readline()
        found = _ADDRESS.fullmatch(first)
        assert found, first + service.communicate()[1]
        service.url = found[1]
        yield service
    finally:
        service.kill()
        service.communicate()
