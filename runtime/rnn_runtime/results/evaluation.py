"""Predictions held against the classes that folders name."""

from dataclasses import dataclass, field

from rnn_runtime.classifier import Prediction
from rnn_runtime.images.class_folders import FolderLabels
from rnn_runtime.metrics.evaluation import Evaluation


@dataclass(slots=True)
class FolderEvaluation:
    """Counts predictions against the class that each file's folder names.

    Feed it predictions one by one with `add`. Files that couldn't be read don't count.

    Attributes:
        class_names: The model's classes.
        figures: Accuracy, precision, recall and all else that follows from the counts.
        unknown: Files in folders that name no class.
        first_unknown: The first of them.

    Raises:
        InputError: two classes would share a folder.
    """

    class_names: tuple[str, ...]
    figures: Evaluation = field(init=False)
    unknown: int = field(init=False, default=0)
    first_unknown: str | None = field(init=False, default=None)
    _labels: FolderLabels = field(init=False)
    _index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.figures = Evaluation(self.class_names)
        self._labels = FolderLabels(self.class_names)
        self._index = {name: i for i, name in enumerate(self.class_names)}

    def add(self, prediction: Prediction) -> str | None:
        """Count one prediction, and give the true label; None if the file's folders name no class."""
        true_label = self._labels.label_of(prediction.path)
        if true_label is None:
            self.unknown += 1
            self.first_unknown = self.first_unknown or prediction.path
        elif prediction.top:
            ranking = [self._index[label] for label, _ in prediction.top]
            self.figures.add(self._index[true_label], ranking, prediction.top[0][1])
        return true_label
