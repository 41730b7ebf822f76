"""How good predictions are, once the true labels are known."""

import os
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Prediction
from rnn_runtime.images.class_folders import class_folders


@dataclass(slots=True)
class FolderEvaluation:
    """Counts predictions against the class that each file's folder names.

    Feed it predictions one by one with `add`; memory doesn't grow with them. Files that couldn't be read
    don't count. `confusion` is int64 `(classes, classes)`: rows are true classes, columns predicted ones.
    `unknown` counts files in folders that name no class, `first_unknown` is the first of them.
    """

    class_names: tuple[str, ...]
    unknown: int = field(init=False, default=0)
    first_unknown: str | None = field(init=False, default=None)
    confusion: NDArray[np.int64] = field(init=False)
    _index: dict[str, int] = field(init=False)
    _classes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.class_names)
        self.confusion = np.zeros((count, count), np.int64)
        self._classes = {name: i for i, name in enumerate(self.class_names)}
        self._index = {folder: i for i, folder in enumerate(class_folders(self.class_names))}

    def true_label(self, path: str) -> str | None:
        """The class that a file's folder names, or the nearest folder above it that does; None if none does."""
        folders = reversed(os.path.dirname(os.path.abspath(path)).split(os.sep))
        index = next((self._index[folder] for folder in folders if folder in self._index), None)
        return None if index is None else self.class_names[index]

    def add(self, prediction: Prediction) -> Self:
        """Count one prediction."""
        truth = self.true_label(prediction.path)
        if truth is None:
            self.unknown += 1
            self.first_unknown = self.first_unknown or prediction.path
        elif prediction.label is not None:
            self.confusion[self._classes[truth], self._classes[prediction.label]] += 1
        return self

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
        return _share(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """For each class, how many of its images got its label; not a number if it had none."""
        return _share(self.confusion.diagonal(), self.confusion.sum(axis=1))


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    share = np.full(len(whole), np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
