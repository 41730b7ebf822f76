"""Results as rows of CSV, JSON Lines or a table, and an evaluation as tables."""

import csv
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from rnn_runtime.classifier import Prediction
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.text import print_table, printable

if TYPE_CHECKING:  # rich is imported where a table is printed: CSV and JSON Lines don't wait for it
    from rich.table import Column

Format = Literal["table", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("table", "csv", "jsonl")

_Value = str | float | None


@dataclass(frozen=True, slots=True)
class Columns:
    """What a row shows: the `top_k` likeliest classes, and with `true_label` the class of the image's folder."""

    top_k: int = 1
    true_label: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the columns, in their order."""
        more = [f"{name}_{rank}" for rank in range(2, self.top_k + 1) for name in ("label", "probability")]
        return ["path", "label", "probability", *more, *(["true_label"] if self.true_label else []), "error"]

    def row(self, prediction: Prediction, true_label: str | None) -> list[_Value]:
        """The values of one result, in the order of `names`."""
        ranked: list[_Value] = [value for pair in prediction.top[: self.top_k] for value in pair]
        ranked += [None] * (2 * self.top_k - len(ranked))
        return [prediction.path, *ranked, *([true_label] if self.true_label else []), prediction.error]


def choose_format(output: str | Path | None, *, terminal: bool) -> Format:
    """The format for a file, by its ending, or for standard output: a table on a terminal, else CSV."""
    if output is not None:
        return "jsonl" if Path(output).suffix in (".jsonl", ".ndjson") else "csv"
    return "table" if terminal else "csv"


def write_results(
    results: Iterable[tuple[Prediction, str | None]],
    file: IO[str],
    format: Format,
    columns: Columns,
    *,
    run: Mapping[str, Any] | None = None,
    header: bool = True,
) -> None:
    """Write results as they come (CSV, JSON Lines) or all at the end (a table).

    Args:
        results: Predictions, each with the true label, or None.
        file: A text file open for writing.
        format: `table`, `csv` with a header line, or `jsonl` with one object per line.
        columns: What a row shows.
        run: With `jsonl`, what made the results, for a first line `{"run": ...}`.
        header: False where rows join others: `csv` goes without names, and `jsonl` names the run only if rows come.
    """
    rows = itertools.starmap(columns.row, results)
    if format == "jsonl":
        first = list(itertools.islice(rows, int(not header)))
        if run is not None and (header or first):
            file.write(json.dumps({"run": run}) + "\n")
        names = columns.names
        for row in itertools.chain(first, rows):
            file.write(json.dumps(dict(zip(names, row, strict=True))) + "\n")
    elif format == "csv":
        writer = csv.writer(_UnixLines(file))
        if header:
            writer.writerow(columns.names)
        writer.writerows(map(_rounded, rows))
    else:
        _write_table(rows, columns.names, file)


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


class _UnixLines:
    """Ends rows with a line feed only, whatever csv ends them with.

    csv is left at carriage return and line feed, since before Python 3.11.9 and 3.12.3 it quoted a carriage return
    in a name only if it was part of the line ending (github.com/python/cpython/issues/67044). Debian 12 has 3.11.2.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


def _write_table(rows: Iterable[list[_Value]], names: list[str], file: IO[str]) -> None:
    from rich.table import Table

    table = Table()
    for name in names:
        # a long path or error continues in the next line; a number or label is never cut
        table.add_column(name, overflow="fold", no_wrap=name not in ("path", "error"))
    for row in rows:
        table.add_row(*("" if value is None else printable(str(value)) for value in _rounded(row)))
    print_table(table, file)


def _uncut(*names: str) -> list["Column"]:
    from rich.table import Column

    return [Column(name, no_wrap=True) for name in names]


def _rounded(row: list[_Value]) -> list[_Value]:
    """Probabilities to six digits: float32 has no more."""
    return [f"{value:.6f}" if isinstance(value, float) else value for value in row]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
