"""Whether probabilities mean what they say: of predictions made with 80 %, how many are right."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as in Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599)


@dataclass(slots=True)
class CalibrationBins:
    """Predictions in `BINS` bins by confidence, the probability of the predicted class.

    The bins have equal width, and bin `i` holds confidences above `i / BINS` up to `(i + 1) / BINS`.

    Attributes:
        counts: Predictions per bin.
        correct: How many of them are right.
        confidences: Sum of their confidences.
    """

    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    correct: list[int] = field(default_factory=lambda: [0] * BINS)
    confidences: list[float] = field(default_factory=lambda: [0.0] * BINS)

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> "CalibrationBins":
        """Bins of a whole data set.

        Args:
            probabilities: Shape `(images, classes)`.
            labels: True classes, shape `(images,)`.
        """
        bins = cls()
        right = probabilities.argmax(axis=1) == labels
        for confidence, correct in zip(probabilities.max(axis=1).tolist(), right.tolist(), strict=True):
            bins.add(confidence, correct)
        return bins

    def add(self, confidence: float, correct: bool) -> None:
        """Count a prediction made with this confidence, 0 to 1."""
        i = min(max(-int(-confidence * BINS // 1) - 1, 0), BINS - 1)
        self.counts[i] += 1
        self.correct[i] += correct
        self.confidences[i] += confidence

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1; not a number without predictions.

        The mean over all predictions of the difference between their bin's mean confidence and its accuracy
        (Guo et al., equation 3).
        """
        total = sum(self.counts)
        differences = (abs(right - sum_) for right, sum_ in zip(self.correct, self.confidences, strict=True))
        return sum(differences) / total if total else float("nan")
