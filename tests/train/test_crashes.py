"""What is left of a training run that is killed, stopped or out of disk, and that it goes on as if nothing had been."""

import itertools
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torchvision

from rnn_runtime import RunInterruptedError
from rnn_runtime.errors import OutputError
from rnn_runtime.interruption import TerminatedError
from rnn_train import DataSource, TrainSettings
from rnn_train.callbacks import ConsoleCallback
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import folders
from tests.support.commands import Run, installed
from tests.support.file_stops import stopping
from tests.support.full_disk import full_disk
from tests.support.image_folders import write_classes
from tests.support.processes import until_the_terminal_closes
from tests.support.training import Recorder, SignalIn, assert_same_run, resume, train_quietly

DIGITS = DataSource(dataset="digits")
# epochs of 45 steps
SETTINGS = TrainSettings(cell="gru", hidden_size=16, dropout=0.1, batch_size=32, epochs=5)
OPTIONS = ("--dataset", "digits", "--cell", "gru", "--hidden-size", 16, "--dropout", 0.1, "--batch-size", 32)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """What a run with `SETTINGS` ends with."""
    path = tmp_path_factory.mktemp("uninterrupted") / "model.pt"
    train_quietly(path, DIGITS, SETTINGS)
    return Checkpoint.load(path)


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, uninterrupted: Checkpoint) -> None:
    path = tmp_path / "model.pt"
    with stopping("rnn-train", *OPTIONS, "--epochs", 5, "--checkpoint-every", 2, folder=tmp_path) as training:
        training.go_to("move model.pt", time=10)
        training.process.kill()
        training.process.wait()
    (left,) = tmp_path.glob(".model.pt.*.tmp")
    left.unlink()
    assert Checkpoint.load(path).resume_state["under_way"]["step"] == 18

    resume(path)

    assert_same_run(Checkpoint.load(path), uninterrupted)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.csv", "model.pt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGTERM, "terminated"),
        (signal.SIGHUP, "the terminal was closed"),
        (signal.SIGUSR1, "told to stop by SIGUSR1"),
    ],
)
def test_a_signal_lets_the_step_finish_and_says_how_to_go_on(
    run: Run,
    tmp_path: Path,
    uninterrupted: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    said: str,
) -> None:
    monkeypatch.setattr(ConsoleCallback, "step", SignalIn(4, 1, number).step)

    result = run("rnn-train", *OPTIONS, "--epochs", 5)

    assert result.returncode == 128 + number
    assert result.stderr.splitlines()[1:] == [
        f"Error: {said}; model.pt holds step 1 of 45 in epoch 4 of 5. Continue with --resume model.pt"
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.csv", "model.pt"]
    resume(tmp_path / "model.pt")
    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), uninterrupted)


@pytest.mark.slow
def test_a_terminal_that_is_closed_while_it_shows_a_bar_ends_the_run_in_order(tmp_path: Path) -> None:
    line = [installed("rnn-train"), *OPTIONS, "--epochs", "5000", "--no-plots"]

    assert until_the_terminal_closes([str(word) for word in line], tmp_path, "Step [") == 129

    assert Checkpoint.load(tmp_path / "model.pt").resume_state["epoch"] >= 1


def test_under_nohup_a_run_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConsoleCallback, "step", SignalIn(1, 1, signal.SIGHUP).step)
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = run("rnn-train", *OPTIONS, "--epochs", 2)
    finally:
        signal.signal(signal.SIGHUP, usual)

    assert result.returncode == 0
    assert Checkpoint.load(tmp_path / "model.pt").resume_state["epoch"] == 2


def test_from_python_a_signal_ends_the_run_after_its_step(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    progress = SignalIn(2, 7)

    with pytest.raises(RunInterruptedError, match="holds step 7 of 45 in epoch 2 of 5") as interrupted:
        train_quietly(tmp_path / "model.pt", DIGITS, SETTINGS, callback=progress)

    assert interrupted.value.exit_code == 143
    assert progress.steps[-1][:2] == (2, 7)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_while_a_data_set_is_downloaded_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __init__(self, *_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()

    monkeypatch.setattr(torchvision.datasets, "MNIST", Endless)

    with pytest.raises(TerminatedError):
        train_quietly(tmp_path / "runs" / "model.pt", DataSource(), SETTINGS)

    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_images_are_read_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, read = write_classes(tmp_path / "photos", 200), itertools.count(1)

    def read_and_signal(path: str) -> bytes:
        if next(read) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return Path(path).read_bytes()

    monkeypatch.setattr(folders, "read_bytes", read_and_signal)

    with pytest.raises(TerminatedError):
        train_quietly(tmp_path / "runs" / "model.pt", DataSource(data=str(photos), image_size=(6, 5)), SETTINGS)

    assert next(read) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_signal_in_the_last_step_leaves_what_resuming_finishes(tmp_path: Path) -> None:
    settings = TrainSettings(hidden_size=8, epochs=1)
    train_quietly(tmp_path / "whole.pt", DIGITS, settings)
    with pytest.raises(RunInterruptedError, match="holds step 15 of 15 in epoch 1 of 1"):
        train_quietly(tmp_path / "model.pt", DIGITS, settings, callback=SignalIn(1, 15))

    resume(tmp_path / "model.pt")

    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), Checkpoint.load(tmp_path / "whole.pt"))


class FillDisk(Recorder):
    """From the first step on, no file can be larger than so many bytes, until `stack` is closed."""

    def __init__(self, stack: ExitStack, largest_file: int) -> None:
        super().__init__()
        self._stack, self._largest_file = stack, largest_file

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        super().step(epoch, step, loss, images)
        if len(self.steps) == 1:
            self._stack.enter_context(full_disk(self._largest_file))


def test_a_disk_that_is_full_is_found_before_training(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError):
        train_quietly(tmp_path / "model.pt", DIGITS, SETTINGS, callback=SignalIn(1, 7))
    before = (tmp_path / "model.pt").read_bytes()

    with full_disk(largest_file=len(before) // 2):
        result = run("rnn-train", "--resume", "model.pt", "--device", "cpu")

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "Error: model.pt: no room for a checkpoint of 0.2 MB: File too large. "
        "Free some space, or choose another --output\n"
    )
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path, uninterrupted: Checkpoint) -> None:
    with pytest.raises(RunInterruptedError):
        train_quietly(tmp_path / "model.pt", DIGITS, SETTINGS, callback=SignalIn(1, 7))
    before = (tmp_path / "model.pt").read_bytes()

    with ExitStack() as stack, pytest.raises(OutputError) as full:
        resume(tmp_path / "model.pt", plots=True, callback=FillDisk(stack, len(before) // 2))

    assert str(full.value) == (
        f"{tmp_path}/model.pt: this checkpoint can't be written: File too large; {tmp_path}/model.pt holds step 7 of "
        f"45 in epoch 1 of 5. "
        f'Continue with `resume="{tmp_path}/model.pt"`'
    )
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    resume(tmp_path / "model.pt")
    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), uninterrupted)
