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
from rnn_runtime.text import print_table, printable

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
_SHORTEST_PATH = 16  # characters that a table shows of a path, however little room there is

_Value = str | float | None


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

    def row(self, prediction: Prediction, true_label: str | None) -> list[_Value]:
        """The values of one result, in the order of `names`."""
        ranked: list[_Value] = [value for pair in prediction.top[: self.top_k] for value in pair]
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
    """Write results as text: as they come, or all at the end (a table).

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
        _write_table(rows, columns, file)


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


def _utf8(value: _Value) -> _Value:
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


def _write_table(rows: Iterable[list[_Value]], columns: Columns, file: IO[str]) -> None:
    """A table as wide as the terminal, or 80 characters: a long path is shortened in its middle."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    width = Console(file=file).width
    named = [dict(zip(columns.names, row, strict=True)) for row in rows]
    names = list(_shown(dict.fromkeys(columns.names), columns))
    if not any(row["error"] for row in named):
        names.remove("error")
    for digits in (4, 2):  # with fewer where they wouldn't fit
        shown = [_shown(row, columns, digits) for row in named]
        widths = {name: max(map(cell_len, (name, *(row[name] for row in shown)))) for name in names}
        others = sum(width for name, width in widths.items() if name not in ("path", "error")) + 3 * len(names) + 1
        error = min(widths.get("error", 0), _SHORTEST_PATH)
        room = width - others - error
        if room >= min(widths["path"], _SHORTEST_PATH):
            break
    table = Table()
    for name in names:
        # a long error continues in the next line; a number or label is never cut
        table.add_column(name, overflow="fold", no_wrap=name != "error")
    for row in shown:
        table.add_row(shorten(row.pop("path"), max(room, _SHORTEST_PATH)), *(row[name] for name in names[1:]))
    print_table(table, file)


def _shown(row: dict[str, _Value], columns: Columns, digits: int = 4) -> dict[str, str]:
    """The cells of a row: with several classes, each has its probability beside it, or they wouldn't fit."""
    cells = {
        name: printable(f"{value:.{digits}f}" if isinstance(value, float) else value or "")
        for name, value in row.items()
        if name != "checkpoint"
    }
    if columns.top_k > 1:
        first = "label" if columns.min_probability is None else "guess"
        for rank in range(1, columns.top_k + 1):
            label, probability = (f"label_{rank}", f"probability_{rank}") if rank > 1 else (first, "probability")
            cells[label] = f"{cells[label]} {cells.pop(probability)}".strip()
    return cells


def shorten(text: str, width: int) -> str:
    """A text of at most `width` columns of a terminal: of a longer one, its middle is left out."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    end = (width - 1) * 2 // 3  # the name of a file says more than where its path begins
    # Letters of some scripts take two columns: where half of one would fit, there is a space instead.
    return f"{set_cell_size(text, width - 1 - end).rstrip()}…{set_cell_size(text[::-1], end)[::-1].lstrip()}"


def _rounded(row: list[_Value]) -> list[_Value]:
    """Probabilities to six digits: float32 has no more."""
    return [f"{value:.6f}" if isinstance(value, float) else value for value in row]
