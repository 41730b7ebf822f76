"""Results that an earlier run wrote as CSV or JSON Lines, read back to be gone on with."""

import csv
import io
import json
from collections.abc import Iterator, Sequence, Set
from typing import Any, BinaryIO

from rnn_runtime.classifier import Classifier, Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.results.write import Format

CHECKED_AGAIN = 64  # results that are computed again, to see whether they are this model's
_LONGEST_RECORD = 1 << 20  # bytes; a path has at most 4096
_NEARLY_EQUAL = 1e-3  # probabilities of one model, on different execution providers


def read_results(
    file: BinaryIO, style: Format, columns: Sequence[str], class_names: Sequence[str], name: str
) -> Iterator[Prediction]:
    """Read results from where a file is; what a killed process left of a last row is cut off.

    Args:
        file: Opened for reading and writing.
        style: `csv` or `jsonl`.
        columns: Those that it must have, as `result_columns` gives them.
        class_names: The labels that it may have.
        name: What to call the file in an error.

    Yields:
        A prediction a row, with the label and its probability.

    Raises:
        InputError: it has other columns, or doesn't hold results.
    """
    header = style == "csv"
    whole = 0
    known = frozenset(class_names)
    for record in _whole_records(file, style, name):
        try:
            row = _parse(record, style)
            if style == "jsonl" and "run" in row:
                row = None
            elif header:
                _check_columns(list(row), columns, name)
                header, row = False, None
            else:
                row = dict(zip(columns, row, strict=True)) if style == "csv" else row
                _check_columns(list(row), columns, name)
                yield _prediction(row, known)
        except (ValueError, TypeError, KeyError, ArithmeticError, csv.Error, RecursionError) as error:
            raise InputError(
                f"{name}: byte {whole:,}: not a result of rnn-infer ({error}); choose another --output"
            ) from None
        whole += len(record)
    file.truncate(whole)


def check_same_model(classifier: Classifier, results: Sequence[Prediction], name: str) -> None:
    """Compute some results again, to see whether they are those of this model.

    Args:
        classifier: The model.
        results: Earlier results. Images that can't be read any more don't count.
        name: What to call the file in an error.

    Raises:
        InputError: they aren't.
    """
    readable = [result for result in results if result.error is None]
    again = classifier.predict([result.path for result in readable], top_k=len(classifier.class_names))
    for result, now in zip(readable, again, strict=True):
        if now.error is not None:
            continue
        # What this model gives the label that stands there: of a tie, either label may.
        probability = dict(now.top)[str(result.label)]
        if abs((result.probability or 0.0) - probability) > _NEARLY_EQUAL:
            raise InputError(
                f"{name}: was written by another model, or the images have changed: {result.path} is {result.label} "
                f"({result.probability:.3f}) there, and with {classifier.path} {now.label} ({now.probability:.3f}); "
                "remove it, or choose another --output"
            )


def _whole_records(file: BinaryIO, style: Format, name: str) -> Iterator[bytes]:
    """Rows with their line ends. In CSV, a quoted name may hold line breaks, and doubled quotes."""
    lines: list[bytes] = []
    length = quotes = 0
    for line in file:
        lines.append(line)
        length += len(line)
        quotes += line.count(b'"') if style == "csv" else 0
        if line.endswith(b"\n") and quotes % 2 == 0:
            yield b"".join(lines)
            lines, length, quotes = [], 0, 0
        elif length > _LONGEST_RECORD:
            raise InputError(f"{name}: a row that doesn't end, for a missing quote perhaps; mend or remove it")


def _parse(record: bytes, style: Format) -> Any:
    text = record.decode("utf-8", "surrogateescape")
    if style == "csv":
        return next(csv.reader(io.StringIO(text, newline=""), strict=True))
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("a row that is no object")
    return row


def _check_columns(found: list[str], expected: Sequence[str], name: str) -> None:
    if found != list(expected):
        raise InputError(
            f"{name}: its columns are {', '.join(map(str, found))}, and this run's {', '.join(expected)}; give the "
            "same --top-k and --labels-from-folders as before, or choose another --output"
        )


def _prediction(row: dict[str, Any], class_names: Set[str]) -> Prediction:
    path, label, error = row["path"], row["label"] or None, row["error"] or None
    if not isinstance(path, str) or not isinstance(label, str | None) or not isinstance(error, str | None):
        raise ValueError("a path, label or error that is no text")
    if (label is None) == (error is None):
        raise ValueError("a row with neither a label nor an error, or with both")
    if label is None:
        return Prediction(path, None, None, error=error)
    probability = row["probability"]
    if label not in class_names or isinstance(probability, bool) or not 0 <= float(probability) <= 1:
        raise ValueError(f"a label that isn't this model's, or no probability: {label}, {probability}")
    return Prediction(path, label, float(probability))
