"""Results that an earlier run wrote as CSV, TSV or JSON Lines, read back to be continued."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from rnn_runtime.classifier import Classifier, Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.results.write import DELIMITERS, Format

_CHECKED_AGAIN = 64  # results that are computed again, to see whether they are this model's
_LONGEST_RECORD = 1 << 20  # bytes; a path has at most 4096
_NEARLY_EQUAL = 1e-3  # probabilities of one model, on different execution providers


class EarlierResults:
    """The predictions in a file of results; what a killed process left of a last row is cut off.

    Iterate over it once, to the end: a prediction per row, with the labels and probabilities. Then `check_model`.

    Args:
        file: Opened for reading and writing.
        format: `csv`, `tsv` or `jsonl`.
        columns: The columns that it must have.
        class_names: The labels that it may have.
        name: What to call the file in an error.

    Raises:
        InputError: while iterating: it has other columns, or doesn't hold results.
    """

    def __init__(
        self, file: BinaryIO, format: Format, columns: Sequence[str], class_names: Sequence[str], name: str
    ) -> None:
        self._file, self._format, self._columns, self._name = file, format, list(columns), name
        self._class_names = frozenset(class_names)
        self._first: list[Prediction] = []

    def __iter__(self) -> Iterator[Prediction]:
        whole = 0
        for number, record in enumerate(self._whole_records()):
            try:
                prediction = self._read(record, first=number == 0)
            except (ValueError, TypeError, KeyError, ArithmeticError, csv.Error, RecursionError) as error:
                raise InputError(
                    f"{self._name}: byte {whole:,}: not a result of rnn-infer ({error}). Choose another `output`"
                ) from None
            whole += len(record)
            if prediction is not None:
                if prediction.label is not None and len(self._first) < _CHECKED_AGAIN:
                    self._first.append(prediction)
                yield prediction
        self._file.truncate(whole)

    def check_model(self, classifier: Classifier) -> None:
        """Compute the first results again, to see whether they are those of this model.

        Images that can't be read any more don't count.

        Raises:
            InputError: they are another model's.
        """
        again = classifier.predict([result.path for result in self._first], top_k=len(classifier.class_names))
        for result, now in zip(self._first, again, strict=True):
            if now.error is not None:
                continue
            # Compared by the label that the file has: of a tie, it may be either.
            probability = dict(now.top)[str(result.label)]
            if abs((result.probability or 0.0) - probability) > _NEARLY_EQUAL:
                raise InputError(
                    f"{self._name}: written by another model, or the images have changed: {result.path} is "
                    f"{result.label} ({result.probability:.3f}) there, and with {classifier.path} {now.label} "
                    f"({now.probability:.3f}). Delete the file, or choose another `output`"
                )

    def _whole_records(self) -> Iterator[bytes]:
        """Rows with their line ends. In CSV, a quoted name may hold line breaks, and doubled quotes."""
        lines: list[bytes] = []
        length = quotes = 0
        for line in self._file:
            lines.append(line)
            length += len(line)
            quotes += line.count(b'"') if self._format in DELIMITERS else 0
            if line.endswith(b"\n") and quotes % 2 == 0:
                yield b"".join(lines)
                lines, length, quotes = [], 0, 0
            elif length > _LONGEST_RECORD:
                raise InputError(f"{self._name}: unterminated row (a missing quote?). Fix or delete the file")

    def _read(self, record: bytes, *, first: bool) -> Prediction | None:
        """The result in a row; None for the names of columns."""
        text = record.decode("utf-8", "surrogateescape")
        if self._format in DELIMITERS:
            lines = io.StringIO(text, newline="")
            values = next(csv.reader(lines, delimiter=DELIMITERS[self._format], strict=True))
            if first:
                self._check_columns(values)
                return None
            row: dict[str, Any] = dict(zip(self._columns, values, strict=True))
        else:
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError("a row that is not an object")
            self._check_columns(list(row))
        return self._prediction(row)

    def _check_columns(self, found: list[str]) -> None:
        if found != self._columns:
            raise InputError(
                f"{self._name}: its columns are {', '.join(map(str, found))}, and this run's "
                f"{', '.join(self._columns)}. Set the options that change columns as before, `top_k` for instance, or "
                "choose another `output`"
            )

    def _prediction(self, row: dict[str, Any]) -> Prediction:
        path, label, error = row["path"], row.get("guess", row["label"]) or None, row["error"] or None
        if not isinstance(path, str) or not isinstance(label, str | None) or not isinstance(error, str | None):
            raise ValueError("a path, label or error that is not text")
        if (label is None) == (error is None):
            raise ValueError("a row with neither a label nor an error, or with both")
        if label is None:
            return Prediction(path, None, None, error=error)
        top = []
        for column in (column for column in self._columns if column.startswith("probability")):
            rank = column.removeprefix("probability")
            label, probability = row[f"label{rank}"] if rank else label, row[column]
            if label not in self._class_names or isinstance(probability, bool) or not 0 <= float(probability) <= 1:
                raise ValueError(f"a label that isn't this model's, or no probability: {label}, {probability}")
            top.append((label, float(probability)))
        return Prediction(path, *top[0], tuple(top))
