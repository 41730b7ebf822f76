"""Figures by matplotlib: SVG for `report.html`, which takes its text color from the page, and `examples.png`."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.metrics.evaluation import BINS, CalibrationBins
from rnn_runtime.text import shorten
from rnn_train.evaluation import SplitResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#010203"  # a color that nothing else has, replaced by that of the page's text
_BAR, _GAP = "#1f77b4", "#d62728"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rnn-onnx",  # the same figure has the same bytes
    "legend.framealpha": 0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
}
_ROWS, _COLUMNS = 5, 8  # of example images
_LONGEST_NAME = 20  # letters


def draw_curve(history: Sequence[Mapping[str, Any]], quantity: str, kept_epoch: int) -> str:
    """The `loss` or `accuracy` of each epoch as SVG, in training and validation, with a line at the epoch kept."""
    epochs = [row["epoch"] for row in history]

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        for split in ("train", "validation"):
            if f"{split}_{quantity}" in history[0]:
                axes.plot(epochs, [row[f"{split}_{quantity}"] for row in history], marker=".", label=split)
        axes.axvline(kept_epoch, color=_INK, linestyle=":", linewidth=1, zorder=0)
        axes.set(xlabel="epoch", ylabel=quantity, title=quantity.capitalize(), xlim=(0.5, epochs[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()

    return _svg(draw, 4.6, 3.2)


def draw_reliability(bins: CalibrationBins, title: str) -> str:
    """A reliability diagram as SVG: the accuracy of the predictions in each bin of confidence, and their number.

    Args:
        bins: Confidence and accuracy in bins.
        title: Drawn above it.
    """
    counts, correct, confidences = (np.array(values) for values in (bins.counts, bins.correct, bins.confidences))
    with np.errstate(invalid="ignore"):  # bins without predictions, for which nothing is drawn
        accuracy, confidence = correct / counts, confidences / counts
    centers, width = (np.arange(BINS) + 0.5) / BINS, 0.9 / BINS

    def draw(figure: "Figure") -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.bar(centers, accuracy, width, color=_BAR, label="accuracy")
        hatched: dict[str, Any] = {"fill": False, "edgecolor": _GAP, "hatch": "////", "label": "gap to confidence"}
        upper.bar(centers, confidence - accuracy, width, accuracy, **hatched)
        upper.plot((0, 1), (0, 1), color=_INK, linestyle=":", linewidth=1)
        upper.set(title=title, ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
        upper.legend(loc="upper left")
        lower.bar(centers, counts, width, color=_BAR)
        lower.set(xlabel="confidence", ylabel="images")

    return _svg(draw, 4.2, 4.2)


def draw_examples(path: Path, split: SplitResults, class_names: Sequence[str]) -> None:
    """Write a PNG of the first images that the model got right, then the first that it got wrong, marked.

    Raises:
        OSError: it can't be written.
    """
    from matplotlib.figure import Figure

    images, labels, predicted = split.images.images, split.images.labels, split.predicted
    names = [_drawable(name) for name in class_names]
    rows = min(_ROWS, -(-len(labels) // _COLUMNS))
    wrong = np.flatnonzero(predicted != labels)[: rows * _COLUMNS // 2]
    right = np.flatnonzero(predicted == labels)[: rows * _COLUMNS - len(wrong)]
    figure = Figure(figsize=(1.5 * _COLUMNS, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, [*right, *wrong], strict=False):
        axes.imshow(images[i].squeeze(2) if images.shape[3] == 1 else images[i], cmap="gray", vmin=0, vmax=255)
        title, color = names[predicted[i]], "black"
        if predicted[i] != labels[i]:
            title, color = f"✗ {title}\nis {names[labels[i]]}", "crimson"
        axes.set_title(title, fontsize=8, color=color, parse_math=False)  # a $ in a name is no formula
    figure.suptitle("The first images that were right, then the first that were wrong, with their true class")
    with atomic_write(path, "wb") as file, _missing_letters_as_boxes():
        figure.savefig(file, format="png", dpi=110)


def _drawable(name: str) -> str:
    """A class name that fits and can be drawn: a folder's name may be long, and bytes that aren't UTF-8."""
    return shorten(name.encode("utf-8", "replace").decode(), _LONGEST_NAME)


def _svg(draw: Callable[["Figure"], None], width: float, height: float) -> str:
    """Draw a figure of so many inches, with a transparent background."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.StringIO()
    with rc_context(_STYLE), _missing_letters_as_boxes():
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
            patch.set_alpha(0)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    # One page has several figures. Nothing refers to the names of their groups.
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    return text.replace(_INK, "currentColor")


@contextmanager
def _missing_letters_as_boxes() -> Iterator[None]:
    """Let matplotlib draw letters that its font lacks as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
