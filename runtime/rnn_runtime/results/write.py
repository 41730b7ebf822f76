"""Results as rows of CSV, TSV, JSON Lines, Parquet or a table, written as they come, and read back."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self

from rnn_runtime.classifier import Prediction
from rnn_runtime.errors import Argument, InputError, SettingsError
from rnn_runtime.text import printable

Format = Literal["table", "csv", "tsv", "jsonl", "parquet"]
Unlike = Literal["warn", "column", "error"]
RESUMABLE: tuple[Format, ...] = ("csv", "tsv", "jsonl")
DELIMITERS: dict[Format, str] = {"csv": ",", "tsv": "\t"}
# A file's name may be bytes that are no UTF-8; they come out as they went in.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
MEASURED_ROWS = 1000  # of a table; they decide how wide its columns are
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_ROWS_PER_GROUP = 1 << 16  # of a Parquet file; they are in memory until they are written
_GAP = "  "  # between two columns of a table
_SHORTEST_PATH = 16  # characters that a table shows of a path, however little room there is
_UNLIKE = "unlike the training images: "  # how an error begins, if such images get no label
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # how text begins that a spreadsheet runs, or that hides this mark
_LONGEST_LINE = 1 << 20  # characters; a path has at most 4096 bytes

Value = str | float | None
Write = Callable[[Sequence[list[Value]]], None]


@dataclass(frozen=True, slots=True)
class Columns:
    """What a row shows.

    Attributes:
        top_k: How many of the likeliest classes.
        true_label: Whether the class of the image's folder has a column.
        min_probability: Below it, `label` is empty. The likeliest class has a column `guess` of its own then.
        checkpoint: SHA-256 of the checkpoint, to be repeated in every row; None for no such column.
        unlike: What becomes of images that are unlike the training images: `column` says so in a column of its own,
            and `error` makes it the row's error, without a label. `warn` leaves rows as they are.
        csv_safe: Whether CSV and TSV have an apostrophe before text that a spreadsheet would take for a formula.
    """

    top_k: int = 1
    true_label: bool = False
    min_probability: float | None = None
    checkpoint: str | None = None
    unlike: Unlike = "warn"
    csv_safe: bool = False

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
            *(["unlike"] if self.unlike == "column" else []),
            "error",
        ]

    def row(self, prediction: Prediction, true_label: str | None = None) -> list[Value]:
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
            *([prediction.unlike] if self.unlike == "column" else []),
            prediction.error,
        ]

    def judge(self, prediction: Prediction) -> Prediction:
        """A result with `error`: an image that is unlike the training images has an error and no label."""
        if prediction.unlike is None:
            return prediction
        return Prediction(prediction.path, None, None, error=_UNLIKE + prediction.unlike, unlike=prediction.unlike)

    def prediction(self, row: dict[str, Any]) -> Prediction:
        """The result that a row shows."""
        unlike = row.get("unlike") or None
        if not row["label"] and not row.get("guess"):
            error = str(row["error"])
            if error.startswith(_UNLIKE):
                unlike = error.removeprefix(_UNLIKE)
            return Prediction(row["path"], None, None, error=error, unlike=unlike)
        first = "label" if self.min_probability is None else "guess"
        names = [
            (first, "probability"),
            *((f"label_{rank}", f"probability_{rank}") for rank in range(2, self.top_k + 1)),
        ]
        top = tuple((str(row[label]), float(row[probability])) for label, probability in names)
        return Prediction(row["path"], *top[0], top, unlike=unlike)

    def is_below(self, prediction: Prediction) -> bool:
        """Whether a prediction is too uncertain for a label."""
        return (
            self.min_probability is not None
            and prediction.probability is not None
            and prediction.probability < self.min_probability
        )


def choose_format(output: str | Path | None, *, terminal: bool) -> Format:
    """The format of a file, by the suffix of its name, or of standard output: a table on a terminal, else CSV.

    Raises:
        SettingsError: the suffix names no format.
    """
    if output is None:
        return "table" if terminal else "csv"
    suffix = Path(output).suffix.lower()
    if suffix not in _SUFFIXES:
        raise SettingsError(
            f"{output}: {suffix or 'a name without a suffix'} doesn't say which format the results get. Choose "
            f"{', '.join(list(_SUFFIXES)[:-1])} or {list(_SUFFIXES)[-1]}, or set ",
            Argument("format"),
        )
    return _SUFFIXES[suffix]


@contextmanager
def open_writer(file: IO[Any], format: Format, columns: Columns, *, header: bool = True) -> Iterator[Write]:
    """What writes results into a file, as they come; of a table, the first 1,000 rows come together.

    Args:
        file: A text file open for writing; a binary one for Parquet. It stays open.
        format: `table`, `csv` or `tsv` with a header line, `jsonl` with one object per line, or `parquet`.
        columns: What a row shows.
        header: False where rows of CSV or TSV join others, and go without names.

    Yields:
        A function that writes some more rows, each with its values in the order of `columns.names`.
    """
    if format == "parquet":
        with _ParquetWriter(file, columns) as parquet:
            yield parquet.write
    elif format == "jsonl":
        yield partial(_write_json_lines, file, columns.names)
    elif format == "table":
        table = _TableWriter(file, columns)
        yield table.write
        table.finish()
    else:
        writer = csv.writer(_UnixLines(file), delimiter=DELIMITERS[format])
        if header:
            writer.writerow(columns.names)
        yield partial(_write_csv, writer, csv_safe=columns.csv_safe)


def read_predictions(file: BinaryIO, format: Format, columns: Columns, name: str) -> Iterator[Prediction]:
    """Read back what was written as CSV, TSV or JSON Lines, with the probabilities to six digits.

    Args:
        file: Read from where it stands; it stays open.
        format: `csv`, `tsv` or `jsonl`.
        columns: What its rows show.
        name: What to call the file in an error.

    Raises:
        InputError: it has other columns, or holds something else.
    """
    text = io.TextIOWrapper(file, **TEXT)
    lines = iter(partial(text.readline, _LONGEST_LINE), "")
    try:
        delimiter = DELIMITERS.get(format)
        rows = csv.DictReader(lines, delimiter=delimiter, strict=True) if delimiter else map(json.loads, lines)
        for row in rows:
            if delimiter and columns.csv_safe:
                row = {key: value.removeprefix("'") if value else value for key, value in row.items()}
            if list(row) != columns.names:
                raise ValueError(f"its columns are {', '.join(map(str, row))}, not {', '.join(columns.names)}")
            yield columns.prediction(row)
    except (ValueError, TypeError, KeyError, csv.Error, RecursionError) as error:
        raise InputError(f"{name}: not results of such a run: {error}. Choose another ", Argument("output")) from None
    finally:
        text.detach()


def printed_path(path: str) -> str:
    """A path as UTF-8 can write it: bytes of a file's name that are none become `\\xff`."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _write_csv(writer: Any, rows: Sequence[list[Value]], *, csv_safe: bool) -> None:
    # Probabilities have six digits: float32 has no more.
    texts = ([f"{value:.6f}" if isinstance(value, float) else value for value in row] for row in rows)
    writer.writerows(([_without_formula(value) for value in row] for row in texts) if csv_safe else texts)


def _without_formula(text: str | None) -> str | None:
    """A cell that no spreadsheet runs (owasp.org/www-community/attacks/CSV_Injection)."""
    return f"'{text}" if text and text.startswith(_FORMULA) else text


def _write_json_lines(file: IO[str], names: Sequence[str], rows: Sequence[list[Value]]) -> None:
    file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


class _UnixLines:
    """Ends rows with a line feed only, whatever csv ends them with.

    csv is left at carriage return and line feed, since before Python 3.11.9 and 3.12.3 it quoted a carriage return
    in a name only if it was part of the line ending (github.com/python/cpython/issues/67044). Debian 12 has 3.11.2.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


class _ParquetWriter:
    """Probabilities are float32, all other columns are strings; what is missing is null."""

    def __init__(self, file: IO[bytes], columns: Columns) -> None:
        import pyarrow
        import pyarrow.parquet

        types = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in columns.names]
        self._schema = pyarrow.schema(list(zip(columns.names, types, strict=True)))
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[list[Value]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write_group()
        self._writer.close()

    def write(self, rows: Sequence[list[Value]]) -> None:
        self._rows += rows
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow

        if self._rows:
            columns = [
                [printed_path(value) if isinstance(value, str) else value for value in column]
                for column in zip(*self._rows, strict=True)
            ]
            self._writer.write_table(pyarrow.table(columns, schema=self._schema))
        self._rows = []


class _TableWriter:
    """A table of aligned columns, as wide as the terminal, or 80 characters: a long path is shortened in its middle.

    The first rows decide how wide the columns are. What is longer later makes its line longer: only paths are cut.
    """

    def __init__(self, file: IO[str], columns: Columns) -> None:
        self._file, self._columns, self._digits = file, columns, 4
        self._first: list[list[Value]] = []
        self._widths: list[int] = []

    def write(self, rows: Sequence[list[Value]]) -> None:
        if self._widths:
            self._file.writelines(map(self._line, map(self._cells, rows)))
            return
        self._first += rows
        if len(self._first) > MEASURED_ROWS:
            self.finish()

    def finish(self) -> None:
        """Write what was only measured so far."""
        if not self._widths:
            self._widths = self._measure()
            header = list(self._shown(dict.fromkeys(self._columns.names)))
            self._file.writelines(map(self._line, [header, *map(self._cells, self._first)]))

    def _measure(self) -> list[int]:
        from rich.cells import cell_len
        from rich.console import Console

        names, console = self._columns.names, Console(file=self._file)
        for self._digits in (4, 2):  # fewer where they wouldn't fit
            header = list(self._shown(dict.fromkeys(names)))
            shown = [list(self._shown(dict(zip(names, row, strict=True))).values()) for row in self._first]
            widths = [max(map(cell_len, column)) for column in zip(header, *shown, strict=True)]
            room = console.width - sum(widths[1:-1]) - min(widths[-1], _SHORTEST_PATH) - len(_GAP) * len(widths[1:])
            if room >= min(widths[0], _SHORTEST_PATH):
                break
        return [min(widths[0], max(room, _SHORTEST_PATH)), *widths[1:]]

    def _cells(self, row: list[Value]) -> list[str]:
        path, *others = self._shown(dict(zip(self._columns.names, row, strict=True))).values()
        return [shorten(path, self._widths[0]), *others]

    def _line(self, cells: list[str]) -> str:
        from rich.cells import cell_len

        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, self._widths, strict=True))
        return _GAP.join(padded).rstrip() + "\n"

    def _shown(self, row: dict[str, Value]) -> dict[str, str]:
        """The cells of a row: with several classes, each has its probability beside it, or they wouldn't fit."""
        cells = {
            name: printable(f"{value:.{self._digits}f}" if isinstance(value, float) else value or "")
            for name, value in row.items()
            if name != "checkpoint"
        }
        if self._columns.top_k > 1:
            first = "label" if self._columns.min_probability is None else "guess"
            for rank in range(1, self._columns.top_k + 1):
                label, probability = (f"label_{rank}", f"probability_{rank}") if rank > 1 else (first, "probability")
                cells[label] = f"{cells[label]} {cells.pop(probability)}".strip()
        return cells


def shorten(text: str, width: int) -> str:
    """A text of at most `width` columns of a terminal: a longer one loses its middle."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    end = (width - 1) * 2 // 3  # the name of a file says more than where its path begins
    # Letters of some scripts take two columns: where half of one would fit, there is a space instead.
    return f"{set_cell_size(text, width - 1 - end).rstrip()}…{set_cell_size(text[::-1], end)[::-1].lstrip()}"
