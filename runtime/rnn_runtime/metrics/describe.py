"""An evaluation as text for people, within 80 columns."""

import math
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import numpy as np

from rnn_runtime.metrics.evaluation import Evaluation
from rnn_runtime.text import print_table, printable, shorten

if TYPE_CHECKING:  # rich is imported where a table is printed
    from rich.table import Table

_COLUMNS = 80
_LONGEST_NAME = 24
_SHORTEST_NAME = 8
_MOST_CLASSES = 30  # in the table of classes
_FEWER_CLASSES = 20  # of more than these, the ones with the lowest F1
_MOST_CONFUSIONS = 10


def describe_figures(evaluation: Evaluation) -> Iterator[str]:
    """What to hold an accuracy against, in lines; nothing without predictions."""
    if not evaluation.total:
        return
    name, share = evaluation.largest_class
    yield f"Baseline: {_percent(share)} (the share of the largest class, {_shown(name)})"
    if only := evaluation.only_prediction:
        yield f"The model predicts {_shown(only)} for every image, whatever it shows"
    yield f"Balanced accuracy: {_percent(evaluation.balanced_accuracy)}, macro F1: {_percent(evaluation.macro_f1)}"
    if top := evaluation.top_k_accuracies:
        yield ", ".join(f"top-{k} accuracy: {_percent(share)}" for k, share in top.items()).capitalize()


def print_classes(evaluation: Evaluation, file: IO[str]) -> None:
    """Print precision, recall, F1 and support of each class; of many classes, those with the lowest F1."""
    count = len(evaluation.class_names)
    shown, title = list(range(count)), "Per class"
    if count > _MOST_CLASSES:
        # not a number, for a class without images or predictions, sorts last
        shown = np.argsort(evaluation.f1, kind="stable")[:_FEWER_CLASSES].tolist()
        title = f"The {_FEWER_CLASSES} of {count} classes with the lowest F1"
    file.write(f"{title}\n")  # rich would wrap a title that is wider than its table
    table = _table("class", "precision", "recall", "F1", "images")
    columns = evaluation.precision, evaluation.recall, evaluation.f1
    for i in shown:
        scores = (_percent(float(column[i]), digits=1) for column in columns)
        table.add_row(_shown(evaluation.class_names[i]), *scores, f"{evaluation.support[i]}")
    print_table(table, file)


def print_confusion(evaluation: Evaluation, file: IO[str]) -> None:
    """Print the confusion matrix, or if it is too wide, the most frequent confusions."""
    names = evaluation.class_names
    numbers = list(map(str, range(len(names))))
    digits = max(len(str(evaluation.support.max())), len(numbers[-1]))
    room = _COLUMNS - len(names) * (digits + 1) - len(numbers[-1]) - len("  ")
    if room >= _SHORTEST_NAME:
        file.write("Confusion matrix (columns: predicted)\n")
        table = _table("true", *numbers, box=False)
        for number, name, counts in zip(numbers, names, evaluation.confusion, strict=True):
            named = f"{number:>{len(numbers[-1])}} {_shown(name, min(room, _LONGEST_NAME))}"
            table.add_row(number if name == number else named, *(str(count) if count else "." for count in counts))
        print_table(table, file)
    elif confusions := evaluation.confusions:
        file.write("The most frequent confusions\n")
        table = _table("true", "predicted", "images", "of its class")
        support = evaluation.support
        for true, predicted, count in confusions[:_MOST_CONFUSIONS]:
            share = _percent(count / support[true], digits=1)
            table.add_row(_shown(names[true]), _shown(names[predicted]), str(count), share)
        print_table(table, file)


def print_evaluation(evaluation: Evaluation, file: IO[str]) -> None:
    """Print all figures, the table of classes, and the confusion matrix."""
    images = "image" if evaluation.total == 1 else "images"
    right = f"{evaluation.correct} of {evaluation.total} {images} right"
    file.write(f"Accuracy: {_percent(evaluation.accuracy)} ({right})\n")
    file.writelines(line + "\n" for line in describe_figures(evaluation))
    file.write(f"Expected calibration error: {_percent(evaluation.calibration.error)}\n")
    print_classes(evaluation, file)
    print_confusion(evaluation, file)


def _shown(name: str, most: int = _LONGEST_NAME) -> str:
    """A class name that is short and safe to print."""
    return shorten(printable(name), most)


def _table(*names: str, box: bool = True) -> "Table":
    from rich.table import Column, Table

    columns = [
        Column(name, no_wrap=True, justify="left" if i == 0 or name == "predicted" else "right")
        for i, name in enumerate(names)
    ]
    table = Table(*columns)
    if not box:
        table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
    return table


def _percent(share: float, digits: int = 2) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f} %"
