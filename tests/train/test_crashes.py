"""What is left of a training run that is killed, stopped or out of disk, and that it goes on as if nothing had been."""

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rnn_runtime import RunInterruptedError
from rnn_train import DataSource, TrainSettings, resume, train
from rnn_train.callbacks import TrainingProgress
from rnn_train.checkpoint import Checkpoint
from tests.support.processes import started, wait_until
from tests.train.test_resume import assert_same_run

SETTINGS = TrainSettings(cell="gru", hidden_size=16, dropout=0.1, batch_size=32, epochs=20)
OPTIONS = ("--dataset", "digits", "--cell", "gru", "--hidden-size", "16", "--dropout", "0.1", "--batch-size", "32")


def changed(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 of none."""
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("uninterrupted") / "model.pt"
    train(DataSource(dataset="digits"), SETTINGS, path, device="cpu", plots=False)
    return Checkpoint.load(path)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_one_that_was_not(tmp_path: Path) -> None:
    train(DataSource(dataset="digits"), replace(SETTINGS, epochs=40), tmp_path / "whole.pt", device="cpu", plots=False)
    path = tmp_path / "model.pt"
    moments = random.Random(0)
    kills = in_training = 0
    arguments: tuple[str, ...] = (*OPTIONS, "--epochs", "40")
    while kills < 20:
        arguments = ("--resume", "model.pt") if path.exists() else arguments
        with started("rnn-train", *arguments, "--checkpoint-every", 1, "--no-plots", folder=tmp_path) as process:
            if kills % 4 == 3:  # perhaps before it trains at all
                time.sleep(moments.uniform(0, 3))
            else:
                before = changed(path)
                wait_until(lambda before=before: changed(path) != before, process)
                time.sleep(moments.uniform(0, 0.1))
                in_training += 1
            assert process.poll() is None, process.communicate()
            kills += 1
        if path.exists():
            Checkpoint.load(path)  # whole

    assert in_training == 15
    assert Checkpoint.load(path).progress["epoch"] < 40, "nothing was left to do after the last kill"
    with started("rnn-train", "--resume", "model.pt", "--no-plots", folder=tmp_path) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Accuracy of the network" in output
    assert_same_run(Checkpoint.load(path), Checkpoint.load(tmp_path / "whole.pt"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_lets_the_step_finish_and_says_how_to_go_on(
    tmp_path: Path, uninterrupted: Checkpoint, number: signal.Signals, code: int
) -> None:
    with started("rnn-train", *OPTIONS, "--epochs", 20, folder=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Epoch [3/"):
                process.send_signal(number)
                break
        _, errors = process.communicate(timeout=120)

    progress = Checkpoint.load(tmp_path / "model.pt").progress
    step, epoch = progress["under_way"]["step"], progress["epoch"] + 1
    assert process.returncode == code
    assert epoch >= 3
    assert errors.splitlines()[1:] == [
        f"Error: interrupted; model.pt holds step {step} of 45 in epoch {epoch} of 20; "
        "go on with: rnn-train --resume model.pt"
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    resume(tmp_path / "model.pt", device="cpu", plots=False)
    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), uninterrupted)


class SignalAt(TrainingProgress):
    """Sends this process a signal in a step."""

    def __init__(self, *steps: tuple[int, int]) -> None:
        self.steps = steps
        self.seen: list[tuple[int, int]] = []

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:  # noqa: ARG002
        self.seen.append((epoch, step))
        if (epoch, step) in self.steps:
            signal.raise_signal(signal.SIGTERM)  # the other may be ignored where the tests run in the background


def test_from_python_a_signal_ends_the_run_after_its_step_and_handlers_are_as_before(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    progress = SignalAt((2, 7))

    with pytest.raises(RunInterruptedError, match="holds step 7 of 45 in epoch 2 of 20") as interrupted:
        train(DataSource(dataset="digits"), SETTINGS, tmp_path / "model.pt", device="cpu", progress=progress)

    assert interrupted.value.exit_code == 143
    assert progress.seen[-1] == (2, 7)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_in_the_last_step_leaves_what_resuming_finishes(tmp_path: Path) -> None:
    settings = TrainSettings(hidden_size=8, epochs=1)
    train(DataSource(dataset="digits"), settings, tmp_path / "whole.pt", device="cpu", plots=False)
    with pytest.raises(RunInterruptedError, match="holds step 15 of 15 in epoch 1 of 1"):
        train(DataSource(dataset="digits"), settings, tmp_path / "model.pt", device="cpu", progress=SignalAt((1, 15)))

    resume(tmp_path / "model.pt", device="cpu", plots=False)

    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), Checkpoint.load(tmp_path / "whole.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, uninterrupted: Checkpoint, share: float
) -> None:
    with pytest.raises(RunInterruptedError):
        train(DataSource(dataset="digits"), SETTINGS, tmp_path / "model.pt", device="cpu", progress=SignalAt((1, 7)))
    before = (tmp_path / "model.pt").read_bytes()

    # Files larger than this can't be written: it fails as a full disk does, in the middle of a file.
    with started(
        "rnn-train", "--resume", "model.pt", folder=tmp_path, largest_file=int(share * len(before))
    ) as process:
        _, errors = process.communicate(timeout=120)

    assert process.returncode == 2
    assert errors.splitlines()[1:] == [
        "Error: model.pt: this checkpoint can't be written: File too large; model.pt holds step 7 of 45 in epoch 1 of "
        "20; go on with: rnn-train --resume model.pt"
    ]
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    resume(tmp_path / "model.pt", device="cpu", plots=False)
    assert_same_run(Checkpoint.load(tmp_path / "model.pt"), uninterrupted)


def test_a_run_that_diverges_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = ("--epochs", "3", "--cell", "rnn", "--nonlinearity", "relu", "--hidden-size", "8")
    path = tmp_path / "model.pt"

    options = ("--dataset", "digits", *settings, "--learning-rate", "1e30", "--checkpoint-every", 1, "--no-plots")
    with started("rnn-train", *options, folder=tmp_path) as process:
        _, errors = process.communicate(timeout=120)

    assert process.returncode == 2
    assert "training diverged in epoch 1" in errors.splitlines()[-1]
    assert not path.exists() or all(weight.isfinite().all() for weight in Checkpoint.load(path).weights.values())
