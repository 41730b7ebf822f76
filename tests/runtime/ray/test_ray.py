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
from tests.support.commands import Run, RunProcess, installed, modules_from
from tests.support.processes import descendants, started_with_children, wait_until
from tests.support.tampered_models import change_metadata

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one cluster at a time

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


def actors_of(pids: list[int]) -> list[int]:
    """Those of some processes that are actors of ours."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_ShardClassifier"):
                found.append(pid)
    return found


def assert_complete(folder: Path, run: Run) -> None:
    """Assert that the parts are, byte for byte, what one process writes."""
    merged = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")
    assert merged.returncode == 0, merged.stderr
    assert (folder / "merged.csv").read_bytes() == (folder / "single.csv").read_bytes()


def test_parts_are_those_of_one_process_and_are_kept(folder: Path, run: Run, run_process: RunProcess) -> None:
    line = (*RAY, "-o", "parts", "-b", 16, "--shards", 4, "--actors", 2, "--threads", 1, "images")

    first = run_process(*line)

    assert first.returncode == 1  # an image can't be read
    assert first.stderr == "3,001 images, 1 unreadable, 4 parts\n"
    assert_complete(folder, run)
    removed = parts_of(folder)[2]
    before = {path: path.stat().st_mtime_ns for path in parts_of(folder) if path != removed}
    removed.unlink()
    again = run_process(*line)
    assert again.stderr == "750 images, 4 parts (3 from before)\n"
    assert {path: path.stat().st_mtime_ns for path in parts_of(folder) if path != removed} == before
    assert_complete(folder, run)
    shard = run("rnn-infer", "--shard", "1/4", "-o", "parts", "-b", 16, "images")
    assert shard.returncode == 0
    assert shard.stderr.endswith(": there already\n")  # the same name


def test_from_python_it_takes_three_lines(folder: Path, run_process: RunProcess, run: Run) -> None:
    (folder / "program.py").write_text(
        "from rnn_runtime import find_images\n"
        "from rnn_runtime.ray import classify_on_ray\n"
        "print(classify_on_ray('model.onnx', find_images(['images']), 'parts', batch_size=16, format='jsonl'))\n"
    )

    result = run_process("python", "program.py")

    assert result.stdout == "3,001 images, 1 unreadable, 1 part\n", result.stderr
    assert result.returncode == 0
    merged = run("rnn-onnx", "merge", "parts", "-o", "merged.jsonl")
    assert merged.stderr == "3,001 images, 1 unreadable, from 1 part\n"


def test_actors_that_are_killed_lose_and_double_nothing(folder: Path, run: Run) -> None:
    with started(folder, "--shards", 40, "--actors", 2, "--threads", 1) as process:
        for parts in (1, 10):
            wait_for_parts(folder, parts, process)
            actors = actors_of(descendants(process.pid))
            assert actors
            os.kill(actors[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=_LONGEST)

    assert "Traceback" not in stderr
    assert stderr.endswith("3,001 images, 1 unreadable, 40 parts\n")
    assert_complete(folder, run)


def test_a_run_that_is_killed_is_continued_by_the_same_line(folder: Path, run: Run) -> None:
    with started(folder, "--shards", 40) as process:
        wait_for_parts(folder, 3, process)
    kept = {path: path.stat().st_mtime_ns for path in parts_of(folder)}
    assert len(kept) < 40

    with started(folder, "--shards", 40) as process:
        _, stderr = process.communicate(timeout=_LONGEST)

    assert stderr.endswith(f" parts ({len(kept)} from before)\n")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_complete(folder, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line(folder: Path, number: signal.Signals) -> None:
    with started(folder, "--shards", 40) as process:
        wait_for_parts(folder, 1, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=_LONGEST)

    assert process.returncode == 128 + number
    assert stderr == f"Error: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"


def test_a_machine_that_vanishes_loses_and_doubles_nothing(folder: Path, run: Run) -> None:
    pipe = subprocess.PIPE
    program = [sys.executable, str(ROOT / "tests" / "support" / "ray_cluster.py")]
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as cluster:
        assert cluster.stdin
        assert cluster.stdout
        address = cluster.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        variables = {"RAY_ADDRESS": address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        with started(folder, "--shards", 60, "--actors", 2, "--threads", 1, **variables) as process:
            wait_for_parts(folder, 5, process)
            cluster.stdin.write("remove\n")
            cluster.stdin.flush()
            assert cluster.stdout.readline() == "removed\n"
            _, stderr = process.communicate(timeout=_LONGEST)
        cluster.stdin.close()

    assert stderr.endswith("3,001 images, 1 unreadable, 60 parts\n"), stderr
    assert_complete(folder, run)


def test_an_image_that_kills_actors_ends_the_run(folder: Path) -> None:
    shutil.copy(folder / "images" / "0000.png", folder / "images" / "poison.png")
    variables = modules_from(ROOT / "tests" / "support" / "poisoned")

    with started(folder, "--shards", 2, "--actors", 1, "--threads", 1, **variables) as process:
        _, stderr = process.communicate(timeout=_LONGEST)

    assert process.returncode == 1
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("Error: shard 2/2 failed 4 times: ")
    assert stderr.endswith("start again; finished parts are kept\n")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("-m", "none.onnx"), 2, "none.onnx: no such file or directory. Write a model with"),
        (("-p", "cuda"), 3, "the Ray cluster has no GPU. Choose --provider cpu"),
        (("--actors", 1000), 2, "1000 actors with 1 threads each: the CPUs of the Ray cluster are enough for"),
        (("--shards", 0), 2, "Invalid value for '--shards'"),
        (("-f", "table"), 2, "Invalid value for '-f'"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, run_process: RunProcess, arguments: tuple[object, ...], code: int, error: str
) -> None:
    if "cuda" in arguments and shutil.which("nvidia-smi"):
        arguments, code, error = ("--actors", 1000, "-p", "cuda"), 2, "--actors 1000, and the Ray cluster has"

    result = run_process(*RAY, "-o", "parts", *arguments, "images")

    assert result.returncode == code
    assert result.stderr.startswith(f"Error: {error}")
    assert len(result.stderr.splitlines()) == 1
    assert parts_of(folder) == []


def test_another_model_on_a_machine_is_refused(folder: Path, run_process: RunProcess) -> None:
    # The model is replaced once the caller has read it, as where another machine has another file of that name.
    change_metadata(folder / "model.onnx", folder / "other.onnx", checkpoint_sha256="0" * 64)
    (folder / "program.py").write_text(
        "import os\n"
        "from rnn_runtime import RnnOnnxError\n"
        "from rnn_runtime.ray import classify_on_ray, run\n"
        "connect = run.connect\n"
        "def replace_and_connect(ray):\n"
        "    os.replace('other.onnx', 'model.onnx')\n"
        "    return connect(ray)\n"
        "run.connect = replace_and_connect\n"
        "try:\n"
        "    classify_on_ray('model.onnx', ['images/0000.png'], 'parts')\n"
        "except RnnOnnxError as error:\n"
        "    print(type(error).__name__, error)\n"
    )

    result = run_process("python", "program.py")

    assert result.stdout.startswith("ModelError "), result.stderr
    assert result.stdout.endswith("model.onnx: another model than the one on the machine that started the run\n")
    assert parts_of(folder) == []


def test_without_ray_it_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingPackageError, match="pip install ray"):
        classify_on_ray(folder / "model.onnx", ["images/0000.png"], folder / "parts")


def test_a_cluster_that_is_not_there_is_named_soon(folder: Path, run_process: RunProcess) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in (address, f"ray://{address}"):
        line = ("rnn-onnx", "ray", "-m", folder / "model.onnx", "-o", "parts", "-r", "images")
        result = run_process(*line, env={"RAY_ADDRESS": name})

        assert result.returncode == ProcessLostError.exit_code
        assert result.stderr.startswith(f"Error: the Ray cluster at {name} doesn't answer: ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"provider": "gpu"}, "`provider` must be one of auto, cuda, cpu, not 'gpu'"),
        ({"actors": 0}, "`actors` must be a whole number"),
        ({"shards": -3}, "`shards` must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingsError, match=error):
        classify_on_ray(folder / "model.onnx", ["images/0000.png"], folder / "parts", **arguments)


def test_it_runs_in_any_thread(folder: Path, run_process: RunProcess) -> None:
    (folder / "program.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rnn_runtime.ray import classify_on_ray\n"
        "with ThreadPoolExecutor() as pool:\n"
        "    print(pool.submit(classify_on_ray, 'model.onnx', ['images/0000.png'], 'parts').result())\n"
    )

    result = run_process("python", "program.py")

    assert result.stdout == "1 image, 1 part\n", result.stderr
