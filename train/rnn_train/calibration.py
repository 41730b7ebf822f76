"""Calibration: one temperature that makes a trained model's probabilities mean what they say."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_TEMPERATURE = 0.01
LARGEST_TEMPERATURE = 100.0
# With 50 images, the temperature has a standard error of about 40 % for two classes and 15 % for ten (simulated).
LEAST_IMAGES = 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature to divide logits by; None if there is none to trust, and `reason` says why."""

    temperature: float | None
    reason: str = ""


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
