"""Runs of several processes that torchrun starts."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.commands import Result, heed_ctrl_c
from tests.support.processes import descendants

ROOT = Path(__file__).parents[2]
_LONGEST = 180  # seconds that a test waits for a run to come to a point, or to end


def torchrun_line(*arguments: object, processes: int = 2, options: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """A command line that starts `rnn-train` with these arguments, or a program if the first ends in `.py`."""
    module = [] if str(arguments[0]).endswith(".py") else ["-m", "rnn_train"]
    start = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(processes)]
    return [*start, *module, *map(str, arguments)]


def run_together(*arguments: object, folder: Path, processes: int = 2) -> Result:
    """Run it to its end."""
    with started_together(*arguments, folder=folder, processes=processes) as run:
        return finish(run)


@contextlib.contextmanager
def started_together(
    *arguments: object, folder: Path, processes: int = 2, options: tuple[str, ...] = ("--standalone",)
) -> Iterator[subprocess.Popen[str]]:
    """Start it in a folder, its stdout and stderr in pipes. At the end of the block, all its processes are killed."""
    line = torchrun_line(*arguments, processes=processes, options=options)
    # One thread each: two tests run at a time, on two cores.
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    run = subprocess.Popen(line, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=env, preexec_fn=heed_ctrl_c)
    try:
        yield run
    finally:
        workers = descendants(run.pid)
        for pid in (run.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.communicate()


def finish(run: "subprocess.Popen[str]") -> Result:
    """Wait until it has ended."""
    stdout, stderr = run.communicate(timeout=_LONGEST)
    return Result(run.args, run.returncode, stdout, stderr)


def worker(run: "subprocess.Popen[str]", rank: int) -> int:
    """The process of a rank."""
    for pid in descendants(run.pid):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no process of rank {rank}")


def wait_for(path: Path, run: "subprocess.Popen[str]") -> None:
    """Return once there is such a file."""
    for _ in range(10 * _LONGEST):
        if path.exists():
            return
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    raise AssertionError(f"no {path.name}")


def errors(result: Result) -> list[str]:
    """The errors that our processes reported. torchrun writes lines of its own."""
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
