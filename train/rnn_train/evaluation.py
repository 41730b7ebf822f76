"""What the weights that a run keeps do on images that it didn't train on, and how much their probabilities mean."""

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_runtime.metrics.describe import describe_figures, print_classes
from rnn_runtime.metrics.evaluation import CalibrationBins, Evaluation
from rnn_train.data import Data, HeldOut, LabeledImages
from rnn_train.model import EVALUATION_BATCH, ImageRNN, predict_logits

if TYPE_CHECKING:
    from rnn_train.training_state import OneProcess

LEAST_TEMPERATURE = 0.01
LARGEST_TEMPERATURE = 100.0
# With 50 images, the temperature has a standard error of about 40 % for two classes and 15 % for ten (simulated).
LEAST_IMAGES = 50
_RANKED = 5  # classes per image, for top-3 and top-5 accuracy


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature to divide logits by; None if there is none to trust, and `reason` says why."""

    temperature: float | None
    reason: str = ""


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

    name: HeldOut
    images: LabeledImages
    probabilities: NDArray[np.float64]
    evaluation: Evaluation
    uncalibrated: CalibrationBins | None

    @classmethod
    def of(cls, name: HeldOut, data: Data, logits: NDArray[np.float32], temperature: float | None) -> "SplitResults":
        """The results with a temperature, or without one."""
        images = data.held_out[name]
        labels = images.labels
        probabilities = calibrated_probabilities(logits, temperature)
        evaluation = Evaluation(data.class_names)
        rankings = np.argsort(-logits, axis=1, kind="stable")[:, :_RANKED]
        highest = probabilities.max(axis=1)
        for true, ranking, highest_one in zip(labels.tolist(), rankings.tolist(), highest.tolist(), strict=True):
            evaluation.add(true, ranking, highest_one)
        uncalibrated = None
        if temperature is not None:
            uncalibrated = CalibrationBins.of(calibrated_probabilities(logits, None), labels)
        return cls(name, images, probabilities, evaluation, uncalibrated)

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
    model: ImageRNN, images: NDArray[np.uint8], device: torch.device, processes: "OneProcess"
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


def predict_held_out(
    model: ImageRNN, data: Data, device: torch.device, processes: "OneProcess"
) -> dict[HeldOut, NDArray[np.float32]]:
    """The logits of a model, which is on `device`, for each split of `data.held_out`."""
    return {name: predict_shared(model, split.images, device, processes) for name, split in data.held_out.items()}


def evaluate(data: Data, logits: Mapping[HeldOut, NDArray[np.float32]], *, calibrate: bool) -> Results:
    """The results on the images that were held out, after calibration on those for validation.

    Args:
        data: The data set.
        logits: Those of each split of `data.held_out`, shape `(images, classes)`. They must be finite.
        calibrate: Whether to fit a temperature, if there are validation images. Test images never count for it.
    """
    calibration = None
    if calibrate and data.validation:
        calibration = fit_temperature(logits["validation"], data.validation.labels)
    temperature = calibration.temperature if calibration else None
    return Results(calibration, tuple(SplitResults.of(name, data, logits[name], temperature) for name in data.held_out))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Calibration:
    """Find the temperature that minimizes the negative log-likelihood of the true classes.

    Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599). It changes
    no prediction, since it changes no logit's rank. The likelihood is computed in float64, and has one minimum: it
    is convex in the inverse of the temperature.

    Args:
        logits: Of images that the model wasn't trained on, shape `(images, classes)`.
        labels: Their true classes, shape `(images,)`.

    Returns:
        A temperature from `LEAST_TEMPERATURE` to `LARGEST_TEMPERATURE`. None with fewer than `LEAST_IMAGES` images,
        if all of them are predicted right, or if the best temperature is at either end of that range.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if len(labels) < LEAST_IMAGES:
        return Calibration(None, f"at least {LEAST_IMAGES} validation images are needed, and there are {len(labels)}")
    exact = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def negative_log_likelihood(log_temperature: float) -> float:
        scores = log_softmax(exact / math.exp(log_temperature), axis=1)
        return -float(scores[rows, labels].mean())

    bounds = math.log(LEAST_TEMPERATURE), math.log(LARGEST_TEMPERATURE)
    found = float(minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded").x)
    # With all predictions right, the likelihood rises up to a temperature of 0. The search would end where float64 sees
    # no more difference; towards a bound, it comes near and never reaches it.
    if (exact.argmax(axis=1) == labels).all() or found - bounds[0] < 0.01:
        return Calibration(None, "the validation images are too easy, since ever sharper probabilities fit them better")
    if bounds[1] - found < 0.01:
        return Calibration(None, "the logits say nothing about the classes of the validation images")
    return Calibration(math.exp(found))


def calibrated_probabilities(logits: NDArray[np.floating], temperature: float | None) -> NDArray[np.float64]:
    """`softmax(logits / temperature)` in float64, shape `(images, classes)`; None is a temperature of 1."""
    from scipy.special import softmax

    probabilities: NDArray[np.float64] = softmax(logits.astype(np.float64) / (temperature or 1.0), axis=1)
    return probabilities
