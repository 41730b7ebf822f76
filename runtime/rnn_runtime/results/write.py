"""Predictions as a table, CSV or JSON Lines, and an evaluation as tables."""

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import IO, TYPE_CHECKING, Any, Literal

import rnn_runtime
from rnn_runtime.checks.benchmark import Speed
from rnn_runtime.classifier import Classifier, Prediction
from rnn_runtime.engine.installation import import_onnxruntime
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.text import print_table, printable

if TYPE_CHECKING:  # rich is imported where a table is printed: CSV and JSON Lines don't wait for it
    from rich.table import Column

Format = Literal["table", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("table", "csv", "jsonl")

Truth = Callable[[str], str | None]
Value = str | float | None


def describe_run(classifier: Classifier) -> dict[str, Any]:
    """What makes results: the model, its checkpoint, the execution provider that really runs, versions."""
    return {
        "rnn_onnx": rnn_runtime.__version__,
        "onnxruntime": import_onnxruntime().__version__,
        "model": classifier.path,
        "checkpoint_sha256": classifier.metadata.checkpoint_sha256,
        "provider": classifier.provider,
        "threads": classifier.threads,
    }


def write_predictions(
    predictions: Iterable[Prediction],
    file: IO[str],
    style: Format,
    *,
    top_k: int = 1,
    truth: Truth | None = None,
    run: Mapping[str, Any] | None = None,
    header: bool = True,
) -> None:
    """Write predictions as they come (CSV, JSON Lines) or all at the end (a table).

    Args:
        predictions: Any number of them.
        file: A text file open for writing.
        style: `table`, `csv` with a header line, or `jsonl` with one object a line.
        run: With `jsonl`, what `describe_run` gives, for a first line `{"run": ...}`.
        header: False where rows join others: `csv` goes without names, and `jsonl` tells of the run only if rows come.
        top_k: How many classes a row shows; 1 shows the label only.
        truth: If given, gives the true label of a path, shown as `true_label`.
    """
    columns = result_columns(top_k, truth)
    rows = (_row(prediction, top_k, truth) for prediction in predictions)
    if style == "jsonl":
        first = list(itertools.islice(rows, int(not header)))
        if run is not None and (header or first):
            file.write(json.dumps({"run": run}) + "\n")
        for row in itertools.chain(first, rows):
            file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    elif style == "csv":
        writer = csv.writer(_UnixLines(file))
        if header:
            writer.writerow(columns)
        writer.writerows(map(_rounded, rows))
    else:
        from rich.table import Table

        table = Table()
        for column in columns:
            # a long path or error goes on in the next line; a number or label is never cut
            table.add_column(column, overflow="fold", no_wrap=column not in ("path", "error"))
        for row in rows:
            table.add_row(*("" if value is None else printable(str(value)) for value in _rounded(row)))
        print_table(table, file)


def result_columns(top_k: int = 1, truth: Truth | None = None) -> list[str]:
    """The columns of results; arguments as for `write_predictions`."""
    more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    return ["path", "label", "probability", *more, *(["true_label"] if truth else []), "error"]


def print_evaluation(evaluation: FolderEvaluation, file: IO[str]) -> None:
    """Print accuracy, precision and recall of each class, and the confusion matrix."""
    from rich.table import Table

    images = "image" if evaluation.total == 1 else "images"
    if not evaluation.total:
        file.write("Accuracy: no image that could be read lies in a folder that names a class\n")
        return
    file.write(
        f"Accuracy: {100 * evaluation.accuracy:.2f} % ({evaluation.correct} of {evaluation.total} {images} right)\n"
    )
    names = [printable(name) for name in evaluation.class_names]
    scores = Table(*_uncut("class", "precision", "recall", "images"), title="Per class", title_justify="left")
    support = evaluation.confusion.sum(axis=1)
    for name, precision, recall, count in zip(names, evaluation.precision, evaluation.recall, support, strict=True):
        scores.add_row(name, _percent(precision), _percent(recall), str(count))
    print_table(scores, file)
    matrix = Table(*_uncut("true", *names), title="Confusion matrix (columns: predicted)", title_justify="left")
    for name, counts in zip(names, evaluation.confusion, strict=True):
        matrix.add_row(name, *(str(count) if count else "." for count in counts))
    print_table(matrix, file)


def write_speeds(speeds: Iterable[Speed], file: IO[str], style: Format) -> None:
    """Write what `measure_speed` found, a row a batch size."""
    rows = [asdict(speed) for speed in speeds]
    if style == "jsonl":
        file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    names = [field.name for field in fields(Speed)]
    shown = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    if style == "csv":
        csv.writer(file, lineterminator="\n").writerows([names, *shown])
    else:
        from rich.table import Table

        table = Table(*names)
        for row in shown:
            table.add_row(*row)
        print_table(table, file)


class _UnixLines:
    """Ends rows with a line feed only, whatever csv ends them with.

    csv is left at carriage return and line feed, since before Python 3.11.9 and 3.12.3 it quoted a carriage return
    in a name only if it was part of the line ending (github.com/python/cpython/issues/67044).
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


def _uncut(*names: str) -> list["Column"]:
    from rich.table import Column

    return [Column(name, no_wrap=True) for name in names]


def _row(prediction: Prediction, top_k: int, truth: Truth | None) -> list[Value]:
    ranked: list[Value] = [value for pair in prediction.top[:top_k] for value in pair]
    ranked += [None] * (2 * top_k - len(ranked))
    true_label = [truth(prediction.path)] if truth else []
    return [prediction.path, *ranked, *true_label, prediction.error]


def _rounded(row: list[Value]) -> list[Value]:
    """Probabilities to six digits: float32 has no more."""
    return [f"{value:.6f}" if isinstance(value, float) else value for value in row]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
