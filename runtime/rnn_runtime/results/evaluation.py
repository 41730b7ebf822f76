"""How good predictions are, once the true labels are known."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Prediction
from rnn_runtime.images.class_folders import FolderLabels


@dataclass(slots=True)
class FolderEvaluation:
    """Counts predictions against the class that each file's folder names.

    Feed it predictions one by one with `add`; memory doesn't grow with them. Files that couldn't be read
    don't count. `confusion` is int64 `(classes, classes)`: rows are true classes, columns predicted ones.
    `unknown` counts files in folders that name no class, `first_unknown` is the first of them.

    Raises:
        InputError: two classes would share a folder.
    """

    class_names: tuple[str, ...]
    unknown: int = field(init=False, default=0)
    first_unknown: str | None = field(init=False, default=None)
    confusion: NDArray[np.int64] = field(init=False)
    _labels: FolderLabels = field(init=False)
    _index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.class_names)
        self.confusion = np.zeros((count, count), np.int64)
        self._labels = FolderLabels(self.class_names)
        self._index = {name: i for i, name in enumerate(self.class_names)}

    def add(self, prediction: Prediction) -> str | None:
        """Count one prediction, and give the true label; None if the file's folders name no class."""
        true_label = self._labels.label_of(prediction.path)
        if true_label is None:
            self.unknown += 1
            self.first_unknown = self.first_unknown or prediction.path
        elif prediction.label is not None:
            self.confusion[self._index[true_label], self._index[prediction.label]] += 1
        return true_label

    @property
    def total(self) -> int:
        """Predictions counted."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Predictions that were right."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """The share of right predictions; not a number if there were none."""
        return self.correct / self.total if self.total else float("nan")

    @property
    def precision(self) -> NDArray[np.float64]:
        """For each class, how many of those given its label are of it; not a number if none was."""
        return _quotient(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """For each class, how many of its images got its label; not a number if it had none."""
        return _quotient(self.confusion.diagonal(), self.confusion.sum(axis=1))


def _quotient(counts: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    quotient = np.full(len(totals), np.nan)
    np.divide(counts, totals, out=quotient, where=totals > 0)
    return quotient
