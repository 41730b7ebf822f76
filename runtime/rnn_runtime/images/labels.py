"""The labels of image files in a table, a CSV with the columns path and label."""

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rnn_runtime.errors import InputError
from rnn_runtime.text import count_of, shorten

# What the columns are called, in small letters.
_PATHS = {"path", "file", "filename", "file_name", "filepath", "image", "name"}
_LABELS = {"label", "class", "category", "target"}
_LONGEST = 60  # characters of a list of folders or classes


class LabeledFile(NamedTuple):
    """A row of a table.

    Attributes:
        line: Its line in the table, from 1 on.
        path: The file, which exists.
        label: Its class, in Unicode's form NFC.
    """

    line: int
    path: str
    label: str


def read_labels(
    table: str | Path, folders: Sequence[str], class_names: Sequence[str] | None = None
) -> list[LabeledFile]:
    """Read which file has which label.

    The delimiter is the tab, semicolon or comma of the first line. If that line names the columns path and label, there
    may be others. If not, it is a row, and the path comes first.

    Args:
        table: The CSV, in UTF-8.
        folders: What paths in it are relative to; the first one counts in which the file exists.
        class_names: The classes that labels may be; None for any.

    Raises:
        InputError: the table can't be read, or a row can't be used: the text names its line.
    """
    files: dict[str, LabeledFile] = {}
    for line, name, label in _read_rows(table):
        place = f"{table}: line {line}"
        if not name or not label:
            raise InputError(f"{place}: no {'label' if name else 'path'}")
        if class_names is not None and label not in class_names:
            known = shorten(", ".join(class_names), _LONGEST)
            raise InputError(f"{place}: the label {label!r} is none of the model's classes: {known}")
        # macOS writes names of files in another form than tables have them
        forms = dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])
        places = (os.path.join(folder, form) for folder in folders for form in forms)
        path = next(filter(os.path.isfile, places), None)
        if path is None:
            where = shorten(", ".join(folder or os.curdir for folder in folders), _LONGEST)
            hint = ". If this line names the columns, call them path and label" if line == 1 else ""
            raise InputError(f"{place}: there is no file {name!r} in {where}{hint}")
        first = files.setdefault(os.path.abspath(path), LabeledFile(line, path, label))
        if first.line != line:
            raise InputError(f"{place}: {name!r} is in line {first.line} already. Keep one of them")
    if not files:
        raise InputError(f"{table}: no rows. It must have the columns path and label")
    return list(files.values())


def _read_rows(table: str | Path) -> Iterator[tuple[int, str, str]]:
    """Line, path and label of each row that isn't empty."""
    try:
        text = Path(table).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{table}: {error.strerror}. It must be a CSV with the columns path and label") from None
    except UnicodeDecodeError:
        raise InputError(f"{table}: not text in UTF-8. Save it as CSV in UTF-8") from None
    delimiter = next((mark for mark in "\t;" if mark in text.partition("\n")[0]), ",")
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    at: tuple[int, int] | None = None
    width = 0
    try:
        for row in rows:
            place, values = f"{table}: line {rows.line_num}", [value.strip() for value in row]
            if not any(values):
                continue
            if at is None:
                width, at = len(values), _columns(values, place)
                if at is not None:
                    continue
                at = 0, 1
            if len(values) != width:
                raise InputError(f"{place}: {count_of(len(values), 'value')} instead of {width}")
            yield rows.line_num, values[at[0]], unicodedata.normalize("NFC", values[at[1]])
    except csv.Error as error:
        raise InputError(f"{table}: line {rows.line_num}: {error}") from None


def _columns(values: Sequence[str], place: str) -> tuple[int, int] | None:
    """The columns of path and label, if a row names them."""
    names = [value.lower() for value in values]
    path, label = (next((i for i, name in enumerate(names) if name in known), None) for known in (_PATHS, _LABELS))
    if path is not None and label is not None:
        return path, label
    if len(values) != 2:
        columns = count_of(len(values), "column")
        raise InputError(
            f"{place}: {columns}, not named path and label. Put a line with the names of the columns first"
        )
    return None
