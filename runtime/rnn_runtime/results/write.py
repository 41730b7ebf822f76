"""Results as rows of CSV, TSV, JSON Lines, Parquet or a table."""

import csv
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rnn_runtime.classifier import Prediction
from rnn_runtime.errors import SettingsError

Format = Literal["table", "csv", "tsv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("table", "csv", "tsv", "jsonl", "parquet")
RESUMABLE: tuple[Format, ...] = ("csv", "tsv", "jsonl")
DELIMITERS: dict[Format, str] = {"csv": ",", "tsv": "\t"}
_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_ROWS_PER_GROUP = 1 << 16  # of a Parquet file; they are in memory until they are written

Value = str | float | None


@dataclass(frozen=True, slots=True)
class Columns:
    """What a row shows.

    Attributes:
        top_k: How many of the likeliest classes.
        true_label: Whether the class of the image's folder has a column.
        min_probability: Below it, `label` is empty. The likeliest class has a column `guess` of its own then.
        checkpoint: SHA-256 of the checkpoint, to be repeated in every row; None for no such column.
    """

    top_k: int = 1
    true_label: bool = False
    min_probability: float | None = None
    checkpoint: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of the columns, in their order."""
        more = [f"{name}_{rank}" for rank in range(2, self.top_k + 1) for name in ("label", "probability")]
        return [
            "path",
            "label",
            *(["guess"] if self.min_probability is not None else []),
            "probability",
            *more,
            *(["true_label"] if self.true_label else []),
            *(["checkpoint"] if self.checkpoint is not None else []),
            "error",
        ]

    def row(self, prediction: Prediction, true_label: str | None) -> list[Value]:
        """The values of one result, in the order of `names`."""
        ranked: list[Value] = [value for pair in prediction.top[: self.top_k] for value in pair]
        ranked += [None] * (2 * self.top_k - len(ranked))
        if self.min_probability is not None:
            ranked.insert(0, None if self.is_below(prediction) else ranked[0])
        return [
            prediction.path,
            *ranked,
            *([true_label] if self.true_label else []),
            *([self.checkpoint] if self.checkpoint is not None else []),
            prediction.error,
        ]

    def is_below(self, prediction: Prediction) -> bool:
        """Whether a prediction is too uncertain for a label."""
        return (
            self.min_probability is not None
            and prediction.probability is not None
            and prediction.probability < self.min_probability
        )


def choose_format(output: str | Path | None, *, terminal: bool) -> Format:
    """The format of a file, by its ending, or of standard output: a table on a terminal, else CSV.

    Raises:
        SettingsError: the ending names no format.
    """
    if output is None:
        return "table" if terminal else "csv"
    ending = Path(output).suffix.lower()
    if ending not in _ENDINGS:
        raise SettingsError(
            f"{output}: {ending or 'a name without an ending'} doesn't say which format the results get. Choose "
            f"{', '.join(list(_ENDINGS)[:-1])} or {list(_ENDINGS)[-1]}, or set `format`"
        )
    return _ENDINGS[ending]


def write_results(
    results: Iterable[tuple[Prediction, str | None]],
    file: IO[str],
    format: Format,
    columns: Columns,
    *,
    header: bool = True,
) -> None:
    """Write results as text, as they come; of a table, the first 1,000 rows come together.

    Args:
        results: Predictions, each with the true label, or None.
        file: A text file open for writing.
        format: `table`, `csv` or `tsv` with a header line, or `jsonl` with one object per line.
        columns: What a row shows.
        header: False where rows of CSV or TSV join others, and go without names.
    """
    rows = itertools.starmap(columns.row, results)
    if format == "jsonl":
        names = columns.names
        for row in rows:
            file.write(json.dumps(dict(zip(names, row, strict=True))) + "\n")
    elif format in DELIMITERS:
        writer = csv.writer(_UnixLines(file), delimiter=DELIMITERS[format])
        if header:
            writer.writerow(columns.names)
        writer.writerows(map(_rounded, rows))
    else:
        from rnn_runtime.results.table import write_table

        write_table(rows, columns, file)


def write_parquet(results: Iterable[tuple[Prediction, str | None]], file: IO[bytes], columns: Columns) -> None:
    """Write results as a Parquet file, in groups of rows as they come.

    Probabilities are float32, all other columns are strings; what is missing is null. Bytes of a path that aren't
    UTF-8 are written as `\\xff`.

    Args:
        results: Predictions, each with the true label, or None.
        file: A binary file open for writing.
        columns: What a row shows.

    Raises:
        OSError: the file can't be written.
    """
    import pyarrow
    import pyarrow.parquet

    types = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in columns.names]
    schema = pyarrow.schema(list(zip(columns.names, types, strict=True)))
    rows = itertools.starmap(columns.row, results)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
            arrays = [list(map(_utf8, values)) for values in zip(*group, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema))


def printed_path(path: str) -> str:
    """A path as UTF-8 can write it: bytes of a file's name that are none become `\\xff`."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _utf8(value: Value) -> Value:
    return printed_path(value) if isinstance(value, str) else value


class _UnixLines:
    """Ends rows with a line feed only, whatever csv ends them with.

    csv is left at carriage return and line feed, since before Python 3.11.9 and 3.12.3 it quoted a carriage return
    in a name only if it was part of the line ending (github.com/python/cpython/issues/67044). Debian 12 has 3.11.2.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


def _rounded(row: list[Value]) -> list[Value]:
    """Probabilities to six digits: float32 has no more."""
    return [f"{value:.6f}" if isinstance(value, float) else value for value in row]
