"""What the weights that a run keeps do on images that it didn't train on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_runtime.metrics.calibration import CalibrationBins
from rnn_train.calibration import Calibration, calibrated_probabilities, fit_temperature
from rnn_train.data import Data, LabeledImages
from rnn_train.model import ImageRNN, predict_logits

SplitName = Literal["test", "validation"]


@dataclass(frozen=True, slots=True)
class SplitResults:
    """A split of the data, and the model's logits for it.

    Attributes:
        name: Which split.
        images: Its images and labels.
        logits: float32, shape `(images, classes)`.
        temperature: What divides the logits; None if nothing does.
    """

    name: SplitName
    images: LabeledImages
    logits: NDArray[np.float32]
    temperature: float | None = None

    @property
    def accuracy(self) -> float:
        """The share of images whose class is predicted."""
        return float((self.logits.argmax(axis=1) == self.images.labels).mean())

    def probabilities(self, *, calibrated: bool = True) -> NDArray[np.float64]:
        """Shape `(images, classes)`, with the temperature or without."""
        return calibrated_probabilities(self.logits, self.temperature if calibrated else None)

    def calibration(self, *, calibrated: bool = True) -> CalibrationBins:
        """Confidence and accuracy in bins, with the temperature or without."""
        return CalibrationBins.of(self.probabilities(calibrated=calibrated), self.images.labels)

    def metrics(self) -> Mapping[str, float]:
        """What a checkpoint keeps of it: accuracy, images, and the expected calibration error."""
        found = {"accuracy": self.accuracy, "images": len(self.images), "calibration_error": self.calibration().error}
        if self.temperature is not None:
            found["calibration_error_before"] = self.calibration(calibrated=False).error
        return {f"{self.name}_{quantity}": value for quantity, value in found.items()}


@dataclass(frozen=True, slots=True)
class Results:
    """The results on all splits that weren't trained on, the test split first.

    Attributes:
        calibration: What calibration found; None if none was asked for, or there are no validation images.
        splits: Empty if there are no such images.
    """

    calibration: Calibration | None
    splits: tuple[SplitResults, ...]

    @property
    def temperature(self) -> float | None:
        """What divides the logits; None if nothing does."""
        return self.calibration.temperature if self.calibration else None

    def metrics(self) -> Mapping[str, float]:
        """What a checkpoint keeps of all splits."""
        return {name: value for split in self.splits for name, value in split.metrics().items()}

    def describe_calibration(self) -> Iterator[str]:
        """Lines for people: the temperature, and the calibration error of each split with and without it."""
        validation = len(self.splits[-1].images) if self.splits else 0
        if self.temperature is not None:
            yield f"Calibrated on {validation} validation images: temperature {self.temperature:.3f}"
        elif self.calibration is not None:
            yield f"Probabilities are not calibrated: {self.calibration.reason}"
        for split in self.splits:
            before = "" if self.temperature is None else f" ({_percent(split.calibration(calibrated=False))} before)"
            yield (
                f"Expected calibration error on the {len(split.images)} {split.name} images: "
                f"{_percent(split.calibration())}{before}"
            )


def predict_splits(model: ImageRNN, data: Data, device: torch.device | str) -> tuple[SplitResults, ...]:
    """Run a model, which is on `device`, over the test and the validation images, where there are any."""
    splits: dict[SplitName, LabeledImages | None] = {"test": data.test, "validation": data.validation}
    return tuple(
        SplitResults(name, split, predict_logits(model, split.images, device))
        for name, split in splits.items()
        if split
    )


def evaluate(splits: Sequence[SplitResults], *, calibrate: bool) -> Results:
    """The results on these splits, after calibration on the validation images.

    Args:
        splits: What `predict_splits` gave; the logits must be finite.
        calibrate: Whether to fit a temperature, if there are validation images. Test images never count for it.
    """
    validation = next((split for split in splits if split.name == "validation"), None)
    if validation is None or not calibrate:
        return Results(None, tuple(splits))
    calibration = fit_temperature(validation.logits, validation.images.labels)
    return Results(calibration, tuple(replace(split, temperature=calibration.temperature) for split in splits))


def _percent(bins: CalibrationBins) -> str:
    return f"{100 * bins.error:.1f} %"
