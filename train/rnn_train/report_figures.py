"""The figures of `report.html`, as SVG that takes its text color from the page."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnn_runtime.metrics.calibration import BINS, CalibrationBins
from rnn_train.reports import plot_curve

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


def draw_curve(history: Sequence[Mapping[str, Any]], quantity: str, kept_epoch: int) -> str:
    """The `loss` or `accuracy` of each epoch as SVG, with a line at the epoch that is kept."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        plot_curve(axes, history, quantity)
        axes.axvline(kept_epoch, color=_INK, linestyle=":", linewidth=1, zorder=0)

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


def _svg(draw: Callable[["Figure"], None], width: float, height: float) -> str:
    """Draw a figure of so many inches, with a transparent background."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.StringIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
            patch.set_alpha(0)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    # One page has several figures. Nothing refers to the names of their groups.
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    return text.replace(_INK, "currentColor")
