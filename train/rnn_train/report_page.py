"""`report.html` beside a checkpoint: what was trained on what, how good it is, and how to use it, in one page."""

import base64
import io
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rnn_runtime
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.images.decode import to_image
from rnn_runtime.metrics.evaluation import Evaluation
from rnn_runtime.text import printable
from rnn_train.checkpoint import Checkpoint, file_sha256
from rnn_train.data import Data, DataSource
from rnn_train.evaluation import Results, SplitResults
from rnn_train.report_figures import draw_curve, draw_reliability
from rnn_train.reports import REPORT

if TYPE_CHECKING:
    from jinja2 import Template

_MISTAKES = 24
_THUMBNAIL = 160  # pixels; the longer side of a picture in the page
_LARGEST_MATRIX = 30  # classes
_CONFUSIONS = 20  # shown in its place where there are more classes
_PLAIN_BYTES = frozenset(range(32, 127)) - frozenset(b"'\\")
_MOST_CLASSES = 1000  # in the table of classes


def write_report(output: Path, checkpoint: Checkpoint, data: Data, results: Results) -> None:
    """Write the report of a finished run into the folder of its checkpoint.

    The page needs no other file, no network and no scripts. Its Content Security Policy lets a browser load and run
    nothing, whatever the names of classes and files hold.

    Args:
        output: The checkpoint, which is there.
        checkpoint: What it holds.
        data: What it was trained on.
        results: What it does on images that it wasn't trained on.

    Raises:
        OSError: the report can't be written.
    """
    from markupsafe import Markup

    split = results.splits[0] if results.splits else None
    history, kept_epoch = checkpoint.metrics["epochs"], checkpoint.metrics["kept_epoch"]
    page = _load_template().render(
        version=rnn_runtime.__version__,
        output=output.name,
        sha256=file_sha256(output),
        checkpoint=checkpoint,
        spec=checkpoint.spec,
        parameters=sum(weight.numel() for weight in checkpoint.weights.values()),
        settings=checkpoint.source.to_dict() | checkpoint.settings.to_dict(),
        history=history,
        kept_epoch=kept_epoch,
        curves=[Markup(draw_curve(history, quantity, kept_epoch)) for quantity in ("loss", "accuracy")],
        data=data,
        results=results,
        calibration=[Markup(figure) for figure in _calibration_figures(split)],
        held_out=_HeldOut.of(split, data) if split else None,
        commands=_commands(output, split, checkpoint.source),
        python=_python(output, split),
    )
    with atomic_write(output.parent / REPORT, encoding="utf-8") as file:
        file.write(page)


def _load_template() -> "Template":
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        """Every value of the page passes here: names of classes and files may hold what is no text."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "plain": _plain}
    return environment.from_string(resources.files("rnn_train").joinpath("report_page.html").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class _Mistake:
    """A wrong prediction.

    Attributes:
        picture: A data URI of a PNG file.
        is_small: Whether it is shown larger than it is.
        true: Its class.
        predicted: The class that was predicted.
        probability: Of that class.
        path: Its file; None for an image from no file.
        name: The file's name below the folder of all images.
    """

    picture: str
    is_small: bool
    true: str
    predicted: str
    probability: float
    path: str | None
    name: str | None


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """What the page shows of the images that the model is judged by.

    Attributes:
        name: The split.
        evaluation: All figures.
        figures: The main ones, with their names.
        classes: Indices of the classes in the table, in its order.
        confusion: The confusion matrix; None if there are too many classes.
        training_counts: Training images of each class.
        mistakes: The wrong predictions with the highest probabilities, the most confident first.
        more_mistakes: How many others there are.
    """

    name: str
    evaluation: Evaluation
    figures: dict[str, float]
    classes: list[int]
    confusion: list[list[int]] | None
    training_counts: list[int]
    mistakes: list[_Mistake]
    more_mistakes: int

    @classmethod
    def of(cls, split: SplitResults, data: Data) -> "_HeldOut":
        evaluation, count = split.evaluation, len(data.class_names)
        figures = {
            "accuracy": evaluation.accuracy,
            "always predicting the largest class": evaluation.largest_class[1],
            "balanced accuracy": evaluation.balanced_accuracy,
            "macro F1": evaluation.macro_f1,
            **{f"top-{k} accuracy": share for k, share in evaluation.top_k_accuracies.items()},
            "expected calibration error": evaluation.calibration.error,
        }
        classes = list(range(count))
        if count > _MOST_CLASSES:
            classes = np.argsort(evaluation.f1, kind="stable")[:_MOST_CLASSES].tolist()
        return cls(
            name=split.name,
            evaluation=evaluation,
            figures=figures,
            classes=classes,
            confusion=evaluation.confusion.tolist() if count <= _LARGEST_MATRIX else None,
            training_counts=np.bincount(data.train.labels, minlength=count).tolist(),
            mistakes=list(_most_confident_mistakes(split, data.class_names)),
            more_mistakes=max(0, evaluation.total - evaluation.correct - _MISTAKES),
        )

    @property
    def confusions(self) -> list[tuple[int, int, int]]:
        return self.evaluation.confusions[:_CONFUSIONS]


def _most_confident_mistakes(split: SplitResults, class_names: tuple[str, ...]) -> Iterator[_Mistake]:
    paths, folder = split.images.paths, _image_folder(split)
    predicted, confidence = split.predicted, split.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != split.images.labels)
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")[:_MISTAKES]]:
        image = to_image(split.images.images[i])
        is_small = max(image.size) < _THUMBNAIL
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))  # leaves small ones as they are
        file = io.BytesIO()
        image.save(file, "PNG")
        yield _Mistake(
            picture="data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"),
            is_small=is_small,
            true=class_names[split.images.labels[i]],
            predicted=class_names[predicted[i]],
            probability=float(confidence[i]),
            path=paths[i] if paths else None,
            name=os.path.relpath(paths[i], folder) if folder else None,
        )


def _calibration_figures(split: SplitResults | None) -> Iterator[str]:
    if split is None:
        return
    after = split.evaluation.calibration
    if split.uncalibrated is None:
        yield draw_reliability(after, f"not calibrated: error {_percent(after.error)}")
    else:
        yield draw_reliability(split.uncalibrated, f"before: error {_percent(split.uncalibrated.error)}")
        yield draw_reliability(after, f"after: error {_percent(after.error)}")


def _commands(output: Path, split: SplitResults | None, source: DataSource) -> list[tuple[str, str]]:
    """What to do next: a comment and a line for the shell each, with the names that this run used."""
    checkpoint, model = _shell_quote(output), _shell_quote(output.with_suffix(".onnx"))
    folder = _image_folder(split)
    images = _shell_quote(folder or "images/")
    lines = [
        ("Export to ONNX, and compare with PyTorch", f"rnn-export {checkpoint} {model}"),
        ("Check the model on the machine that will run it", f"rnn-onnx check {model}"),
        ("Classify images", f"rnn-infer --model {model} --recursive --format table {images}"),
    ]
    if (
        split and folder and not (split.name == "validation" and source.val_split)
    ):  # else training images are there, too
        evaluate = f"rnn-infer --model {model} --recursive --labels-from-folders --format table {images}"
        lines.append(("Evaluate the model on images in a folder per class", evaluate))
    return lines


def _python(output: Path, split: SplitResults | None) -> str:
    image = split.images.paths[0] if split and split.images.paths else "image.png"
    return (
        "from rnn_runtime import Classifier\n\n"
        f"classifier = Classifier({str(output.with_suffix('.onnx'))!r})\n"
        f"prediction = classifier.predict({image!r})\n"
        "print(prediction.label, prediction.probability)\n"
    )


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
