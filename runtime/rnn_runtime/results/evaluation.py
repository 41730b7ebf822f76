"""Predictions held against the classes that folders name."""

import math
from dataclasses import dataclass, field

from rnn_runtime.classifier import Prediction
from rnn_runtime.images.find import FolderLabels
from rnn_runtime.metrics.evaluation import Evaluation


@dataclass(slots=True)
class FolderEvaluation:
    """Counts predictions against the class that each file's folder names.

    Feed it predictions one by one with `add`. Files that couldn't be read don't count.

    Attributes:
        class_names: The model's classes.
        figures: Accuracy, precision, recall and all else that follows from the counts.
        labeled: Predictions among them that are certain enough for a label, if there is a minimum probability.
        labeled_correct: Those of them that are right.
        unknown: Files in folders that name no class.
        first_unknown: The first of them.

    Raises:
        InputError: two classes would share a folder.
    """

    class_names: tuple[str, ...]
    figures: Evaluation = field(init=False)
    labeled: int = field(init=False, default=0)
    labeled_correct: int = field(init=False, default=0)
    unknown: int = field(init=False, default=0)
    first_unknown: str | None = field(init=False, default=None)
    _labels: FolderLabels = field(init=False)
    _index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.figures = Evaluation(self.class_names)
        self._labels = FolderLabels(self.class_names)
        self._index = {name: i for i, name in enumerate(self.class_names)}

    def add(self, prediction: Prediction, *, labeled: bool = True) -> str | None:
        """Count one prediction, and give the true label; None if the file's folders name no class.

        Args:
            prediction: The likeliest classes of a file.
            labeled: False if it is too uncertain for a label. `figures` counts it nevertheless.
        """
        true_label = self._labels.label_of(prediction.path)
        if true_label is None:
            self.unknown += 1
            self.first_unknown = self.first_unknown or prediction.path
        elif prediction.top:
            ranking = [self._index[label] for label, _ in prediction.top]
            self.figures.add(self._index[true_label], ranking, prediction.top[0][1])
            self.labeled += labeled
            self.labeled_correct += labeled and prediction.label == true_label
        return true_label

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
        images = "image" if self.figures.total == 1 else "images"
        share = f"{self.labeled} of {self.figures.total} {images} ({100 * self.coverage:.2f} %)"
        accuracy = f", accuracy of these: {100 * self.labeled_accuracy:.2f} %" if self.labeled else ""
        return f"With a label (probability at least {min_probability:g}): {share}{accuracy}"
