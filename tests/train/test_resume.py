"""Resuming: a run that was stopped ends just as one that wasn't."""

import csv
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rnn_runtime.errors import CheckpointError, DataError, SettingsError
from rnn_train import DataSource, TrainSettings, train
from rnn_train.callbacks import TrainingCallback
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import load_data
from rnn_train.settings import AUGMENT_PARTS
from tests.support.commands import Run
from tests.support.idx_files import write_idx_folder
from tests.support.image_folders import write_classes
from tests.support.training import (
    LSTM_IN_BFLOAT16,
    KnownAccuracies,
    Recorder,
    StopIn,
    assert_equal,
    assert_same_run,
    resume,
    train_quietly,
)

SMALL = TrainSettings(hidden_size=8, learning_rate=0.01, epochs=4, batch_size=16)


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    return DataSource(data=str(write_idx_folder(tmp_path / "data", train=60)))


def run_to_the_end(path: Path, source: DataSource, settings: TrainSettings) -> Checkpoint:
    train_quietly(path, source, settings)
    return Checkpoint.load(path)


def run_and_stop(path: Path, source: DataSource, settings: TrainSettings, epoch: int) -> None:
    """Leaves the checkpoint of the epoch before `epoch`."""
    with pytest.raises(KeyboardInterrupt):
        train_quietly(path, source, settings, callback=StopIn(epoch))


def resume_quietly(path: Path, output: Path | None = None, **others: Any) -> Checkpoint:
    torch.manual_seed(12345)  # a new process would have another state too
    resume(path, output, **others)
    return Checkpoint.load(output or path)


def test_a_resumed_run_ends_as_one_without_a_stop(tmp_path: Path, source: DataSource) -> None:
    settings = replace(SMALL, cell="gru", dropout=0.3)
    expected = run_to_the_end(tmp_path / "whole.pt", source, settings)
    run_and_stop(tmp_path / "model.pt", source, settings, 3)

    assert_same_run(resume_quietly(tmp_path / "model.pt"), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "lstm", "bidirectional": True, "clip_norm": 0.1, "label_smoothing": 0.1},
        {"schedule": "one-cycle", "cell": "gru", "dropout": 0.1, "weight_decay": 0.01, "normalize": True, "shift": 1},
        {"augment": AUGMENT_PARTS, "class_weights": "balanced", "flip": True},
        {"amp": True, "cell": "gru", "dropout": 0.2},
        pytest.param({"amp": True, "cell": "lstm"}, marks=LSTM_IN_BFLOAT16),
    ],
    ids=str,
)
def test_a_run_resumed_within_an_epoch_ends_as_without_a_stop(
    tmp_path: Path, source: DataSource, changes: dict[str, Any]
) -> None:
    settings = replace(SMALL, **changes)  # epochs of 4 steps, the last with fewer images
    expected = run_to_the_end(tmp_path / "whole.pt", source, settings)
    with pytest.raises(KeyboardInterrupt):
        train_quietly(tmp_path / "model.pt", source, settings, checkpoint_every=1, callback=StopIn(3, 2))
    progress = Checkpoint.load(tmp_path / "model.pt").resume_state
    assert (progress["epoch"], progress["under_way"]["step"]) == (2, 1)

    assert_same_run(resume_quietly(tmp_path / "model.pt"), expected)


def test_checkpoints_every_third_step_count_over_the_whole_run(tmp_path: Path, source: DataSource) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_quietly(tmp_path / "model.pt", source, SMALL, checkpoint_every=3, callback=StopIn(3, 3))

    progress = Checkpoint.load(tmp_path / "model.pt").resume_state
    assert (progress["epoch"], progress["under_way"]["step"]) == (2, 1)  # step 9 of epochs of 4 steps


@pytest.mark.parametrize("every", [0, -1])
def test_checkpoints_every_less_than_one_step_are_refused(tmp_path: Path, source: DataSource, every: int) -> None:
    with pytest.raises(SettingsError, match="`checkpoint_every` must be a whole number from 1 up"):
        train_quietly(tmp_path / "model.pt", source, SMALL, checkpoint_every=every)


def test_the_best_epoch_survives_a_stop(tmp_path: Path, source: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(source, val_split=0.5)
    validation = load_data(source).validation
    assert validation is not None
    accuracies = (0.5, 0.9, 0.2, 0.7)
    epochs = KnownAccuracies(monkeypatch, validation.labels, accuracies)
    expected = run_to_the_end(tmp_path / "whole.pt", source, SMALL)
    assert_equal(expected.weights, epochs.weights[1])
    KnownAccuracies(monkeypatch, validation.labels, accuracies)
    run_and_stop(tmp_path / "model.pt", source, SMALL, 4)

    resumed = resume_quietly(tmp_path / "model.pt")

    assert_same_run(resumed, expected)


def test_a_stop_does_not_change_when_patience_ends_a_run(
    tmp_path: Path, source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = replace(source, val_split=0.5), replace(SMALL, epochs=20, patience=3)
    validation = load_data(source).validation
    assert validation is not None
    accuracies = (0.5, 0.9, 0.2, 0.7, 0.9)  # the last equals the best: no progress
    KnownAccuracies(monkeypatch, validation.labels, accuracies)
    expected = run_to_the_end(tmp_path / "whole.pt", source, settings)
    KnownAccuracies(monkeypatch, validation.labels, accuracies)
    run_and_stop(tmp_path / "model.pt", source, settings, 4)

    resumed = resume_quietly(tmp_path / "model.pt")

    assert (resumed.resume_state["epoch"], resumed.metrics["kept_epoch"]) == (5, 2)
    assert_same_run(resumed, expected)


def test_more_patience_trains_on_after_an_early_stop(
    tmp_path: Path, source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = replace(source, val_split=0.5)
    validation = load_data(source).validation
    assert validation is not None
    KnownAccuracies(monkeypatch, validation.labels, (0.5, 0.2, 0.7, 0.6, 0.6))
    expected = run_to_the_end(tmp_path / "whole.pt", source, replace(SMALL, epochs=20, patience=2))
    assert expected.resume_state["epoch"] == 5
    KnownAccuracies(monkeypatch, validation.labels, (0.5, 0.2))
    assert (
        run_to_the_end(tmp_path / "model.pt", source, replace(SMALL, epochs=20, patience=1)).metrics["kept_epoch"] == 1
    )

    KnownAccuracies(monkeypatch, validation.labels, (0.7, 0.6, 0.6))
    resumed = resume_quietly(tmp_path / "model.pt", patience=2)

    assert_same_run(resumed, expected)


def test_resuming_a_run_that_stopped_early_says_how_to_train_on(
    tmp_path: Path, source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, recorder = replace(source, val_split=0.5), Recorder()
    validation = load_data(source).validation
    assert validation is not None
    KnownAccuracies(monkeypatch, validation.labels, (0.5, 0.2))
    run_to_the_end(tmp_path / "model.pt", source, replace(SMALL, patience=1))

    resume_quietly(tmp_path / "model.pt", callback=recorder)

    assert recorder.steps == []
    assert recorder.notes[-1] == (
        f"{tmp_path}/model.pt: stopped early after 2 of 4 epochs. To train longer, raise the patience above "
        "1, or set it to 0"
    )


def test_more_epochs_for_a_finished_run_are_as_if_planned(tmp_path: Path, source: DataSource) -> None:
    changes: dict[str, Any] = {"cell": "gru", "dropout": 0.2, "shift": 1}
    expected = run_to_the_end(tmp_path / "whole.pt", source, replace(SMALL, epochs=5, **changes))
    run_to_the_end(tmp_path / "model.pt", source, replace(SMALL, epochs=2, **changes))

    extended = resume_quietly(tmp_path / "model.pt", epochs=5)

    assert_same_run(extended, expected)


def test_other_epochs_are_refused_for_a_one_cycle_run(tmp_path: Path, source: DataSource) -> None:
    run_to_the_end(tmp_path / "model.pt", source, replace(SMALL, schedule="one-cycle"))

    with pytest.raises(SettingsError, match=r"planned for 4 epochs.*`epochs=6`"):
        resume_quietly(tmp_path / "model.pt", epochs=6)


def test_fewer_epochs_than_are_done_are_refused(tmp_path: Path, source: DataSource) -> None:
    run_to_the_end(tmp_path / "model.pt", source, SMALL)
    before = (tmp_path / "model.pt").read_bytes()

    with pytest.raises(SettingsError, match="4 epochs are done already, more than `epochs=3`"):
        resume_quietly(tmp_path / "model.pt", epochs=3)

    assert (tmp_path / "model.pt").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, source: DataSource) -> None:
    expected = run_to_the_end(tmp_path / "model.pt", source, SMALL)

    assert_same_run(resume_quietly(tmp_path / "model.pt"), expected)


def test_a_resumed_runs_reports_cover_all_epochs(tmp_path: Path, source: DataSource) -> None:
    run_and_stop(tmp_path / "model.pt", source, SMALL, 3)

    resume_quietly(tmp_path / "model.pt")

    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3", "4"]


def test_metrics_grow_with_each_epoch(tmp_path: Path, source: DataSource) -> None:
    grown: list[list[str]] = []

    class ReadMetrics(TrainingCallback):
        def epoch(self, metrics: Mapping[str, float]) -> None:
            if metrics["epoch"] > 1:  # what was written after the epoch before
                grown.append([line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]])

    train_quietly(tmp_path / "model.pt", source, SMALL, callback=ReadMetrics())

    assert grown == [["1"], ["1", "2"], ["1", "2", "3"]]


@pytest.mark.parametrize(
    "left", [None, b"epoch,train_loss\n1,0.5\n2,0.4\n3,0.3\n4,0.2\n"], ids=["none", "another run's"]
)
def test_metrics_after_a_crash_are_those_of_a_run_without_it(
    tmp_path: Path, source: DataSource, left: bytes | None
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    run_to_the_end(tmp_path / "whole" / "model.pt", source, SMALL)
    run_and_stop(tmp_path / "stopped" / "model.pt", source, SMALL, 3)
    metrics = tmp_path / "stopped" / "metrics.csv"
    metrics.unlink()  # killed between the checkpoint and this file
    if left is not None:
        metrics.write_bytes(left)

    resume_quietly(tmp_path / "stopped" / "model.pt")

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{name: row[name] for name in row.keys() - {"seconds", "images_per_second"}} for row in rows]

    assert read(metrics) == read(tmp_path / "whole" / "metrics.csv")


def test_another_output_leaves_the_checkpoint_as_it_was(tmp_path: Path, source: DataSource) -> None:
    run_and_stop(tmp_path / "model.pt", source, SMALL, 3)
    before = (tmp_path / "model.pt").read_bytes()

    resumed = resume_quietly(tmp_path / "model.pt", tmp_path / "more" / "model.pt")

    assert (tmp_path / "model.pt").read_bytes() == before
    assert resumed.resume_state["epoch"] == 4


def test_data_that_has_moved_is_found_where_it_is_now(tmp_path: Path, source: DataSource) -> None:
    expected = run_to_the_end(tmp_path / "whole.pt", source, SMALL)
    run_and_stop(tmp_path / "model.pt", source, SMALL, 3)
    moved = replace(source, data=str(shutil.move(str(source.data), tmp_path / "elsewhere")))
    with pytest.raises(DataError, match="no such folder"):
        resume_quietly(tmp_path / "model.pt")

    resumed = resume_quietly(tmp_path / "model.pt", source=moved)

    assert_same_run(resumed, expected)
    assert resumed.source == moved


@pytest.mark.parametrize(
    ("other", "change"),
    [
        ({"side": 7}, "height 7 instead of 6, width 7 instead of 6"),
        ({"classes": 3}, ".*, classes 0, 1, 2 instead of 0, 1, 2, 3. Point"),
        ({"train": 200}, "training or validation images differ"),
        ({"seed": 1}, "training or validation images differ"),
    ],
)
def test_other_data_is_refused(tmp_path: Path, source: DataSource, other: dict[str, int], change: str) -> None:
    run_and_stop(tmp_path / "model.pt", source, SMALL, 3)
    write_idx_folder(Path(str(source.data)), **({"train": 60} | other))  # type: ignore[arg-type]

    with pytest.raises(DataError, match=f"not the data that .* was trained on: {change}"):
        resume_quietly(tmp_path / "model.pt")


def test_a_folder_in_which_another_background_is_found_is_refused(tmp_path: Path) -> None:
    source = DataSource(data=str(write_classes(tmp_path / "photos", count=3)))
    drawing = np.zeros((6, 5, 2), np.uint8)
    drawing[2:4, 2, 1] = 255
    Image.fromarray(drawing, "LA").save(tmp_path / "photos" / "ant" / "0.png")
    run_and_stop(tmp_path / "model.pt", source, replace(SMALL, batch_size=2), 2)

    drawing[..., 0] = 255
    Image.fromarray(drawing, "LA").save(tmp_path / "photos" / "ant" / "0.png")

    with pytest.raises(DataError, match=r"background \(0, 0, 0\) instead of \(255, 255, 255\)\. Point"):
        resume_quietly(tmp_path / "model.pt")


def test_other_validation_images_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_classes(tmp_path / "photos" / split, count=4)
    photos = DataSource(data=str(tmp_path / "photos"))
    run_and_stop(tmp_path / "model.pt", photos, replace(SMALL, batch_size=4), 2)
    (tmp_path / "photos" / "val" / "bee" / "3.png").unlink()

    with pytest.raises(DataError, match="training or validation images differ"):
        resume_quietly(tmp_path / "model.pt")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    run_and_stop(folder / "model.pt", DataSource(data=str(write_idx_folder(folder / "data", train=60))), SMALL, 3)
    return folder / "model.pt"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", {}),
        ("weights", None),
        ("weights", {"linear.bias": torch.zeros(1)}),
        ("optimizer", {}),
        ("optimizer", 3),
        ("optimizer", {0: {}}),
        ("epoch", "two"),
        ("epoch", None),
        ("under_way", 3),
        ("under_way", {}),
        ("under_way", {"order_generator": torch.get_rng_state(), "step": "1"}),
        ("under_way", {"order_generator": torch.zeros(3), "step": 1}),
        ("under_way", {"order_generator": torch.get_rng_state(), "step": 10**9}),
        ("under_way", {"order_generator": torch.get_rng_state(), "step": -1}),
        ("under_way", {"order_generator": torch.get_rng_state(), "loss_sum": float("nan")}),
        ("generator", torch.zeros(3, dtype=torch.uint8)),
        ("generator", torch.zeros(3)),
        ("generator", None),
        *((name, "missing") for name in ("weights", "optimizer", "epoch", "under_way", "generator")),
        ("epochs", []),
        ("epochs", [5]),
        ("epochs", [{}]),
    ],
)
def test_damaged_progress_is_a_checkpoint_error(stopped: Path, tmp_path: Path, name: str, value: Any) -> None:
    content = torch.load(stopped, weights_only=True)
    place = content["metrics" if name == "epochs" else "resume_state"]
    place[name] = value
    if value == "missing":
        del place[name]
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(CheckpointError, match=r"model\.pt: .*damaged"):
        resume_quietly(tmp_path / "model.pt")


def test_optimizer_state_of_other_shapes_is_a_checkpoint_error(stopped: Path, tmp_path: Path) -> None:
    content = torch.load(stopped, weights_only=True)
    # larger, since a smaller one would let the optimizer write beyond its end
    content["resume_state"]["optimizer"][0]["exp_avg"] = torch.zeros(1000)
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(CheckpointError, match="damaged"):
        resume_quietly(tmp_path / "model.pt")


START = ("--dataset", "digits", "--cell", "gru", "--hidden-size", "8", "--epochs", "2", "--no-plots", "--seed", "3")


def test_resume_auto_starts_and_then_continues_with_the_same_line(tmp_path: Path, run: Run) -> None:
    line = (*START, "--resume", "auto", "--output", "runs/model.pt")

    first = run("rnn-train", *line)
    content = (tmp_path / "runs" / "model.pt").read_bytes()
    again = run("rnn-train", *line)

    assert (first.returncode, again.returncode) == (0, 0)
    assert "Epoch [2/2]" in first.stdout
    assert "runs/model.pt: this run is complete, with 2 of 2 epochs" in again.stderr
    assert "Step" not in again.stdout
    assert "Wrote" not in again.stderr
    assert (tmp_path / "runs" / "model.pt").read_bytes() == content


def test_resume_with_unchanged_options_is_accepted_and_epochs_may_change(tmp_path: Path, run: Run) -> None:
    run("rnn-train", *START)

    result = run("rnn-train", "--resume", "model.pt", *START, "--epochs", "3")

    assert result.returncode == 0
    assert "model.pt: continuing after 2 of 3 epochs\n" in result.stderr
    assert Checkpoint.load(tmp_path / "model.pt").settings.epochs == 3


def test_resume_with_a_changed_option_names_it_with_both_values(tmp_path: Path, run: Run) -> None:
    run("rnn-train", *START, "--epochs", "1")
    before = (tmp_path / "model.pt").read_bytes()

    for option, problem in {
        "--hidden-size 9": "--hidden-size 9: model.pt was trained with --hidden-size 8. ",
        "--flip": "--flip: model.pt was trained with --no-flip. ",
        "--seed 4": "--seed 4: model.pt was trained with --seed 3. ",
        "--val-split 0.5": "--val-split 0.5: model.pt was trained with --val-split 0. ",
        "--dataset mnist": "--dataset mnist: model.pt was trained with --dataset digits. ",
        "--image-size 4": "--image-size 4x4: model.pt was trained without --image-size. ",
        "--augment scale,rotation": "--augment rotation,scale: model.pt was trained without --augment. ",
        "--preset accurate": "--hidden-size 128: model.pt was trained with --hidden-size 8. ",
    }.items():
        result = run("rnn-train", "--resume", "model.pt", *option.split())

        assert result.returncode == 2
        way_out = "Use that value to continue the run, or another --output to start a new one\n"
        assert result.stderr == f"Error: {problem}{way_out}"
        assert (tmp_path / "model.pt").read_bytes() == before


def test_resume_auto_refuses_another_line_and_keeps_the_checkpoint(tmp_path: Path, run: Run) -> None:
    run("rnn-train", *START, "--epochs", "1")
    before = (tmp_path / "model.pt").read_bytes()

    result = run("rnn-train", "--resume", "auto", *START, "--hidden-size", "9")

    assert result.returncode == 2
    assert result.stderr.startswith("Error: --hidden-size 9: model.pt was trained with --hidden-size 8. ")
    assert (tmp_path / "model.pt").read_bytes() == before


def test_resume_auto_compares_what_a_preset_stands_for(tmp_path: Path, run: Run) -> None:
    write_idx_folder(tmp_path / "data", train=20)
    line = ("--data", "data", "--preset", "accurate", "--hidden-size", "4", "--epochs", "1", "--no-plots")
    first = run("rnn-train", *line, "--resume", "auto")

    again = run("rnn-train", *line, "--resume", "auto")
    other = run("rnn-train", *line, "--resume", "auto", "--preset", "article")
    named = run("rnn-train", *line, "--resume", "model.pt")

    assert (first.returncode, again.returncode, named.returncode) == (0, 0, 0)
    assert other.returncode == 2
    assert "--cell rnn: model.pt was trained with --cell gru" in other.stderr


def test_one_call_in_python_starts_a_run_and_continues_it(tmp_path: Path) -> None:
    source, output = DataSource(dataset="digits"), tmp_path / "model.pt"

    first = train(source, TrainSettings(hidden_size=8, epochs=1), output, resume="auto", plots=False)
    again = train(source, TrainSettings(hidden_size=8, epochs=2), output, resume="auto", plots=False)

    assert first.checkpoint.settings.epochs == 1
    assert [row["epoch"] for row in again.checkpoint.metrics["epochs"]] == [1, 2]
    assert again.checkpoint.metrics["epochs"][0] == first.checkpoint.metrics["epochs"][0]
    with pytest.raises(SettingsError, match=r"`hidden_size=9`: .*model\.pt was trained with `hidden_size=8`"):
        train(source, TrainSettings(hidden_size=9, epochs=2), output, resume="auto", plots=False)
