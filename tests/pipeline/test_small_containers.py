"""Containers that allow little: few processes, part of a core, no shared memory, and streams of another encoding."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from rnn_runtime.cores import default_threads, usable_cores, usable_memory
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run, RunProcess, installed
from tests.support.encoded_images import png_of_claimed_size
from tests.support.image_folders import write_classes
from tests.support.processes import on_a_terminal
from tests.support.results import read_results
from tests.support.services import serving

PIDS, CPU, MEMORY = (Path("/sys/fs/cgroup") / name for name in ("pids", "cpu", "memory"))  # version 1
MANY = 2_100  # files, for which processes are started
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")
with_pids = pytest.mark.skipif(not os.access(PIDS, os.W_OK), reason="no control group for numbers of processes")

Enter = Callable[[], object]

COUNT_FORKS = """
import os
from rnn_runtime import Classifier, RunOptions, classify_files, find_images
forks = 0
def count():
    global forks
    forks += 1
os.register_at_fork(after_in_parent=count)
classify_files(Classifier("model.onnx", "cpu"), find_images(["many"]), "a.csv", RunOptions(processes=2))
print(forks)
"""


@contextlib.contextmanager
def group(controller: Path, limit: str, value: int) -> Iterator[Enter]:
    """Give a function with which a process that has just been forked enters a control group with a limit."""
    folder = controller / f"test-{uuid.uuid4()}"
    folder.mkdir()
    try:
        (folder / limit).write_text(str(value))
        yield lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        folder.rmdir()


def at_most(count: int) -> contextlib.AbstractContextManager[Enter]:
    """A group of so many processes and threads."""
    return group(PIDS, "pids.max", count)


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder with model.onnx, and 2,100 digits in many/."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    digits = sorted(digits_images.rglob("*.png"))
    (tmp_path / "many").mkdir()
    for i in range(MANY):
        os.link(digits[i % len(digits)], tmp_path / "many" / f"{i:04}.png")
    return tmp_path


@with_pids
@pytest.mark.slow
@pytest.mark.parametrize("threads", [None, 8])
@pytest.mark.parametrize("count", range(1, 13))
def test_many_files_are_classified_with_as_many_threads_as_there_may_be(
    run_process: RunProcess, folder: Path, count: int, threads: int | None
) -> None:
    asked = ("-j", threads) if threads else ()
    with at_most(count) as enter:
        result = run_process("rnn-infer", "-p", "cpu", *asked, "-o", "a.csv", "many", preexec_fn=enter, timeout=120)

    *notices, last = result.stderr.splitlines()
    assert result.returncode == 0, result.stderr
    assert last.startswith(f"{MANY:,} images, ")
    assert len(read_results(folder / "a.csv")) == MANY
    assert len(notices) <= 1
    if threads or count == 1:
        assert notices == [limited_to(count)]


def limited_to(count: int) -> str:
    more = f"{count - 1} more thread{'' if count == 2 else 's'}"
    return f"Only {more} can be started (ulimit -u, or the container's limit), so fewer are used"


@with_pids
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_bar_is_left_out_where_its_threads_cannot_be_started(folder: Path, count: int) -> None:
    line = [installed("rnn-infer"), "-p", "cpu", "-f", "table", "many"]
    with at_most(count) as enter:
        exit_code, shown = on_a_terminal(line, folder, preexec_fn=enter)

    assert exit_code == 0
    assert shown.splitlines()[0] == limited_to(count)
    assert shown.splitlines()[-1].startswith(f"{MANY:,} images, ")


@with_pids
@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("count", range(1, 13))
def test_a_program_of_its_own_classifies_with_as_many_threads_as_there_may_be(
    run_process: RunProcess, folder: Path, cell: str, count: int
) -> None:
    from rnn_export import export_onnx

    spec = ModelSpec(ImageSpec(8, 8, 1), tuple("0123456789"), cell=cell, hidden_size=8)  # type: ignore[arg-type]
    random_checkpoint(spec).save(folder / "other.pt")
    export_onnx(folder / "other.pt", folder / "other.onnx")
    code = """
from rnn_runtime import Classifier, RunOptions, classify_files, find_images
classifier = Classifier("other.onnx", "cpu", threads=4)
print(len(classifier.predict(list(find_images(["many"]))[:100])))
classify_files(classifier, find_images(["many"]), "a.csv", RunOptions(processes=4))
"""
    with at_most(count) as enter:
        result = run_process(
            "python", "-W", "ignore", "-c", code, env={"OPENBLAS_NUM_THREADS": "1"}, preexec_fn=enter, timeout=60
        )

    assert (result.returncode, result.stdout, result.stderr) == (0, "100\n", "")
    assert len(read_results(folder / "a.csv")) == MANY


@with_pids
@pytest.mark.slow
@pytest.mark.parametrize("count", range(1, 13))
def test_training_and_export_work_with_few_threads(run_process: RunProcess, tmp_path: Path, count: int) -> None:
    write_classes(tmp_path / "photos", count=20)

    for line in (("rnn-train", "--data", "photos", "--epochs", "1"), ("rnn-export", "model.pt", "model.onnx")):
        with at_most(count) as enter:
            result = run_process(*line, preexec_fn=enter, timeout=120)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.access(CPU, os.W_OK), reason="no control group for processor time")
def test_torch_has_as_many_threads_as_the_quota_has_cores(run_process: RunProcess, tmp_path: Path) -> None:
    line = ("rnn-train", "--dataset", "digits", "--epochs", 1, "--no-plots")
    with group(CPU, "cpu.cfs_quota_us", 100_000) as enter:
        result = run_process(*line, env={"OMP_NUM_THREADS": None}, preexec_fn=enter)

    assert result.returncode == 0, result.stderr
    assert Checkpoint.load(tmp_path / "model.pt").resume_state["threads"] == 1


@with_pids
@pytest.mark.slow
@pytest.mark.parametrize("count", range(1, 13))
def test_a_service_answers_or_says_that_it_gets_no_threads(
    run_process: RunProcess, digits_model: Path, digits_images: Path, count: int
) -> None:
    image = min(digits_images.rglob("*.png")).read_bytes()
    with at_most(count) as enter:
        if count < 3:
            result = run_process("rnn-serve", "-m", digits_model, "--port", 0, preexec_fn=enter, timeout=60)
            assert result.returncode == 2
            assert "can't start new thread: the limit on processes and threads" in result.stderr.splitlines()[-1]
            assert "Traceback" not in result.stderr
            return
        with serving(digits_model, prepare=enter) as service:
            for _ in range(20):
                assert httpx.post(f"{service.url}/classify", content=image).status_code == 200
            service.terminate()
            service.wait(30)


@as_root
@pytest.mark.parametrize("options", ["ro", "size=4k,nr_inodes=1"])
def test_processes_need_no_shared_memory(run_process: RunProcess, folder: Path, options: str) -> None:
    script = f'mount -t tmpfs -o {options} none /dev/shm && exec "$0" "$@"'
    line = ["unshare", "--mount", "sh", "-c", script, installed("python"), "-c", COUNT_FORKS]

    result = run_process("python", "-c", f"import os; os.execvp('unshare', {line})")

    assert (result.stdout, result.stderr, result.returncode) == ("2\n", "", 0)
    assert len(read_results(folder / "a.csv")) == MANY


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/cpu.max": "90000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "20000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000000 100000\n"}, None),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_a_quota_of_processor_time_counts_as_cores(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": "1000\n",
            "sys/fs/cgroup/a/b/memory.max": "max",
        },
        {"proc/self/cgroup": "9:memory:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n"},
    ],
)
def test_a_limit_of_memory_is_seen(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert usable_memory(tmp_path) == 1000
    assert usable_memory(tmp_path / "nowhere") > 1 << 30


@pytest.mark.parametrize(("limit", "threads"), [(4 << 30, 16), (600 << 20, 2), (100 << 20, 1)])
def test_threads_that_decode_have_room_in_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")

    assert default_threads(tmp_path) == threads


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="no control group for memory")
def test_a_service_in_a_small_container_takes_smaller_images(digits_model: Path) -> None:
    with group(MEMORY, "memory.limit_in_bytes", 300_000_000) as enter, serving(digits_model, prepare=enter) as service:
        allowed = httpx.post(f"{service.url}/classify", content=png_of_claimed_size(2400, 2400))
        refused = httpx.post(f"{service.url}/classify", content=png_of_claimed_size(2500, 2500))
        service.terminate()
        service.wait(30)

    assert "the limit" not in allowed.text
    assert "the image has more than 6,000,000 pixels, the limit of this service" in refused.text


@pytest.mark.parametrize(
    ("line", "images"),
    [
        (("--data", "photos", "--image-size", "64"), "40 images of 64x64 take 0.0 GB"),
        (("--data", "idx"), "idx/train-images-idx3-ubyte: to be read, its values take 160.0 GB"),
        (("--dataset", "digits", "--image-size", "3000"), "1,797 images of 3000x3000 take 16.2 GB"),
        (
            ("--dataset", "digits", "--val-split", "0.2"),
            "while some of 1,437 images are held out, all take another 0.0 GB",
        ),
    ],
)
def test_images_that_the_memory_does_not_hold_are_refused_before_they_are_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...], images: str
) -> None:
    monkeypatch.setattr("rnn_train.data.source.usable_memory", lambda: 1000)
    write_classes(tmp_path / "photos", count=20)
    (tmp_path / "idx").mkdir()
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / "idx" / name).touch()
    with (tmp_path / "idx" / "train-images-idx3-ubyte").open("wb") as sparse:
        sparse.truncate(80_000_000_000)

    result = run("rnn-train", *line, "--epochs", "1")

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert (
        f"{images}, and all images are held in the memory, of which 0.0 GB are left for this process" in result.stderr
    )
    assert "--batch-size" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="no control group for memory")
def test_images_that_fill_a_container_are_refused_and_fewer_are_trained_on(run_process: RunProcess) -> None:
    line = ("rnn-train", "--dataset", "digits", "--epochs", 1, "--normalize", "--val-split", 0.2, "--no-plots")
    with group(MEMORY, "memory.limit_in_bytes", 2 << 30) as enter:
        large = run_process(*line, "--image-size", 900, preexec_fn=enter)
        small = run_process(*line, "--image-size", 120, "--hidden-size", 8, preexec_fn=enter)

    assert large.returncode == 2
    assert "1,797 images of 900x900 take 1.5 GB" in large.stderr
    assert small.returncode == 0, small.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
@pytest.mark.parametrize("form", ["csv", "table"])
def test_pipes_get_utf_8_whatever_the_locale(
    run_process: RunProcess, tmp_path: Path, names_model: Path, encoding: str, form: str
) -> None:
    env = {"PYTHONIOENCODING": encoding, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    result = run_process("rnn-infer", "-m", names_model, "--format", form, tmp_path / "photos", env=env)

    assert result.returncode == 0, result.stderr
    assert "é😀" in result.stdout


@pytest.mark.slow
def test_classes_have_the_same_names_whatever_the_locale(
    run: Run, run_process: RunProcess, tmp_path: Path, names_model: Path
) -> None:
    env = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    write_classes(tmp_path / "classes", count=12, names=("é😀", "ü😀"))
    for line in (("rnn-train", "--data", "classes", "--epochs", 1), ("rnn-export", "model.pt", "posix.onnx")):
        assert run_process(*line, env=env).returncode == 0

    evaluated = run_process("rnn-infer", "-m", names_model, "-r", "--labels-from-folders", "classes", env=env)
    copied = run_process("rnn-infer", "-m", names_model, "-r", "--copy-to", "copies", "classes", env=env)
    elsewhere = run("rnn-infer", "-m", "posix.onnx", "-r", "--labels-from-folders", "classes")

    assert [result.returncode for result in (evaluated, copied, elsewhere)] == [0, 0, 0]
    assert {path.name for path in (tmp_path / "copies").iterdir()} <= {"é😀", "ü😀"}


def test_names_on_standard_input_are_utf_8_whatever_its_encoding(
    run_process: RunProcess, tmp_path: Path, names_model: Path
) -> None:
    names = "\n".join(str(path) for path in (tmp_path / "photos").glob("*.png"))

    result = run_process("rnn-infer", "-m", names_model, "-", input=names, env={"PYTHONIOENCODING": "latin-1"})

    assert result.returncode == 0, result.stderr


def test_messages_in_a_file_are_utf_8(run_process: RunProcess) -> None:
    result = run_process("rnn-infer", "-m", "é.onnx", "photos", env={"PYTHONIOENCODING": "latin-1"})

    assert result.stderr.startswith("Error: é.onnx: no such file")


@pytest.mark.parametrize("form", ["csv", "table"])
def test_a_terminal_gets_escapes_for_what_it_lacks(tmp_path: Path, names_model: Path, form: str) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = [installed("rnn-infer"), "-m", names_model, "--format", form, "photos"]

    exit_code, shown = on_a_terminal(list(map(str, line)), tmp_path, env=env)

    assert exit_code == 0
    assert "\\xe9\\U0001f600" in shown
    assert "Traceback" not in shown


@pytest.fixture
def names_model(run: Run, tmp_path: Path) -> Path:
    """A model of classes that aren't ASCII, and photos/, which it was trained on."""
    write_classes(tmp_path / "photos", count=12, names=("é😀", "ü😀"))
    for line in (("rnn-train", "--data", "photos", "--epochs", "1"), ("rnn-export", "model.pt", "model.onnx")):
        assert run(*line).returncode == 0
    for path in sorted((tmp_path / "photos").rglob("*.png")):
        path.rename(tmp_path / "photos" / f"{path.parent.name}-{path.name}")
    return tmp_path / "model.onnx"
