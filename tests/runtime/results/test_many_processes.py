"""Many small files, classified by several processes: the same results as by one, whatever ends them."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from rnn_runtime import Classifier, RunOptions, classify_files, find_images
from rnn_runtime.errors import ProcessLostError
from rnn_runtime.interruption import SIGNALS, RunInterruptedError
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_runtime.results.evaluation import FolderEvaluation
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run
from tests.support.processes import descendants, started

MANY = 3_000
PLACE = 2_900  # of an image by which the processes have long been at work


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder with model.onnx, and 3,000 digits in many/, of which every 41st is damaged."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    (tmp_path / "damaged").write_text("no image")
    digits = sorted(digits_images.rglob("*.png"))
    (tmp_path / "many").mkdir()
    for i in range(MANY):
        source = tmp_path / "damaged" if i % 41 == 0 else digits[i % len(digits)]
        os.link(source, tmp_path / "many" / f"{i:04}.png")
    return tmp_path


def find(folder: Path) -> Iterator[str]:
    return find_images([str(folder / "many")])


class Watch:
    """Looks at this process's children whenever results come, and acts once so many have come."""

    def __init__(self, act: Callable[[list[int]], None] = lambda _: None, at: int = MANY // 2) -> None:
        self.children: set[int] = set()
        self._act, self._left = act, at
        self._before = set(descendants(os.getpid()))

    def __call__(self, results: int) -> None:
        self.children |= set(descendants(os.getpid())) - self._before
        if 0 < self._left <= results:
            self._act(sorted(self.children))
        self._left -= results


@pytest.mark.parametrize("batch_size", [7, 256, 100_000])
def test_results_are_those_of_one_process(folder: Path, batch_size: int) -> None:
    classifier, watch = Classifier(folder / "model.onnx", "cpu"), Watch()
    single, several = (FolderEvaluation(classifier.class_names) for _ in range(2))
    options = RunOptions(top_k=3, batch_size=batch_size, processes=2)
    one = classify_files(classifier, find(folder), folder / "one.csv", RunOptions(top_k=3), evaluation=single)

    two = classify_files(
        classifier,
        find(folder),
        folder / "two.csv",
        options,
        evaluation=several,
        watch=watch,
    )

    assert len(watch.children) == 2
    assert (folder / "two.csv").read_bytes() == (folder / "one.csv").read_bytes()
    assert (two.images, two.unreadable) == (one.images, one.unreadable) == (MANY, 74)
    assert several.unknown == single.unknown
    wait_until_gone(watch.children)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_models_with_threads_of_their_own_run_in_processes(folder: Path, cell: str) -> None:
    from rnn_export import export_onnx

    checkpoint = random_checkpoint(ModelSpec(ImageSpec(8, 8, 1), ("a", "b", "c"), cell=cell, hidden_size=8))  # type: ignore[arg-type]
    checkpoint.save(folder / "model.pt")
    export_onnx(folder / "model.pt", folder / "other.onnx")
    classifier, watch = Classifier(folder / "other.onnx", "cpu", threads=2), Watch()
    classify_files(classifier, find(folder), folder / "one.csv")

    classify_files(classifier, find(folder), folder / "two.csv", RunOptions(processes=2), watch=watch)

    assert len(watch.children) == 2
    assert (folder / "two.csv").read_bytes() == (folder / "one.csv").read_bytes()


def test_few_files_start_no_process(folder: Path) -> None:
    watch, options = Watch(), RunOptions(processes=2)
    paths = list(find(folder))[:1_500]

    classify_files(Classifier(folder / "model.onnx", "cpu"), paths, folder / "a.csv", options, watch=watch)

    assert not watch.children


def test_large_files_start_no_process(folder: Path) -> None:
    Image.effect_noise((400, 400), 60).save(folder / "large.jpg")
    watch = Watch(stop, at=1)

    with pytest.raises(RunInterruptedError):
        classify_files(
            Classifier(folder / "model.onnx", "cpu"),
            [str(folder / "large.jpg")] * MANY,
            folder / "a.csv",
            RunOptions(processes=2),
            watch=watch,
        )

    assert not watch.children


def stop(_: list[int]) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("folder")
def test_the_command_takes_as_many_as_threads(run: Run) -> None:
    results = [run("rnn-infer", "-p", "cpu", "-j", threads, "-k", 2, "many") for threads in (1, 2)]

    assert results[0].stdout == results[1].stdout
    assert [result.returncode for result in results] == [1, 1]


def test_a_process_that_is_killed_ends_the_run_which_can_be_continued(folder: Path) -> None:
    classifier, output = Classifier(folder / "model.onnx", "cpu"), folder / "out.csv"
    watch = Watch(lambda children: os.kill(children[0], signal.SIGKILL))
    classify_files(classifier, find(folder), folder / "expected.csv")

    with pytest.raises(ProcessLostError) as caught:
        classify_files(classifier, find(folder), output, RunOptions(processes=2, batch_size=16), watch=watch)

    assert str(caught.value) == (
        "a process that reads images has ended: it was killed, or memory ran out; "
        f"{output}.part holds the results so far. Continue with `resume=True`"
    )
    wait_until_gone(watch.children)
    classify_files(classifier, find(folder), output, RunOptions(processes=2), resume=True)
    assert output.read_bytes() == (folder / "expected.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_ends_all_processes_and_the_run_can_be_continued(
    folder: Path, run: Run, number: signal.Signals, to_all: bool
) -> None:
    place = f"open:many/{PLACE}.png"
    line = ("--provider", "cpu", "--threads", 2, "--batch-size", 16, "--output", "out.csv")
    with started("rnn-infer", *line, "many", folder=folder, pause_at=place) as process:
        process.wait_for_pause()
        children = descendants(process.pid)
        for pid in (process.pid, *(children if to_all else ())):
            os.kill(pid, number)
        process.go_on()
        _, errors = process.communicate(timeout=60)
        wait_until_gone(children)

    assert len(children) == 2
    if number == signal.SIGKILL:
        assert (process.returncode, errors) == (-number, "")
    else:
        part = (folder / "out.csv.part").resolve()
        assert errors == f"Error: {SIGNALS[number]}; {part} holds the results so far. Continue with --resume\n"
        assert process.returncode == 128 + number
    assert run("rnn-infer", *line, "--resume", "many").returncode == 1
    classify_files(Classifier(folder / "model.onnx", "cpu"), find(folder), folder / "expected.csv")
    assert (folder / "out.csv").read_text() == (folder / "expected.csv").read_text().replace(f"{folder}/", "")


def wait_until_gone(pids: Iterable[int]) -> None:
    for _ in range(3_000):
        if not any(is_running(pid) for pid in pids):
            return
        time.sleep(0.01)
    raise AssertionError("still there after 30 s")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
