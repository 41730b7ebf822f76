"""What the weights that a run keeps do on images that it didn't train on."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_runtime.metrics.describe import describe_figures, print_classes
from rnn_runtime.metrics.evaluation import CalibrationBins, Evaluation
from rnn_train.calibration import Calibration, calibrated_probabilities, fit_temperature
from rnn_train.data import Data, LabeledImages
from rnn_train.model import EVALUATION_BATCH, ImageRNN, predict_logits
from rnn_train.training_state import OneProcess

SplitName = Literal["test", "validation"]
_RANKED = 5  # classes per image, for top-3 and top-5 accuracy


@dataclass(frozen=True, slots=True)
class SplitLogits:
    """A split of the data, and the model's logits for it, float32 of shape `(images, classes)`."""

    name: SplitName
    images: LabeledImages
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SplitResults:
    """What a model does on a split.

    Attributes:
        name: Which split.
        images: Its images and labels.
        probabilities: Of the calibrated model, if it is calibrated: float64, shape `(images, classes)`.
        evaluation: All figures that follow from them.
        uncalibrated: Confidence and accuracy in bins without calibration; None if the model isn't calibrated.
    """

    name: SplitName
    images: LabeledImages
    probabilities: NDArray[np.float64]
    evaluation: Evaluation
    uncalibrated: CalibrationBins | None

    @classmethod
    def of(cls, split: SplitLogits, class_names: tuple[str, ...], temperature: float | None) -> "SplitResults":
        """The results with a temperature, or without one."""
        labels, logits = split.images.labels, split.logits
        probabilities = calibrated_probabilities(logits, temperature)
        evaluation = Evaluation(class_names)
        rankings = np.argsort(-logits, axis=1, kind="stable")[:, :_RANKED]
        highest = probabilities.max(axis=1)
        for true, ranking, highest_one in zip(labels.tolist(), rankings.tolist(), highest.tolist(), strict=True):
            evaluation.add(true, ranking, highest_one)
        uncalibrated = None
        if temperature is not None:
            uncalibrated = CalibrationBins.of(calibrated_probabilities(logits, None), labels)
        return cls(split.name, split.images, probabilities, evaluation, uncalibrated)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The likeliest class of each image."""
        predicted: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted

    def metrics(self) -> Mapping[str, float]:
        """What a checkpoint keeps of it."""
        figures = self.evaluation
        found = {
            "accuracy": figures.accuracy,
            "images": figures.total,
            "largest_class_share": figures.largest_class[1],
            "balanced_accuracy": figures.balanced_accuracy,
            "macro_f1": figures.macro_f1,
            **{f"top_{k}_accuracy": accuracy for k, accuracy in figures.top_k_accuracies.items()},
            "calibration_error": figures.calibration.error,
        }
        if self.uncalibrated is not None:
            found["calibration_error_before"] = self.uncalibrated.error
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

    def describe(self) -> Iterator[str]:
        """Text for people: calibration, and the figures of the first split but its accuracy."""
        if self.temperature is not None:
            validation = len(self.splits[-1].images)
            yield f"Calibrated on {validation} validation images: temperature {self.temperature:.3f}"
        elif self.calibration is not None:
            yield f"Probabilities are not calibrated: {self.calibration.reason}"
        for split in self.splits:
            before = "" if split.uncalibrated is None else f" ({100 * split.uncalibrated.error:.1f} % before)"
            yield (
                f"Expected calibration error on the {len(split.images)} {split.name} images: "
                f"{100 * split.evaluation.calibration.error:.1f} %{before}"
            )
        for split in self.splits[:1]:
            yield from describe_figures(split.evaluation)
            table = io.StringIO()
            print_classes(split.evaluation, table)
            yield table.getvalue().rstrip("\n")


def predict_shared(
    model: ImageRNN, images: NDArray[np.uint8], device: torch.device, processes: OneProcess
) -> NDArray[np.float32]:
    """The logits of all images as `predict_logits` gives them. Several processes share the batches."""
    if processes.count == 1:
        return predict_logits(model, images, device)
    batches = -(-len(images) // EVALUATION_BATCH)
    first, stop = (batches * n // processes.count * EVALUATION_BATCH for n in (processes.rank, processes.rank + 1))
    logits = torch.zeros(len(images), len(model.spec.class_names), device=device)
    logits[first:stop] = torch.from_numpy(predict_logits(model, images[first:stop], device))
    processes.add_up([logits])
    summed: NDArray[np.float32] = logits.cpu().numpy()
    return summed


def predict_splits(model: ImageRNN, data: Data, device: torch.device, processes: OneProcess) -> tuple[SplitLogits, ...]:
    """Run a model, which is on `device`, over the test and the validation images, where there are any."""
    splits: dict[SplitName, LabeledImages | None] = {"test": data.test, "validation": data.validation}
    return tuple(
        SplitLogits(name, split, predict_shared(model, split.images, device, processes))
        for name, split in splits.items()
        if split
    )


def evaluate(splits: Sequence[SplitLogits], class_names: tuple[str, ...], *, calibrate: bool) -> Results:
    """The results on these splits, after calibration on the validation images.

    Args:
        splits: What `predict_splits` gave; the logits must be finite.
        class_names: The model's classes.
        calibrate: Whether to fit a temperature, if there are validation images. Test images never count for it.
    """
    calibration = None
    for split in splits:
        if calibrate and split.name == "validation":
            calibration = fit_temperature(split.logits, split.images.labels)
    temperature = calibration.temperature if calibration else None
    return Results(calibration, tuple(SplitResults.of(split, class_names, temperature) for split in splits))
