"""Accuracy, its relatives and calibration, from counts of predictions against true classes."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOP_KS = (3, 5)  # shown where as many classes were ranked
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


@dataclass(slots=True)
class Evaluation:
    """Counts predictions against true classes.

    Feed it predictions one by one with `add`. Memory grows with the distinct pairs of true and predicted class only.
    Figures are those of scikit-learn's functions of the same names. A figure without a denominator is not a number.

    Attributes:
        class_names: The classes, in the order of their indices.
        calibration: Confidence and accuracy in bins.
    """

    class_names: tuple[str, ...]
    calibration: CalibrationBins = field(init=False, default_factory=CalibrationBins)
    _pairs: Counter[tuple[int, int]] = field(init=False, default_factory=Counter)  # of true and predicted class
    _ranks: Counter[int] = field(init=False, default_factory=Counter)  # of the true class, where it was ranked
    _depth: int | None = field(init=False, default=None)

    def add(self, true: int, ranking: Sequence[int], probability: float) -> None:
        """Count a prediction.

        Args:
            true: Index of the true class.
            ranking: Indices of the likeliest classes, the likeliest first; the first is the prediction.
            probability: Probability of the prediction, 0 to 1.
        """
        self._pairs[true, ranking[0]] += 1
        self._depth = len(ranking) if self._depth is None else min(self._depth, len(ranking))
        if true in ranking:
            self._ranks[ranking.index(true)] += 1
        self.calibration.add(probability, true == ranking[0])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts, shape `(classes, classes)`: rows are true classes, columns predicted ones."""
        matrix = np.zeros((len(self.class_names),) * 2, np.int64)
        for pair, count in self._pairs.items():
            matrix[pair] = count
        return matrix

    @property
    def confusions(self) -> list[tuple[int, int, int]]:
        """Wrong predictions as true class, predicted class and count, the most frequent first."""
        wrong = [(true, predicted, count) for (true, predicted), count in self._pairs.items() if true != predicted]
        return sorted(wrong, key=lambda entry: (-entry[2], entry))

    @property
    def total(self) -> int:
        """Predictions counted."""
        return self._pairs.total()

    @property
    def correct(self) -> int:
        """Predictions that are right."""
        return sum(count for (true, predicted), count in self._pairs.items() if true == predicted)

    @property
    def accuracy(self) -> float:
        """The share of predictions that are right."""
        return self.correct / self.total if self.total else math.nan

    @property
    def support(self) -> NDArray[np.int64]:
        """Images of each true class."""
        return self._count(lambda true, _: true)

    @property
    def largest_class(self) -> tuple[str, float]:
        """The class with most images, and its share: the accuracy of always predicting it."""
        support = self.support
        share = float(support.max()) / self.total if self.total else math.nan
        return self.class_names[int(support.argmax())], share

    @property
    def only_prediction(self) -> str | None:
        """The class that was predicted for all images, although they are of several classes; None if there is none."""
        predicted = {predicted for _, predicted in self._pairs}
        several = len({true for true, _ in self._pairs}) > 1
        return self.class_names[predicted.pop()] if several and len(predicted) == 1 else None

    @property
    def precision(self) -> NDArray[np.float64]:
        """For each class, the share of those predicted as it that are of it."""
        return _quotient(self._hits, self._predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """For each class, the share of its images that are predicted as it."""
        return _quotient(self._hits, self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """For each class, the harmonic mean of precision and recall."""
        return _quotient(2 * self._hits, self._predicted + self.support)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        return _mean(self.recall)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have images or are predicted."""
        return _mean(self.f1)

    @property
    def top_k_accuracies(self) -> dict[int, float]:
        """The share of images whose true class is among the k likeliest, by k: 3, 5, and as many as were ranked.

        Without k = 1, which is the accuracy, and k of all classes or more, which is always 1.
        """
        depth = self._depth or 1
        ks = sorted(k for k in {*_TOP_KS, depth} if 1 < k <= depth and k < len(self.class_names))
        return {k: sum(self._ranks[rank] for rank in range(k)) / self.total for k in ks}

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values for JSON; what is not a number is None."""
        largest, share = self.largest_class
        columns = (self.precision, self.recall, self.f1, self.support)
        return {
            "evaluated": self.total,
            "correct": self.correct,
            "accuracy": _plain(self.accuracy),
            "largest_class": largest,
            "largest_class_share": _plain(share),
            "only_prediction": self.only_prediction,
            "balanced_accuracy": _plain(self.balanced_accuracy),
            "macro_f1": _plain(self.macro_f1),
            "top_k_accuracies": {str(k): accuracy for k, accuracy in self.top_k_accuracies.items()},
            "expected_calibration_error": _plain(self.calibration.error),
            "classes": [
                {"label": name, "precision": _plain(p), "recall": _plain(r), "f1": _plain(f), "support": int(count)}
                for name, p, r, f, count in zip(self.class_names, *columns, strict=True)
            ],
        }

    @property
    def _hits(self) -> NDArray[np.int64]:
        return self._count(lambda true, predicted: true if true == predicted else None)

    @property
    def _predicted(self) -> NDArray[np.int64]:
        return self._count(lambda _, predicted: predicted)

    def _count(self, class_of: Callable[[int, int], int | None]) -> NDArray[np.int64]:
        counts = np.zeros(len(self.class_names), np.int64)
        for pair, count in self._pairs.items():
            if (index := class_of(*pair)) is not None:
                counts[index] += count
        return counts


def _quotient(counts: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    quotient = np.full(len(totals), np.nan)
    np.divide(counts, totals, out=quotient, where=totals > 0)
    return quotient


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
