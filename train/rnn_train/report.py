"""The files that are written next to a checkpoint: `metrics.csv`, `report.html` and `examples.png`."""

import base64
import csv
import io
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import rnn_runtime
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.images.fit import to_image
from rnn_runtime.metrics.evaluation import BINS, CalibrationBins
from rnn_runtime.text import printable, shorten
from rnn_train.checkpoint import Checkpoint, file_sha256
from rnn_train.data import Data
from rnn_train.data_checks import Finding
from rnn_train.evaluation import Results, SplitResults

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure

REPORTS = ("report.html", "examples.png")
_MISTAKES = 24
_THUMBNAIL = 160  # pixels; the longer side of a picture in the page
_MOST_CLASSES = 1000  # in the table of classes
_LARGEST_MATRIX = 30  # classes; of more, the most frequent confusions are listed
_CONFUSIONS = 20  # in that list
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
_LONGEST_NAME = 20  # letters, below an example


def write_metrics(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.csv`, one row per epoch, in place of the one that is there.

    Args:
        folder: Where to write it.
        history: The epochs' rows, as in a checkpoint's metrics.

    Raises:
        OSError: it can't be written.
    """
    with atomic_write(folder / "metrics.csv", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def write_reports(
    output: Path, checkpoint: Checkpoint, data: Data, results: Results, findings: Sequence[Finding] = ()
) -> None:
    """Write `report.html` and `examples.png` into the folder of a finished run, in place of those of an earlier run.

    Without images that were held out, there is no `examples.png`. The page needs no other file, no network and no
    scripts. Its Content Security Policy lets a browser load and run nothing, whatever the names of classes and files
    hold.

    Args:
        output: The checkpoint, which is there.
        checkpoint: What it holds.
        data: What it was trained on.
        results: What it does on images that it wasn't trained on.
        findings: What in the data will disappoint.

    Raises:
        OSError: a file can't be written or removed.
    """
    for name in REPORTS:  # of an earlier run, or they would seem to be this one's
        (output.parent / name).unlink(missing_ok=True)
    if results.splits:
        _draw_examples(output.parent / "examples.png", results.splits[0], data.class_names)
    with atomic_write(output.parent / "report.html", encoding="utf-8") as file:
        file.write(_render(output, checkpoint, data, results, findings))


def _render(output: Path, checkpoint: Checkpoint, data: Data, results: Results, findings: Sequence[Finding]) -> str:
    split = results.splits[0] if results.splits else None
    history, kept_epoch = checkpoint.metrics["epochs"], checkpoint.metrics["kept_epoch"]
    return _load_template().render(
        version=rnn_runtime.__version__,
        output=output,
        model=output.with_suffix(".onnx"),
        sha256=file_sha256(output),
        checkpoint=checkpoint,
        spec=checkpoint.spec,
        parameters=sum(weight.numel() for weight in checkpoint.weights.values()),
        settings=checkpoint.source.to_dict() | checkpoint.settings.to_dict(),
        history=history,
        kept_epoch=kept_epoch,
        curves=[_draw_curve(history, quantity, kept_epoch) for quantity in ("loss", "accuracy")],
        data=data,
        results=results,
        split=split,
        **(_describe_split(split, data) if split else {}),
        folder=_image_folder(split),
        small=max(data.train.images.shape[1:3]) < _THUMBNAIL,
        findings=[(finding.text, _pictures(finding)) for finding in findings],
    )


def _load_template() -> "Template":
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        """Every value of the page passes here: names of classes and files may hold what is no text."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "plain": _plain,
        "shell": _shell_quote,
        "literal": repr,
        "below": os.path.relpath,
    }
    return environment.from_string(resources.files("rnn_train").joinpath("report.html").read_text("utf-8"))


def _describe_split(split: SplitResults, data: Data) -> dict[str, Any]:
    """What the page shows of the images that the model is judged by, and the training images of each class."""
    evaluation, count = split.evaluation, len(data.class_names)
    classes = list(range(count))
    if count > _MOST_CLASSES:
        classes = np.argsort(evaluation.f1, kind="stable")[:_MOST_CLASSES].tolist()
    return {
        "classes": classes,
        "training_counts": np.bincount(data.train.labels, minlength=count).tolist(),
        "matrix": evaluation.confusion.tolist() if count <= _LARGEST_MATRIX else None,
        "confusions": evaluation.confusions[:_CONFUSIONS],
        "is_small": max(split.images.images.shape[1:3]) < _THUMBNAIL,  # pictures are shown larger than they are
        "mistakes": list(_most_confident_mistakes(split)),
        "predicted": split.predicted,
        "calibration": list(_calibration_figures(split)),
    }


def _most_confident_mistakes(split: SplitResults) -> Iterator[tuple[int, str]]:
    """The wrong predictions with the highest probabilities: the image's index, and a data URI of its picture."""
    wrong = np.flatnonzero(split.predicted != split.images.labels)
    order = np.argsort(-split.probabilities.max(axis=1)[wrong], kind="stable")
    for i in wrong[order[:_MISTAKES]].tolist():
        yield i, _picture(split.images.images[i])


def _pictures(finding: Finding) -> list[tuple[str, str]]:
    """The images of a finding: a data URI of each, and its name."""
    if finding.images is None:
        return []
    return [(_picture(image), name) for image, name in zip(finding.images, finding.names, strict=True)]


def _picture(pixels: NDArray[np.uint8]) -> str:
    """A data URI of an image."""
    image = to_image(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))  # leaves small ones as they are
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _calibration_figures(split: SplitResults) -> Iterator[str]:
    after = split.evaluation.calibration
    if split.uncalibrated is None:
        yield _draw_reliability(after, f"not calibrated: error {_percent(after.error)}")
    else:
        yield _draw_reliability(split.uncalibrated, f"before: error {_percent(split.uncalibrated.error)}")
        yield _draw_reliability(after, f"after: error {_percent(after.error)}")


def _image_folder(split: SplitResults | None) -> Path | None:
    """The folder that holds a split's images, if they are files."""
    paths = split.images.paths if split else ()
    return Path(os.path.commonpath([os.path.dirname(path) for path in paths])) if paths else None


def _shell_quote(path: str | Path) -> str:
    """A path as a word of the shell, not to be taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _percent(share: float, digits: int = 1) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.{digits}f} %"


def _plain(value: Any) -> str:
    """A setting's value for people."""
    if value in (None, []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _draw_curve(history: Sequence[Mapping[str, Any]], quantity: str, kept_epoch: int) -> str:
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


def _draw_reliability(bins: CalibrationBins, title: str) -> str:
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


def _draw_examples(path: Path, split: SplitResults, class_names: Sequence[str]) -> None:
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
