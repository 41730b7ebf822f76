"""Temperature scaling: the temperature that fits, and when none is trusted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from rnn_runtime.metrics.evaluation import CalibrationBins
from rnn_train import DataSource, TrainSettings
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import load_data
from rnn_train.evaluation import LEAST_IMAGES, calibrated_probabilities, fit_temperature
from rnn_train.model import predict_logits
from tests.support.idx_files import write_idx_folder
from tests.support.training import Recorder, StopIn, resume, train_quietly

DIGITS = DataSource(dataset="digits", val_split=0.2)
SMALL = TrainSettings(hidden_size=8, learning_rate=0.01, epochs=1)


def well_calibrated(images: int = 2000, classes: int = 5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits, and labels drawn with just the probabilities that they give."""
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(images, classes))
    drawn = softmax(logits, axis=1).cumsum(axis=1) > generator.random((images, 1))
    return logits, drawn.argmax(axis=1)


def fitted(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    temperature = fit_temperature(logits, labels).temperature
    assert temperature is not None
    return temperature


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_logits_that_are_too_large_by_a_factor_are_divided_by_it(scale: float) -> None:
    logits, labels = well_calibrated()

    temperature = fitted(scale * logits, labels)

    assert temperature == pytest.approx(scale, rel=0.1)  # labels are drawn at random
    assert temperature == pytest.approx(scale * fitted(logits, labels), rel=1e-3)


def test_no_other_temperature_makes_the_labels_likelier() -> None:
    logits, labels = well_calibrated(images=200)

    def loss(temperature: float) -> float:
        return -float(log_softmax(2 * logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    best = fitted(2 * logits, labels)
    assert all(loss(best) < loss(best * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


def test_calibration_lowers_the_calibration_error_and_keeps_every_label() -> None:
    logits, labels = well_calibrated()
    temperature = fitted(3 * logits, labels)

    before, after = (calibrated_probabilities(3 * logits, value) for value in (None, temperature))

    assert CalibrationBins.of(after, labels).error < 0.5 * CalibrationBins.of(before, labels).error
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))


@pytest.mark.parametrize(
    ("right", "reason"), [(True, "the validation images are too easy"), (False, "the logits say nothing")]
)
def test_labels_that_fit_always_or_never_give_no_temperature(right: bool, reason: str) -> None:
    labels = np.arange(100) % 3
    logits = 4 * np.eye(3)[labels if right else (labels + 1) % 3]

    calibration = fit_temperature(logits, labels)

    assert calibration.temperature is None
    assert reason in calibration.reason


def test_too_few_images_give_no_temperature() -> None:
    logits, labels = well_calibrated(images=LEAST_IMAGES)

    assert fit_temperature(logits, labels).temperature is not None
    calibration = fit_temperature(logits[1:], labels[1:])
    assert calibration.temperature is None
    assert calibration.reason == "at least 50 validation images are needed, and there are 49"


def test_a_run_with_validation_images_is_calibrated_on_the_weights_that_it_keeps(tmp_path: Path) -> None:
    recorder = Recorder()

    train_quietly(tmp_path / "model.pt", DIGITS, SMALL, callback=recorder)

    saved, data = Checkpoint.load(tmp_path / "model.pt"), load_data(DIGITS)
    assert data.validation is not None
    assert data.test is not None
    logits = predict_logits(saved.build_model(), data.validation.images)
    assert saved.temperature == fit_temperature(logits, data.validation.labels).temperature
    assert f"Calibrated on 288 validation images: temperature {saved.temperature:.3f}" in recorder.messages
    for name, split in (("validation", data.validation), ("test", data.test)):
        logits = predict_logits(saved.build_model(), split.images)
        for suffix, temperature in (("", saved.temperature), ("_before", None)):
            bins = CalibrationBins.of(calibrated_probabilities(logits, temperature), split.labels)
            assert saved.metrics[f"{name}_calibration_error{suffix}"] == pytest.approx(bins.error)
        assert any(f"error on the {len(split)} {name} images: " in message for message in recorder.messages)


def test_the_test_images_have_no_part_in_the_temperature(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "data", train=300, test=20)
    source = DataSource(data=str(folder), val_split=0.5)
    train_quietly(tmp_path / "model.pt", source, SMALL)
    write_idx_folder(tmp_path / "others", train=1, test=70)
    for path in (tmp_path / "others").glob("t10k*"):
        path.replace(folder / path.name)

    train_quietly(tmp_path / "again.pt", source, SMALL)

    first, again = (Checkpoint.load(tmp_path / name) for name in ("model.pt", "again.pt"))
    assert (first.metrics["test_images"], again.metrics["test_images"]) == (20, 70)
    assert first.temperature is not None
    assert again.temperature == first.temperature


@pytest.mark.parametrize(
    ("source", "settings"),
    [(DIGITS, replace(SMALL, calibrate=False)), (replace(DIGITS, val_split=0.0), SMALL)],
    ids=["calibrate=False", "no validation images"],
)
def test_a_run_without_calibration_has_no_temperature(
    tmp_path: Path, source: DataSource, settings: TrainSettings
) -> None:
    recorder = Recorder()

    result = train_quietly(tmp_path / "model.pt", source, settings, callback=recorder)

    assert result.checkpoint.temperature is None
    assert not any(name.endswith("_before") for name in result.checkpoint.metrics)
    assert "test_calibration_error" in result.checkpoint.metrics
    assert not any("alibrated" in message for message in recorder.messages)


def test_a_run_that_can_not_be_calibrated_says_why(tmp_path: Path) -> None:
    source = DataSource(data=str(write_idx_folder(tmp_path / "data")), val_split=0.5)
    recorder = Recorder()

    result = train_quietly(tmp_path / "model.pt", source, SMALL, callback=recorder)

    assert result.checkpoint.temperature is None
    assert (
        "Probabilities are not calibrated: at least 50 validation images are needed, and there are 20"
        in recorder.messages
    )


def test_an_unfinished_run_has_no_temperature_and_gets_one_at_its_end(tmp_path: Path) -> None:
    settings = replace(SMALL, epochs=2)
    train_quietly(tmp_path / "whole.pt", DIGITS, settings)
    with pytest.raises(KeyboardInterrupt):
        train_quietly(tmp_path / "model.pt", DIGITS, settings, callback=StopIn(2))
    unfinished = Checkpoint.load(tmp_path / "model.pt")

    resume(tmp_path / "model.pt")

    assert unfinished.temperature is None
    finished = Checkpoint.load(tmp_path / "model.pt")
    assert finished.temperature == Checkpoint.load(tmp_path / "whole.pt").temperature
    assert finished.temperature is not None


def test_a_finished_run_that_is_trained_on_is_calibrated_anew(tmp_path: Path) -> None:
    train_quietly(tmp_path / "model.pt", DIGITS, SMALL)
    train_quietly(tmp_path / "whole.pt", DIGITS, replace(SMALL, epochs=2))

    resume(tmp_path / "model.pt", epochs=2)

    assert Checkpoint.load(tmp_path / "model.pt").temperature == Checkpoint.load(tmp_path / "whole.pt").temperature
