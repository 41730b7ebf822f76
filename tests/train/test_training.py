"""Training: repeatable, told when it goes wrong, and keeping the weights that it should."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rnn_runtime.errors import ProviderError, SettingsError
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train
from rnn_train.callbacks import TrainingProgress
from rnn_train.checkpoint import Checkpoint
from rnn_train.data.load import load_data
from rnn_train.model import ImageRNN
from rnn_train.settings import preset_settings
from rnn_train.training import TrainResult, predict_logits
from tests.support.idx_files import write_idx_folder
from tests.train.data.test_image_folder import write_classes

DIGITS = DataSource(dataset="digits")
SMALL = TrainSettings(hidden_size=8, learning_rate=0.01)


def train_quietly(
    folder: Path, source: DataSource = DIGITS, settings: TrainSettings = SMALL, **others: Any
) -> TrainResult:
    return train(source, settings, folder / "model.pt", device="cpu", plots=False, **others)


def same_weights(first: TrainResult, second: TrainResult) -> bool:
    pairs = zip(first.checkpoint.weights.values(), second.checkpoint.weights.values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


class Recorder(TrainingProgress):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int, int]] = []
        self.steps: list[tuple[int, int, int]] = []
        self.losses: list[float] = []
        self.messages: list[str] = []

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.started.append((epochs, steps, done))

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self.steps.append((epoch, step, images))
        self.losses.append(loss)

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "gru", "dropout": 0.2},
        {"cell": "lstm", "shift": 1, "flip": True},
        {"schedule": "one-cycle", "bidirectional": True, "weight_decay": 0.01, "clip_norm": 1.0},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = replace(SMALL, **changes)

    first, again, other = (train_quietly(tmp_path, settings=replace(settings, seed=seed)) for seed in (3, 3, 4))

    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_training_learns(tmp_path: Path) -> None:
    settings = TrainSettings(hidden_size=32, epochs=8, learning_rate=0.01)

    result = train_quietly(tmp_path, settings=settings)

    losses = [row["train_loss"] for row in result.checkpoint.metrics["epochs"]]
    assert losses[-1] < losses[0] / 3
    assert result.accuracy is not None
    assert result.accuracy > 0.8


@pytest.mark.parametrize("normalize", [False, True])
def test_the_preset_accurate_learns_a_folder_of_photos(tmp_path: Path, normalize: bool) -> None:
    write_classes(tmp_path / "photos", count=10)
    settings = replace(preset_settings("accurate"), hidden_size=8, epochs=6, normalize=normalize)

    result = train_quietly(tmp_path, DataSource(data=str(tmp_path / "photos"), val_split=0.2), settings)

    assert result.part == "validation"
    assert result.images == 4


def test_progress_is_told_every_step(tmp_path: Path) -> None:
    recorder = Recorder()

    train_quietly(tmp_path, settings=replace(SMALL, batch_size=500), progress=recorder)

    assert recorder.started == [(2, 3, 0)]
    assert recorder.steps == [
        (epoch, step, images) for epoch in (1, 2) for step, images in ((1, 500), (2, 500), (3, 437))
    ]
    assert recorder.messages[-1].startswith("Accuracy of the network on the 360 test images: ")


def test_a_row_of_metrics_is_kept_for_each_epoch(tmp_path: Path) -> None:
    recorder = Recorder()

    result = train_quietly(tmp_path, settings=replace(SMALL, batch_size=500, epochs=3), progress=recorder)

    rows = result.checkpoint.metrics["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == [0.01] * 3
    assert rows[0]["train_loss"] == pytest.approx(np.average(recorder.losses[:3], weights=[500, 500, 437]))
    assert all(0 <= row["train_accuracy"] <= 1 and row["images_per_second"] > 0 for row in rows)
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,learning_rate,train_loss,train_accuracy,")


def test_the_result_tells_the_accuracy_of_the_weights_that_were_written(tmp_path: Path) -> None:
    result = train_quietly(tmp_path)

    saved = Checkpoint.load(tmp_path / "model.pt")
    test = load_data(DIGITS).test
    assert test is not None
    accuracy = (predict_logits(saved.build_model(), test.images).argmax(axis=1) == test.labels).mean()
    assert (result.accuracy, result.part, result.images) == (accuracy, "test", 360)
    assert saved.metrics["test_accuracy"] == accuracy
    assert saved.metrics["test_images"] == 360
    assert saved.source == DIGITS
    assert saved.settings == SMALL
    assert saved.progress["epoch"] == 2


def test_the_checkpoint_carries_images_that_were_not_trained_on(tmp_path: Path) -> None:
    result = train_quietly(tmp_path)

    test = load_data(DIGITS).test
    assert test is not None
    known = {image.tobytes() for image in test.images}
    assert len(result.checkpoint.samples) == 64
    assert all(image.numpy().tobytes() in known for image in result.checkpoint.samples)


def validation_accuracy(checkpoint: Checkpoint, source: DataSource) -> float:
    part = load_data(source).validation
    assert part is not None
    return float((predict_logits(checkpoint.build_model(), part.images).argmax(axis=1) == part.labels).mean())


def test_the_best_epoch_on_the_validation_images_is_kept(tmp_path: Path) -> None:
    source = replace(DIGITS, val_split=0.2)
    # so high that some epochs are worse than the one before
    settings = replace(SMALL, epochs=10, learning_rate=0.1, seed=1)

    result = train_quietly(tmp_path, source, settings)

    accuracies = [row["validation_accuracy"] for row in result.checkpoint.metrics["epochs"]]
    assert max(accuracies) > accuracies[-1], "this run doesn't tell the best epoch from the last"
    assert validation_accuracy(Checkpoint.load(tmp_path / "model.pt"), source) == max(accuracies)


def test_a_checkpoint_of_a_run_that_was_stopped_holds_the_best_epoch_so_far(tmp_path: Path) -> None:
    source = replace(DIGITS, val_split=0.2)
    settings = replace(SMALL, epochs=10, learning_rate=0.1, seed=1)

    class Stop(TrainingProgress):
        def step(self, epoch: int, step: int, loss: float, images: int) -> None:  # noqa: ARG002
            if epoch == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_quietly(tmp_path, source, settings, progress=Stop())

    saved = Checkpoint.load(tmp_path / "model.pt")
    accuracies = [row["validation_accuracy"] for row in saved.metrics["epochs"]]
    assert len(accuracies) == 8
    assert validation_accuracy(saved, source) == max(accuracies)


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    saved = train_quietly(tmp_path, settings=replace(SMALL, epochs=3, learning_rate=0.1)).checkpoint

    assert all(torch.equal(saved.progress["weights"][name], tensor) for name, tensor in saved.weights.items())


def test_without_test_images_accuracy_is_that_of_validation(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=10)

    result = train_quietly(tmp_path, DataSource(data=str(tmp_path / "photos"), val_split=0.2))

    assert (result.part, result.images) == ("validation", 4)
    assert result.checkpoint.metrics["validation_accuracy"] == result.accuracy
    assert "test_accuracy" not in result.checkpoint.metrics


def test_without_any_image_held_out_there_is_no_accuracy_and_a_message_how_to_get_one(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos")
    recorder = Recorder()

    result = train_quietly(tmp_path, DataSource(data=str(tmp_path / "photos")), progress=recorder)

    assert (result.accuracy, result.part, result.images) == (None, None, 0)
    assert set(result.checkpoint.metrics) == {"epochs"}
    assert "--val-split" in recorder.messages[-1]


def test_normalization_is_that_of_the_training_images(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=8, channels=3)

    result = train_quietly(tmp_path, DataSource(data=str(tmp_path / "photos")), replace(SMALL, normalize=True))

    pixels = load_data(DataSource(data=str(tmp_path / "photos"))).train.images.reshape(-1, 3) / 255
    assert result.checkpoint.spec.mean == pytest.approx(pixels.mean(axis=0))
    assert result.checkpoint.spec.std == pytest.approx(pixels.std(axis=0))


def test_images_of_one_colour_can_be_normalized(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "data", classes=2, side=4)
    header = (tmp_path / "data" / "train-images-idx3-ubyte").read_bytes()[:16]
    (tmp_path / "data" / "train-images-idx3-ubyte").write_bytes(header + b"\x80" * 40 * 16)

    result = train_quietly(tmp_path, DataSource(data=str(tmp_path / "data")), replace(SMALL, normalize=True))

    assert result.checkpoint.spec.std == (1.0,)


@pytest.mark.parametrize("learning_rate", [1e30, 1e39, 1e300])
@pytest.mark.parametrize("epochs", [1, 2])
def test_training_that_diverges_says_so_and_what_to_lower(tmp_path: Path, epochs: int, learning_rate: float) -> None:
    settings = replace(SMALL, epochs=epochs, learning_rate=learning_rate)

    with pytest.raises(SettingsError, match=r"diverged.*--learning-rate"):
        train_quietly(tmp_path, settings=settings)


def test_a_checkpoint_never_holds_weights_that_are_not_finite(tmp_path: Path) -> None:
    # one step alone: its loss is of the weights before it
    with pytest.raises(SettingsError, match="diverged"):
        train_quietly(tmp_path, settings=replace(SMALL, epochs=1, learning_rate=1e39, batch_size=2000))

    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 10, 15])
def test_one_cycle_works_for_any_number_of_steps_in_all(tmp_path: Path, steps: int) -> None:
    settings = replace(SMALL, epochs=steps, batch_size=2000, schedule="one-cycle")

    result = train_quietly(tmp_path, settings=settings)

    rates = [row["learning_rate"] for row in result.checkpoint.metrics["epochs"]]
    assert len(rates) == steps
    assert all(0 < rate <= 0.01 for rate in rates)


def test_one_cycle_rises_over_the_first_third_and_falls_to_nothing(tmp_path: Path) -> None:
    settings = replace(SMALL, epochs=20, batch_size=500, schedule="one-cycle")

    result = train_quietly(tmp_path, settings=settings)

    rates = [row["learning_rate"] for row in result.checkpoint.metrics["epochs"]]
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates.index(max(rates)) == 5
    assert rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)
    assert rates[-1] < 0.01 / 500


@pytest.mark.parametrize("batch_size", [1437, 5000])
def test_a_batch_may_be_larger_than_the_data(tmp_path: Path, batch_size: int) -> None:
    recorder = Recorder()

    train_quietly(tmp_path, settings=replace(SMALL, batch_size=batch_size), progress=recorder)

    assert recorder.steps == [(1, 1, 1437), (2, 1, 1437)]


def test_label_smoothing_and_clipping_and_decay_change_the_result(tmp_path: Path) -> None:
    plain = train_quietly(tmp_path)

    for changes in ({"label_smoothing": 0.1}, {"clip_norm": 0.1}, {"weight_decay": 0.1}):
        assert not same_weights(plain, train_quietly(tmp_path, settings=replace(SMALL, **changes)))  # type: ignore[arg-type]


def test_a_shift_that_no_image_outlives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="shift"):
        train_quietly(tmp_path, settings=replace(SMALL, shift=10**6))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused_and_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="CUDA"):
        train(DIGITS, SMALL, tmp_path / "model.pt", device="cuda")

    assert list(tmp_path.iterdir()) == []


def test_a_missing_output_folder_is_made(tmp_path: Path) -> None:
    train_quietly(tmp_path / "runs" / "first")

    assert sorted(path.name for path in (tmp_path / "runs" / "first").iterdir()) == ["metrics.csv", "model.pt"]


def test_an_output_that_cannot_be_written_is_an_os_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()

    with pytest.raises(OSError, match="file"):
        train_quietly(tmp_path / "file", progress=recorder)

    assert recorder.steps == []


def random_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 5, 1), np.uint8)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_predictions_do_not_depend_on_how_images_are_split_into_batches(cell: Any) -> None:
    torch.manual_seed(0)
    model = ImageRNN(ModelSpec(ImageSpec(6, 5, 1), ("a", "b", "c"), cell, hidden_size=8, dropout=0.5))
    images = random_images(1300)

    together = predict_logits(model, images)

    assert together.shape == (1300, 3)
    assert together.dtype == np.float32
    for size in (7, 512, 513):
        parts = [predict_logits(model, images[i : i + size]) for i in range(0, 1300, size)]
        np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_prediction_leaves_the_model_in_its_mode(training: bool) -> None:
    model = ImageRNN(ModelSpec(ImageSpec(6, 5, 1), ("a", "b"), hidden_size=4)).train(training)

    predict_logits(model, random_images(3))

    assert model.training is training


def test_predictions_take_images_that_are_a_view() -> None:
    model = ImageRNN(ModelSpec(ImageSpec(6, 5, 1), ("a", "b"), hidden_size=4))
    images = random_images(6)

    mirrored = predict_logits(model, images[::-1])

    np.testing.assert_allclose(mirrored, predict_logits(model, images)[::-1], atol=1e-6)
