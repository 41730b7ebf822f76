"""TensorBoard's curves: those of `metrics.csv`, once each, whether a run was stopped or not."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnn_runtime.errors import MissingPackageError, OutputError
from rnn_train import CallbackList, DataSource, TensorBoardCallback, TrainSettings
from rnn_train.checkpoint import Checkpoint
from tests.support.commands import Run
from tests.support.full_disk import full_disk
from tests.support.idx_files import write_idx_folder
from tests.support.training import Recorder, StopIn, resume, train_quietly

SETTINGS = TrainSettings(hidden_size=8, learning_rate=0.01, epochs=3, batch_size=2)  # epochs of 20 steps


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    return DataSource(data=str(write_idx_folder(tmp_path / "data")))


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each curve's points, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_images(folder: Path) -> list[int]:
    """The steps at which there are images."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return [image.step for tag in events.Tags()["images"] for image in events.Images(tag)]


def without_speed(curves: Mapping[str, Any]) -> dict[str, Any]:
    return {tag: points for tag, points in curves.items() if tag not in ("seconds", "images_per_second")}


def test_the_curves_are_those_of_the_metrics(tmp_path: Path, source: DataSource) -> None:
    source = replace(source, val_split=0.5)
    with TensorBoardCallback(tmp_path / "board") as callback:
        train_quietly(tmp_path / "model.pt", source, SETTINGS, callback=callback)

    curves = read_curves(tmp_path / "board")
    rows = Checkpoint.load(tmp_path / "model.pt").metrics["epochs"]
    assert curves.keys() == {
        "loss/batch",
        "loss/train",
        "loss/validation",
        "accuracy/train",
        "accuracy/validation",
        "learning_rate",
        "seconds",
        "images_per_second",
    }
    for tag, name in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        assert [step for step, _ in curves[tag]] == [10, 20, 30]
        assert [value for _, value in curves[tag]] == pytest.approx([row[name] for row in rows])
    assert [step for step, _ in curves["loss/batch"]] == [10, 20, 30]
    assert read_images(tmp_path / "board") == [1, 11, 21]


@pytest.mark.parametrize(
    ("stop", "checkpoint_every"), [((2, 3), None), pytest.param((2, 17), 4, marks=pytest.mark.slow), ((3, 1), 4)]
)
def test_a_resumed_run_continues_the_curves_without_doubling(
    tmp_path: Path, source: DataSource, stop: tuple[int, int], checkpoint_every: int | None
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    with TensorBoardCallback(tmp_path / "whole" / "board") as callback:
        train_quietly(tmp_path / "whole" / "model.pt", source, SETTINGS, callback=callback)
    with pytest.raises(KeyboardInterrupt), TensorBoardCallback(tmp_path / "stopped" / "board") as callback:
        train_quietly(
            tmp_path / "stopped" / "model.pt",
            source,
            SETTINGS,
            checkpoint_every=checkpoint_every,
            callback=CallbackList(callback, StopIn(*stop)),
        )

    with TensorBoardCallback(tmp_path / "stopped" / "board") as callback:
        resume(tmp_path / "stopped" / "model.pt", callback=callback)

    found, expected = read_curves(tmp_path / "stopped" / "board"), read_curves(tmp_path / "whole" / "board")
    assert without_speed(found) == without_speed(expected)
    assert read_images(tmp_path / "stopped" / "board") == read_images(tmp_path / "whole" / "board")


def test_a_new_run_replaces_the_curves_of_another(tmp_path: Path, source: DataSource) -> None:
    for epochs in (3, 1):
        with TensorBoardCallback(tmp_path / "board") as callback:
            train_quietly(tmp_path / "model.pt", source, replace(SETTINGS, epochs=epochs), callback=callback)

    assert [step for step, _ in read_curves(tmp_path / "board")["loss/train"]] == [20]


def test_the_board_changes_nothing_about_the_run(tmp_path: Path, source: DataSource) -> None:
    plain = train_quietly(tmp_path / "model.pt", source, SETTINGS)
    with TensorBoardCallback(tmp_path / "board") as callback:
        watched = train_quietly(tmp_path / "model.pt", source, SETTINGS, callback=callback)

    pairs = zip(plain.checkpoint.weights.values(), watched.checkpoint.weights.values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_several_callbacks_are_told_the_same(tmp_path: Path, source: DataSource) -> None:
    recorders = Recorder(), Recorder()

    train_quietly(tmp_path / "model.pt", source, SETTINGS, callback=CallbackList(*recorders))

    assert len(recorders[0].steps) == 60
    for name in ("started", "steps", "losses", "messages", "notes"):
        assert getattr(recorders[0], name) == getattr(recorders[1], name)


def test_a_folder_that_cannot_be_written_fails_before_training(tmp_path: Path, source: DataSource) -> None:
    (tmp_path / "board").write_text("")
    recorder = Recorder()

    with pytest.raises(OutputError, match="board: TensorBoard's events can't be written to this folder"):
        train_quietly(
            tmp_path / "model.pt",
            source,
            SETTINGS,
            callback=CallbackList(TensorBoardCallback(tmp_path / "board"), recorder),
        )

    assert recorder.steps == []
    assert not (tmp_path / "model.pt").exists()


def test_a_disk_that_fills_up_is_no_reason_to_stop_training(
    tmp_path: Path, source: DataSource, capsys: pytest.CaptureFixture[str]
) -> None:
    class FillDisk(Recorder):
        def step(self, epoch: int, step: int, loss: float, images: int) -> None:
            super().step(epoch, step, loss, images)
            if (epoch, step) == (1, 5):
                stack.enter_context(full_disk(largest_file=100))
            if (epoch, step) == (1, 15):
                stack.close()

    with ExitStack() as stack, TensorBoardCallback(tmp_path / "board") as callback:
        result = train_quietly(tmp_path / "model.pt", source, SETTINGS, callback=CallbackList(callback, FillDisk()))

    assert len(result.checkpoint.metrics["epochs"]) == 3
    assert capsys.readouterr().err == (
        f"{tmp_path}/board: TensorBoard's events can't be written any more: File too large\n"
    )


def test_without_the_package_training_does_not_start(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: DataSource
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    result = run("rnn-train", "--data", source.data, "--tensorboard", "board")

    assert result.returncode == MissingPackageError.exit_code == 3
    assert result.stderr == "Error: tensorboard is not installed. Install it with: pip install tensorboard\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_the_command_writes_and_continues_the_curves(run: Run, tmp_path: Path, source: DataSource) -> None:
    options = ("--tensorboard", "board", "--no-plots")

    first = run("rnn-train", "--data", source.data, "--hidden-size", 8, "--epochs", 1, *options)
    second = run("rnn-train", "--resume", "model.pt", "--epochs", 2, *options)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stderr.endswith("Wrote model.pt\n")
    assert [step for step, _ in read_curves(tmp_path / "board")["loss/train"]] == [1, 2]
