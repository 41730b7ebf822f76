"""Training: repeatable, told when it goes wrong, and keeping the weights that it should."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rnn_runtime.errors import InputError, OutputError, ProviderError, SettingsError
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train, training
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import LabeledImages, load_data
from rnn_train.model import ImageRNN, predict_logits
from rnn_train.settings import AUGMENT_PARTS, preset_settings
from rnn_train.training import TrainResult
from rnn_train.training_state import OneProcess, TrainingState
from tests.support.full_disk import full_disk
from tests.support.idx_files import idx_bytes, write_idx_folder
from tests.support.image_folders import write_classes
from tests.support.training import KnownAccuracies, Recorder, StopIn, assert_equal, resume, train_quietly

DIGITS = DataSource(dataset="digits")
SMALL = TrainSettings(hidden_size=8, learning_rate=0.01)


def train_digits(folder: Path, settings: TrainSettings = SMALL, **others: Any) -> TrainResult:
    return train_quietly(folder / "model.pt", DIGITS, settings, **others)


def photos(folder: Path, *, count: int = 2, channels: int = 1, **options: Any) -> DataSource:
    return DataSource(data=str(write_classes(folder / "photos", count, channels=channels)), **options)


def same_weights(first: TrainResult, second: TrainResult) -> bool:
    pairs = zip(first.checkpoint.weights.values(), second.checkpoint.weights.values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "gru", "dropout": 0.2},
        {"cell": "lstm", "shift": 1, "flip": True},
        {"augment": AUGMENT_PARTS},
    ],
    ids=str,
)
def test_the_same_seed_alone_gives_the_same_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = replace(SMALL, **changes)

    first, again, other = (train_digits(tmp_path, replace(settings, seed=seed)) for seed in (3, 3, 4))

    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_training_learns(tmp_path: Path) -> None:
    source = DataSource(data=str(write_idx_folder(tmp_path / "data", train=200, classes=2)))

    result = train_quietly(tmp_path / "model.pt", source, replace(SMALL, epochs=30))

    # half of the images are dark and half are bright, so nothing of this is near
    losses = [row["train_loss"] for row in result.checkpoint.metrics["epochs"]]
    assert losses[0] > 0.3
    assert losses[-1] < 0.1
    assert result.accuracy == 1


@pytest.mark.parametrize("normalize", [False, True])
def test_the_preset_accurate_learns_a_folder_of_photos(tmp_path: Path, normalize: bool) -> None:
    settings = replace(preset_settings("accurate"), hidden_size=8, epochs=6, normalize=normalize)

    result = train_quietly(tmp_path / "model.pt", photos(tmp_path, count=10, val_split=0.2), settings)

    assert result.split == "validation"
    assert result.images == 4


def test_progress_is_told_every_step(tmp_path: Path) -> None:
    recorder = Recorder()

    train_digits(tmp_path, replace(SMALL, batch_size=500), callback=recorder)

    assert recorder.started == [(2, 3, 0)]
    assert recorder.steps == [
        (epoch, step, images) for epoch in (1, 2) for step, images in ((1, 500), (2, 500), (3, 437))
    ]
    assert recorder.messages[-1].startswith("Accuracy of the network on the 360 test images: ")


def test_a_row_of_metrics_is_kept_for_each_epoch(tmp_path: Path) -> None:
    recorder = Recorder()

    result = train_digits(tmp_path, replace(SMALL, batch_size=500, epochs=3), callback=recorder)

    rows = result.checkpoint.metrics["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == [0.01] * 3
    assert rows[0]["train_loss"] == pytest.approx(np.average(recorder.losses[:3], weights=[500, 500, 437]))
    assert all(0 <= row["train_accuracy"] <= 1 and row["images_per_second"] > 0 for row in rows)
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,learning_rate,train_loss,train_accuracy,")


def test_the_result_tells_the_accuracy_of_what_was_written(tmp_path: Path) -> None:
    result = train_digits(tmp_path)

    saved = Checkpoint.load(tmp_path / "model.pt")
    test = load_data(DIGITS).test
    assert test is not None
    accuracy = (predict_logits(saved.build_model(), test.images).argmax(axis=1) == test.labels).mean()
    assert (result.accuracy, result.split, result.images) == (accuracy, "test", 360)
    assert saved.metrics["test_accuracy"] == accuracy
    assert saved.metrics["test_images"] == 360
    assert saved.metrics["kept_epoch"] == 2
    assert saved.source == DIGITS
    assert saved.settings == SMALL
    assert saved.resume_state["epoch"] == 2


def test_the_checkpoint_carries_images_that_were_not_trained_on(tmp_path: Path) -> None:
    result = train_digits(tmp_path)

    test = load_data(DIGITS).test
    assert test is not None
    known = {image.tobytes() for image in test.images}
    assert len(result.checkpoint.samples) == 64
    assert all(image.numpy().tobytes() in known for image in result.checkpoint.samples)


@pytest.fixture
def held_out(tmp_path: Path) -> DataSource:
    """Data of which 20 images are for validation, and 20 for testing."""
    return DataSource(data=str(write_idx_folder(tmp_path / "data")), val_split=0.5)


def validation_images(source: DataSource) -> LabeledImages:
    part = load_data(source).validation
    assert part is not None
    return part


def test_the_best_epoch_on_the_validation_images_is_kept(
    tmp_path: Path, held_out: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [0.25, 0.75, 0.5, 0.75, 0.0]
    epochs = KnownAccuracies(monkeypatch, validation_images(held_out).labels, accuracies)

    result = train_quietly(tmp_path / "model.pt", held_out, replace(SMALL, epochs=5))

    saved = Checkpoint.load(tmp_path / "model.pt")
    assert [row["validation_accuracy"] for row in result.checkpoint.metrics["epochs"]] == accuracies
    assert_equal(saved.weights, epochs.weights[1])
    assert_equal(saved.resume_state["weights"], epochs.weights[4])
    assert not torch.equal(saved.weights["linear.bias"], epochs.weights[3]["linear.bias"])


def test_a_run_that_was_stopped_holds_the_best_epoch_so_far(
    tmp_path: Path, held_out: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = KnownAccuracies(monkeypatch, validation_images(held_out).labels, [0.25, 0.75, 0.5, 1.0])

    with pytest.raises(KeyboardInterrupt):
        train_quietly(tmp_path / "model.pt", held_out, replace(SMALL, epochs=5), callback=StopIn(4, 1))

    saved = Checkpoint.load(tmp_path / "model.pt")
    assert [row["validation_accuracy"] for row in saved.metrics["epochs"]] == [0.25, 0.75, 0.5]
    assert_equal(saved.weights, epochs.weights[1])


def test_patience_ends_training_after_epochs_without_progress(
    tmp_path: Path, held_out: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    KnownAccuracies(monkeypatch, validation_images(held_out).labels, [0.25, 0.75, 0.5, 0.75])
    recorder = Recorder()

    result = train_quietly(tmp_path / "model.pt", held_out, replace(SMALL, epochs=9, patience=2), callback=recorder)

    assert len(result.checkpoint.metrics["epochs"]) == 4
    assert recorder.messages[:2] == [
        "Stopped early after epoch 4 of 9: no higher validation accuracy in 2 epochs",
        "Kept epoch 2 of 9 (validation accuracy 75.0 %)",
    ]


def test_patience_without_validation_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`patience` needs validation images.*`val_split=0.2`"):
        train_digits(tmp_path, replace(SMALL, patience=2))

    assert list(tmp_path.iterdir()) == []


def unbalanced(folder: Path) -> DataSource:
    """30 training images of class 0, 10 of class 1 and none of class 2; 4 test images of each."""
    write_idx_folder(folder, train=40, test=12, classes=3)
    labels = np.repeat([0, 1], [30, 10]).astype(np.uint8)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return DataSource(data=str(folder))


def test_balanced_classes_weigh_as_scikit_learn_has_it(tmp_path: Path) -> None:
    settings = replace(SMALL, class_weights="balanced")

    weights = TrainingState.new(unbalanced(tmp_path / "data"), settings, "cpu", OneProcess()).class_weights()

    assert weights is not None
    assert weights.tolist() == pytest.approx([40 / (2 * 30), 40 / (2 * 10), 1])  # n / (classes * count)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_of_an_epoch_counts_each_class_alike_if_balanced(tmp_path: Path, label_smoothing: float) -> None:
    source = unbalanced(tmp_path / "data")
    # The learning rate moves no weight by a visible amount, so the loss is that of the weights at the end.
    settings = replace(
        SMALL, class_weights="balanced", label_smoothing=label_smoothing, epochs=1, batch_size=7, learning_rate=1e-12
    )

    saved = train_quietly(tmp_path / "model.pt", source, settings).checkpoint

    train_images = load_data(source).train
    logits = torch.from_numpy(predict_logits(saved.build_model(), train_images.images))
    expected = torch.nn.functional.cross_entropy(
        logits,
        torch.from_numpy(train_images.labels),
        torch.tensor([2 / 3, 2, 1]),
        label_smoothing=label_smoothing,
    )
    assert saved.metrics["epochs"][0]["train_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_best_accuracy_is_that_of_the_weights_kept(tmp_path: Path) -> None:
    source = replace(DIGITS, val_split=0.2)

    train_quietly(tmp_path / "model.pt", source, replace(SMALL, epochs=3, learning_rate=0.1))

    saved, part = Checkpoint.load(tmp_path / "model.pt"), validation_images(source)
    accuracy = (predict_logits(saved.build_model(), part.images).argmax(axis=1) == part.labels).mean()
    assert accuracy == max(row["validation_accuracy"] for row in saved.metrics["epochs"])


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    saved = train_digits(tmp_path, replace(SMALL, epochs=3, learning_rate=0.1)).checkpoint

    assert all(torch.equal(saved.resume_state["weights"][name], tensor) for name, tensor in saved.weights.items())


def test_without_test_images_accuracy_is_that_of_validation(tmp_path: Path) -> None:
    result = train_quietly(tmp_path / "model.pt", photos(tmp_path, count=10, val_split=0.2), SMALL)

    assert (result.split, result.images) == ("validation", 4)
    assert result.checkpoint.metrics["validation_accuracy"] == result.accuracy
    assert "test_accuracy" not in result.checkpoint.metrics


def test_without_any_image_held_out_there_is_no_accuracy(tmp_path: Path) -> None:
    recorder = Recorder()

    result = train_quietly(tmp_path / "model.pt", photos(tmp_path), SMALL, callback=recorder)

    assert (result.accuracy, result.split, result.images) == (None, None, 0)
    assert set(result.checkpoint.metrics) == {"epochs", "kept_epoch"}
    assert recorder.messages[-1] == ("No accuracy: this data has no test images. Hold some images out for validation")


def test_normalization_is_that_of_the_training_images(tmp_path: Path) -> None:
    source = photos(tmp_path, count=8, channels=3)

    result = train_quietly(tmp_path / "model.pt", source, replace(SMALL, normalize=True))

    pixels = load_data(source).train.images.reshape(-1, 3) / 255
    assert result.checkpoint.spec.mean == pytest.approx(pixels.mean(axis=0))
    assert result.checkpoint.spec.std == pytest.approx(pixels.std(axis=0))


def test_a_channel_of_one_value_can_be_normalized(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    images[..., 2] = 128
    for i, pixels in enumerate(images):
        (tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
    source = DataSource(data=str(tmp_path / "data"))

    result = train_quietly(tmp_path / "model.pt", source, replace(SMALL, normalize=True, batch_size=4))

    assert result.checkpoint.spec.std[2] == 1.0


# Adam's first step moves each weight that has a gradient by the learning rate, whatever is rounded how.
@pytest.mark.parametrize(("epochs", "learning_rate"), [(1, 1e7), (2, 1e39), (2, 1e300)])
def test_training_that_diverges_says_so_and_what_to_lower(tmp_path: Path, epochs: int, learning_rate: float) -> None:
    with pytest.raises(SettingsError, match=r"training diverged in epoch 1: .*Lower `learning_rate`"):
        train_digits(tmp_path, replace(SMALL, epochs=epochs, learning_rate=learning_rate))

    assert not (tmp_path / "model.pt").exists()


def test_advice_for_divergence_leaves_out_what_is_set_already(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Lower `learning_rate`$"):
        train_digits(tmp_path, replace(SMALL, epochs=1, learning_rate=1e30, clip_norm=1.0))


def huge_bias(weights: dict[str, Tensor]) -> None:
    weights["linear.bias"][0] = -2e6


def huge_recurrent_weight(weights: dict[str, Tensor]) -> None:
    weights["rnn.weight_hh_l0"][0, 0] = 1e9


def huge_logits(weights: dict[str, Tensor]) -> None:
    """No weight is huge, nor is the loss, since all classes have the same logit: 8 times 500,000."""
    for name, weight in weights.items():
        weight.fill_({"linear.weight": 5e5, "linear.bias": 0.0}.get(name, 9.0 if "bias" in name else 0.0))


@pytest.mark.parametrize("change", [huge_bias, huge_recurrent_weight, huge_logits])
def test_huge_but_finite_values_are_divergence(tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    source, path = DataSource(data=str(write_idx_folder(tmp_path / "data"))), tmp_path / "model.pt"
    train_quietly(path, source, SMALL)
    saved = Checkpoint.load(path)
    change(saved.resume_state["weights"])
    saved.save(path)

    with pytest.raises(SettingsError, match=r"training diverged in epoch 3: .*Lower `learning_rate`"):
        resume(path, epochs=3)
    assert Checkpoint.load(path).resume_state["epoch"] == 2  # the diverged epoch isn't written


def test_a_run_that_diverges_leaves_the_last_good_checkpoint(
    tmp_path: Path, held_out: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    good: list[bytes] = []

    def diverge_in_epoch_2(
        model: ImageRNN, images: NDArray[np.uint8], device: Any, _processes: OneProcess
    ) -> NDArray[np.float32]:
        if path.exists():
            good.append(path.read_bytes())
            model.linear.bias.data.fill_(1e9)
        return predict_logits(model, images, device)

    monkeypatch.setattr(training, "predict_shared", diverge_in_epoch_2)

    with pytest.raises(SettingsError, match="training diverged in epoch 2"):
        train_quietly(path, held_out, SMALL)

    assert [path.read_bytes()] == good
    assert Checkpoint.load(path).resume_state["epoch"] == 1


def test_a_checkpoint_never_holds_weights_that_are_not_finite(tmp_path: Path) -> None:
    # one step alone: its loss is of the weights before it
    with pytest.raises(SettingsError, match="diverged"):
        train_digits(tmp_path, replace(SMALL, epochs=1, learning_rate=1e39, batch_size=2000))

    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_one_cycle_works_for_any_number_of_steps_in_all(tmp_path: Path, steps: int) -> None:
    settings = replace(SMALL, epochs=steps, batch_size=2000, schedule="one-cycle")

    result = train_digits(tmp_path, settings)

    rates = [row["learning_rate"] for row in result.checkpoint.metrics["epochs"]]
    assert len(rates) == steps
    assert all(0 < rate <= 0.01 for rate in rates)


def test_one_cycle_rises_for_a_third_and_falls_to_nothing(tmp_path: Path) -> None:
    settings = replace(SMALL, epochs=20, batch_size=500, schedule="one-cycle")

    result = train_digits(tmp_path, settings)

    rates = [row["learning_rate"] for row in result.checkpoint.metrics["epochs"]]
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates.index(max(rates)) == 5
    assert rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)
    assert rates[-1] < 0.01 / 500


@pytest.mark.parametrize("batch_size", [5000])
def test_a_batch_may_be_larger_than_the_data(tmp_path: Path, batch_size: int) -> None:
    recorder = Recorder()

    train_digits(tmp_path, replace(SMALL, batch_size=batch_size), callback=recorder)

    assert recorder.steps == [(1, 1, 1437), (2, 1, 1437)]


def test_smoothing_and_clipping_and_decay_change_the_result(tmp_path: Path) -> None:
    plain = train_digits(tmp_path)

    for changes in ({"label_smoothing": 0.1}, {"clip_norm": 0.1}, {"weight_decay": 0.1}, {"class_weights": "balanced"}):
        assert not same_weights(plain, train_digits(tmp_path, replace(SMALL, **changes)))


def test_a_shift_that_no_image_outlives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="shift"):
        train_digits(tmp_path, replace(SMALL, shift=10**6))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="CUDA"):
        train(DIGITS, SMALL, tmp_path / "model.pt", device="cuda")

    assert list(tmp_path.iterdir()) == []


def test_a_missing_output_folder_is_made(tmp_path: Path) -> None:
    train_digits(tmp_path / "runs" / "first")

    assert sorted(path.name for path in (tmp_path / "runs" / "first").iterdir()) == ["metrics.csv", "model.pt"]


def test_an_output_that_cannot_be_written_fails_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()

    with pytest.raises(OutputError, match=r"file: model\.pt can't be written to this folder"):
        train_digits(tmp_path / "file", callback=recorder)

    assert recorder.steps == []


def test_an_output_that_is_a_folder_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    recorder = Recorder()

    with pytest.raises(InputError, match="not a regular file"):
        train_digits(tmp_path, callback=recorder)

    assert recorder.steps == []


def test_a_folder_without_room_for_a_checkpoint_is_refused_before_training(tmp_path: Path) -> None:
    recorder = Recorder()

    with full_disk(largest_file=10_000), pytest.raises(OutputError, match=r"no room for a checkpoint of 0\.1 MB"):
        train_digits(tmp_path / "runs", callback=recorder)

    assert recorder.steps == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    errors: list[str] = []

    class TrainToo(Recorder):
        def step(self, epoch: int, step: int, loss: float, images: int) -> None:
            super().step(epoch, step, loss, images)
            if step == 1:
                with pytest.raises(OutputError) as refused:
                    train_digits(tmp_path)
                errors.append(str(refused.value))

    train_digits(tmp_path, replace(SMALL, epochs=1), callback=TrainToo())

    assert errors == [
        f"{tmp_path}/model.pt: another training run (process {os.getpid()}) is writing model.pt and its reports to "
        "this folder. Wait for it to end, or choose another folder with `output`"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "model.pt"]


def test_the_lock_of_a_run_that_was_killed_is_none(tmp_path: Path) -> None:
    (tmp_path / ".rnn-train.lock").write_text("1 model.pt")

    train_digits(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "model.pt"]


def random_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 5, 1), np.uint8)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_predictions_do_not_depend_on_the_batches(cell: Any) -> None:
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


@pytest.mark.slow
def test_a_checkpoint_holds_few_samples_of_large_images(tmp_path: Path) -> None:
    source = photos(tmp_path, count=9, image_size=(1024, 4096))  # 4 MiB each

    train_quietly(tmp_path / "model.pt", source, replace(SMALL, epochs=1, hidden_size=2))

    assert Checkpoint.load(tmp_path / "model.pt").samples.shape == (16, 1024, 4096, 1)
