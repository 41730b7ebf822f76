"""Runs of several processes that torchrun starts."""

import contextlib
import subprocess
import sys
from pathlib import Path

from tests.support.commands import Result, modules_from
from tests.support.processes import descendants, started_with_children

ROOT = Path(__file__).parents[2]
_LONGEST = 180  # seconds that a test waits for a run to end


def torchrun_line(*arguments: object, processes: int = 2, options: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """A command line that starts `rnn-train` with these arguments, or a program if the first ends in `.py`."""
    module = [] if str(arguments[0]).endswith(".py") else ["-m", "rnn_train"]
    start = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(processes)]
    return [*start, *module, *map(str, arguments)]


def run_together(*arguments: object, folder: Path, processes: int = 2) -> Result:
    """Run it to its end."""
    with started_together(*arguments, folder=folder, processes=processes) as run:
        return finish(run)


def started_together(
    *arguments: object, folder: Path, processes: int = 2, options: tuple[str, ...] = ("--standalone",)
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Start it in a folder, its stdout and stderr in pipes. At the end of the block, all its processes are killed."""
    line = torchrun_line(*arguments, processes=processes, options=options)
    # One thread each: two tests run at a time, on two cores.
    return started_with_children(line, folder, modules_from(ROOT) | {"OMP_NUM_THREADS": "1"})


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


def errors(result: Result) -> list[str]:
    """The errors that our processes reported. torchrun writes lines of its own."""
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
