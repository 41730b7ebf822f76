"""The files that are written next to a checkpoint: `metrics.csv`, `report.html` and `examples.png`."""

import base64
import csv
import io
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import rnn_runtime
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.images.decode import to_image
from rnn_runtime.metrics.evaluation import Evaluation
from rnn_runtime.text import printable
from rnn_train.checkpoint import Checkpoint, file_sha256
from rnn_train.data import Data
from rnn_train.evaluation import Results, SplitResults
from rnn_train.report_figures import draw_curve, draw_examples, draw_reliability

if TYPE_CHECKING:
    from jinja2 import Template

REPORTS = ("report.html", "examples.png")
_MISTAKES = 24
_THUMBNAIL = 160  # pixels; the longer side of a picture in the page
_MOST_CLASSES = 1000  # in the table of classes
_LARGEST_MATRIX = 30  # classes; of more, the confusion matrix is a picture above a list
_LARGEST_PICTURE = 1000  # pixels
_CONFUSIONS = 20  # in that list
_BLUE = (31, 119, 180)
_PLAIN_BYTES = frozenset(range(32, 127)) - frozenset(b"'\\")


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


def write_reports(output: Path, checkpoint: Checkpoint, data: Data, results: Results, *, plots: bool = True) -> None:
    """Write `report.html` and `examples.png` into the folder of a finished run, in place of those of an earlier run.

    Without images that were held out, there is no `examples.png`. The page needs no other file, no network and no
    scripts. Its Content Security Policy lets a browser load and run nothing, whatever the names of classes and files
    hold.

    Args:
        output: The checkpoint, which is there.
        checkpoint: What it holds.
        data: What it was trained on.
        results: What it does on images that it wasn't trained on.
        plots: Whether to write them. If not, those of an earlier run are removed all the same.

    Raises:
        OSError: a file can't be written or removed.
    """
    for name in REPORTS:  # of an earlier run, or they would seem to be this one's
        (output.parent / name).unlink(missing_ok=True)
    if not plots:
        return
    if results.splits:
        draw_examples(output.parent / "examples.png", results.splits[0], data.class_names)
    with atomic_write(output.parent / "report.html", encoding="utf-8") as file:
        file.write(_render(output, checkpoint, data, results))


def _render(output: Path, checkpoint: Checkpoint, data: Data, results: Results) -> str:
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
        curves=[draw_curve(history, quantity, kept_epoch) for quantity in ("loss", "accuracy")],
        data=data,
        results=results,
        split=split,
        **(_describe_split(split, data) if split else {}),
        folder=_image_folder(split),
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
        "matrix_picture": _matrix_picture(evaluation) if count > _LARGEST_MATRIX else None,
        "confusions": evaluation.confusions[:_CONFUSIONS],
        "is_small": max(split.images.images.shape[1:3]) < _THUMBNAIL,  # pictures are shown larger than they are
        "mistakes": list(_most_confident_mistakes(split)),
        "predicted": split.predicted,
        "calibration": list(_calibration_figures(split)),
    }


def _matrix_picture(evaluation: Evaluation) -> str:
    """The confusion matrix, a pixel per pair of classes, more opaque the larger its share of the true class is."""
    opacity = Image.fromarray(np.uint8(255 * evaluation.confusion / np.maximum(evaluation.support, 1)[:, np.newaxis]))
    opacity.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    picture = Image.new("RGB", opacity.size, _BLUE)
    picture.putalpha(opacity)
    return _data_uri(picture)


def _most_confident_mistakes(split: SplitResults) -> Iterator[tuple[int, str]]:
    """The wrong predictions with the highest probabilities: the image's index, and a data URI of its picture."""
    wrong = np.flatnonzero(split.predicted != split.images.labels)
    order = np.argsort(-split.probabilities.max(axis=1)[wrong], kind="stable")
    for i in wrong[order[:_MISTAKES]].tolist():
        image = to_image(split.images.images[i])
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))  # leaves small ones as they are
        yield i, _data_uri(image)


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _calibration_figures(split: SplitResults) -> Iterator[str]:
    after = split.evaluation.calibration
    if split.uncalibrated is None:
        yield draw_reliability(after, f"not calibrated: error {_percent(after.error)}")
    else:
        yield draw_reliability(split.uncalibrated, f"before: error {_percent(split.uncalibrated.error)}")
        yield draw_reliability(after, f"after: error {_percent(after.error)}")


def _image_folder(split: SplitResults | None) -> Path | None:
    """The folder that holds a split's images, if they are files."""
    paths = split.images.paths if split else ()
    return Path(os.path.commonpath([os.path.dirname(path) for path in paths])) if paths else None


def _shell_quote(path: str | Path) -> str:
    """A path as a word of the shell, not to be taken for an option."""
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    # Line breaks, and bytes that are no text, in the notation of bash and zsh, and of POSIX since 2024.
    return "$'" + "".join(chr(byte) if byte in _PLAIN_BYTES else f"\\{byte:03o}" for byte in os.fsencode(text)) + "'"


def _percent(share: float, digits: int = 1) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.{digits}f} %"


def _plain(value: Any) -> str:
    """A setting's value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
