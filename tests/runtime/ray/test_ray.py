"""Classification on Ray clusters that run here: the answers of one process, whatever is killed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rnn_runtime.errors import MissingPackageError, ProcessLostError, SettingsError
from rnn_runtime.ray import classify_on_ray
from tests.support.commands import Run, RunProcess, installed
from tests.support.processes import descendants, started_with_children, wait_until

RAY = ("rnn-onnx", "ray")
ROOT = Path(__file__).parents[3]
_LONGEST = 180  # seconds that a test waits


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path, run: Run) -> Path:
    """A folder with model.onnx, images/ with 3,000 digits and a file that is none, and their results in single.csv."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    paths = sorted(digits_images.rglob("*.png"))
    for i in range(3000):
        os.link(paths[i % len(paths)], tmp_path / "images" / f"{i:04}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    single = run("rnn-infer", "--provider", "cpu", "--threads", 1, "-o", "single.csv", "-b", 16, "images")
    assert single.returncode == 1  # the broken one
    return tmp_path


def started(
    folder: Path, *arguments: object, **variables: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The command as a process, with its cluster; all are killed at the end of the block."""
    line = [installed("rnn-onnx"), "ray", "-o", "parts", "-b", "16", *map(str, arguments), "images"]
    return started_with_children(line, folder, variables)


def parts_of(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("part-*.csv"))


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: len(parts_of(folder)) >= count, process)


def workers_of(pids: list[int]) -> list[int]:
    """Those of some processes that classify a shard."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_classify_part"):
                found.append(pid)
    return found


def assert_complete(folder: Path, run: Run) -> None:
    """Assert that the parts are, byte for byte, what one process writes."""
    merged = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")
    assert merged.returncode == 0, merged.stderr
    assert (folder / "merged.csv").read_bytes() == (folder / "single.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")  # one cluster at a time
def test_what_is_killed_loses_and_doubles_nothing_and_the_same_line_continues(folder: Path, run: Run) -> None:
    with started(folder, "--shards", 40) as process:
        wait_for_parts(folder, 1, process)
        workers = workers_of(descendants(process.pid))
        assert workers
        os.kill(workers[0], signal.SIGKILL)
        wait_for_parts(folder, 10, process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=_LONGEST)
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr == "Error: terminated; start again; finished parts are kept\n"
    kept = {path: path.stat().st_mtime_ns for path in parts_of(folder)}
    assert 10 <= len(kept) < 40

    with started(folder, "--shards", 40) as process:
        _, stderr = process.communicate(timeout=_LONGEST)

    assert process.returncode == 1  # an image can't be read
    assert stderr.endswith(f" parts ({len(kept)} from before)\n")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_complete(folder, run)
    shard = run("rnn-infer", "--shard", "1/40", "-o", "parts", "-b", 16, "images")
    assert shard.stderr.endswith(": there already\n")  # the same part


@pytest.mark.slow
@pytest.mark.xdist_group("ray")  # one cluster at a time
def test_a_machine_that_vanishes_loses_and_doubles_nothing(folder: Path, run: Run) -> None:
    pipe = subprocess.PIPE
    program = [sys.executable, str(ROOT / "tests" / "support" / "ray_cluster.py")]
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as cluster:
        assert cluster.stdin
        assert cluster.stdout
        address = cluster.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        variables = {"RAY_ADDRESS": address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        with started(folder, "--shards", 60, **variables) as process:
            wait_for_parts(folder, 5, process)
            cluster.stdin.write("remove\n")
            cluster.stdin.flush()
            assert cluster.stdout.readline() == "removed\n"
            _, stderr = process.communicate(timeout=_LONGEST)
        cluster.stdin.close()

    assert stderr.endswith("3,001 images, 1 unreadable, 60 parts\n"), stderr
    assert_complete(folder, run)


def test_without_ray_it_says_how_to_install_it(
    digits_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingPackageError, match="pip install ray"):
        classify_on_ray(digits_model, ["images/0000.png"], tmp_path / "parts")


def test_a_cluster_that_is_not_there_is_named_soon(digits_model: Path, run_process: RunProcess) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in (address, f"ray://{address}"):
        line = ("rnn-onnx", "ray", "-m", digits_model, "-o", "parts", "-r", "images")
        result = run_process(*line, env={"RAY_ADDRESS": name})

        assert result.returncode == ProcessLostError.exit_code
        assert result.stderr.startswith(f"Error: the Ray cluster at {name} doesn't answer: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"provider": "gpu"}, "`provider` must be one of auto, cuda, cpu, not 'gpu'"),
        ({"shards": -3}, "`shards` must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(digits_model: Path, tmp_path: Path, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingsError, match=error):
        classify_on_ray(digits_model, ["images/0000.png"], tmp_path / "parts", **arguments)
