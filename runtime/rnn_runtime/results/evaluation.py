"""Predictions held against the classes that folders or a table name."""

import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from rnn_runtime.classifier import Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.images.find import class_folders, without_pattern
from rnn_runtime.metrics.evaluation import Evaluation
from rnn_runtime.text import count_of


class FolderEvaluation:
    """Counts predictions against the class that each file's folder names, or that is given.

    Feed it predictions one by one with `add`. Files that couldn't be read don't count.

    Args:
        class_names: The model's classes.
        named: The folders and patterns that were named. A class is a folder below them; those above say nothing. Images
            in `3/new`, if that is named, aren't threes.
        labels: The class of each file by its path, instead of folders; None for folders.

    Attributes:
        class_names (tuple[str, ...]): The model's classes.
        figures (Evaluation): Accuracy, precision, recall and all else that follows from the counts.
        labeled (int): Predictions among them that are certain enough for a label, if there is a minimum probability.
        labeled_correct (int): Those of them that are right.
        rejected (int): Images that got no label since they are unlike the training images; they aren't evaluated.
        unknown (int): Files in folders that name no class, or that have no label.
        first_unknown (str | None): The first of them.

    Raises:
        InputError: two classes would share a folder, or a label is none of the classes.
    """

    def __init__(
        self, class_names: Sequence[str], named: Iterable[str] = (), labels: Mapping[str, str] | None = None
    ) -> None:
        self.class_names = tuple(class_names)
        self.figures = Evaluation(self.class_names)
        self.labeled = self.labeled_correct = self.unknown = self.rejected = 0
        self.first_unknown: str | None = None
        self._named = sorted((os.path.join(without_pattern(path), "") for path in named), key=len, reverse=True)
        if odd := sorted(set((labels or {}).values()) - set(class_names)):
            raise InputError(f"the label {odd[0]!r} is none of the classes {', '.join(class_names)}")
        self._of_files = labels and {os.path.abspath(path): label for path, label in labels.items()}
        self._without_result = dict.fromkeys(self._of_files or ())
        self._labels = {} if labels else dict(zip(class_folders(class_names), class_names, strict=True))
        self._index = {name: i for i, name in enumerate(class_names)}

    def label_of(self, path: str) -> str | None:
        """The label of a file, or the class of the nearest folder above it that is named after one; None without one.

        Of a file that isn't below what was named, all folders of its path count.
        """
        if self._of_files is not None:
            return self._of_files.get(os.path.abspath(path))
        above = next((named for named in self._named if path.startswith(named)), "")
        below = unicodedata.normalize("NFC", os.path.dirname(path.removeprefix(above)))
        folders = reversed(below.split(os.sep))
        return next((self._labels[folder] for folder in folders if folder in self._labels), None)

    def add(self, prediction: Prediction, *, labeled: bool = True) -> str | None:
        """Count one prediction, and give the true label; None if there is none.

        Args:
            prediction: The likeliest classes of a file.
            labeled: False if it is too uncertain for a label. `figures` counts it nevertheless.
        """
        true_label = self.label_of(prediction.path)
        if self._without_result:
            self._without_result.pop(os.path.abspath(prediction.path), None)
        if true_label is None:
            self.unknown += 1
            self.first_unknown = self.first_unknown or prediction.path
        elif prediction.error is not None and prediction.unlike is not None:
            self.rejected += 1
        elif prediction.top:
            ranking = [self._index[label] for label, _ in prediction.top]
            self.figures.add(self._index[true_label], ranking, prediction.top[0][1])
            self.labeled += labeled
            self.labeled_correct += labeled and prediction.label == true_label
        return true_label

    @property
    def without_result(self) -> list[str]:
        """The files that have a label, and no prediction so far, with their full paths."""
        return list(self._without_result)

    @property
    def coverage(self) -> float:
        """The share of the predictions that have a label; not a number if there were none."""
        return self.labeled / self.figures.total if self.figures.total else math.nan

    @property
    def labeled_accuracy(self) -> float:
        """The share of the labels that are right; not a number if there were none."""
        return self.labeled_correct / self.labeled if self.labeled else math.nan

    def describe_labeled(self, min_probability: float) -> str:
        """Coverage and accuracy of the labels, in one line."""
        share = f"{self.labeled} of {count_of(self.figures.total, 'image')} ({100 * self.coverage:.2f} %)"
        accuracy = f", accuracy of these: {100 * self.labeled_accuracy:.2f} %" if self.labeled else ""
        return f"With a label (probability at least {min_probability:g}): {share}{accuracy}"
