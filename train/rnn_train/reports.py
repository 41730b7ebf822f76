"""The reports beside a checkpoint: `metrics.csv`, which grows with each epoch, and plots as PNG files."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.files.atomic import atomic_write
from rnn_train.data import LabeledImages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT = "report.html"
PLOTS = ("curves.png", "confusion_matrix.png", "examples.png")
_LARGEST_LABELLED_MATRIX = 30  # classes; above that the names and counts of a confusion matrix overlap
_LONGEST_NAME = 20  # letters
_GRID = (5, 8)  # rows and columns of example images


def write_metrics(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.csv`, one row per epoch, in place of the one that is there.

    Args:
        folder: Where to write it.
        history: The epochs' rows, as in a checkpoint's metrics.
    """
    with atomic_write(folder / "metrics.csv", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def write_reports(
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    held_out: LabeledImages | None,
    predicted: NDArray[np.int64] | None,
    *,
    plots: bool = True,
) -> None:
    """Draw `curves.png`, `confusion_matrix.png` and `examples.png`, if asked, and remove an earlier run's.

    Args:
        folder: Where to write them.
        history: The epochs' rows, as in a checkpoint's metrics.
        class_names: Names of the classes.
        held_out: The images that the model was evaluated on; without, only the curves are drawn.
        predicted: The class that it predicted for each.
        plots: Whether to draw at all.
    """
    for name in (*PLOTS, REPORT):  # of an earlier run, or they would seem to be this one's
        (folder / name).unlink(missing_ok=True)
    if not plots:
        return
    _save(_draw_curves(history), folder / "curves.png")
    if held_out is not None and predicted is not None:
        names = [_printable(name) for name in class_names]
        _save(_draw_confusion_matrix(held_out.labels, predicted, names), folder / "confusion_matrix.png")
        _save(_draw_examples(held_out, predicted, names), folder / "examples.png")


def plot_curve(axes: "Axes", history: Sequence[Mapping[str, Any]], quantity: str) -> None:
    """Plot the `loss` or `accuracy` of each epoch, in training and where there is one in validation."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    for split in ("train", "validation"):
        if f"{split}_{quantity}" in history[0]:
            axes.plot(epochs, [row[f"{split}_{quantity}"] for row in history], marker=".", label=split)
    axes.set(xlabel="epoch", ylabel=quantity, title=quantity.capitalize())
    axes.set_xlim(0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _save(figure: "Figure", path: Path) -> None:
    with atomic_write(path, "wb") as file, warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="png", dpi=110)


def _printable(name: str) -> str:
    """A class name that fits and can be drawn: a folder's name may be long, and bytes that aren't UTF-8."""
    name = name.encode("utf-8", "replace").decode()
    half = _LONGEST_NAME // 2  # what tells names apart is often at their end
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _draw_curves(history: Sequence[Mapping[str, Any]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        plot_curve(axes, history, quantity)
    return figure


def _draw_confusion_matrix(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], class_names: Sequence[str]
) -> "Figure":
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    count = len(class_names)
    readable = count <= _LARGEST_LABELLED_MATRIX
    side = min(max(5.0, 1.5 + 0.65 * count), 20.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    matrix = confusion_matrix(labels, predicted, labels=range(count))
    display = ConfusionMatrixDisplay(matrix, display_labels=class_names if readable else None)
    display.plot(ax=axes, cmap="Blues", include_values=readable, colorbar=not readable)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)  # a $ in a name is no formula
    for tick in axes.get_xticklabels() if readable else ():
        tick.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")
    axes.set_title(f"{len(labels):,} images, {(labels == predicted).mean():.1%} right")
    return figure


def _draw_examples(held_out: LabeledImages, predicted: NDArray[np.int64], class_names: Sequence[str]) -> "Figure":
    """The first images that the model got right, then the first that it got wrong, marked."""
    from matplotlib.figure import Figure

    rows, columns = min(_GRID[0], -(-len(predicted) // _GRID[1])), _GRID[1]
    wrong = np.flatnonzero(predicted != held_out.labels)[: rows * columns // 2]
    right = np.flatnonzero(predicted == held_out.labels)[: rows * columns - len(wrong)]
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, [*right, *wrong], strict=False):
        is_wrong = predicted[i] != held_out.labels[i]
        image = held_out.images[i]
        axes.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=255)
        name, true_name = class_names[predicted[i]], class_names[held_out.labels[i]]
        text = f"✗ {name}\nis {true_name}" if is_wrong else name
        axes.set_title(text, fontsize=8, color="crimson" if is_wrong else "black", parse_math=False)
    figure.suptitle("The first images that were right, then the first that were wrong, with their true class")
    return figure
