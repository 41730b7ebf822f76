"""Results that an earlier run wrote as CSV or JSON Lines, read back to be gone on with."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from rnn_runtime.classifier import Classifier, Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.output import Format

CHECKED_AGAIN = 64  # results that are computed again, to see whether they are this model's
_NEARLY_EQUAL = 1e-3  # probabilities of one model, on different execution providers


def read_results(file: BinaryIO, style: Format, columns: Sequence[str], name: str) -> Iterator[Prediction]:
    """Read results from where a file is; what a killed process left of a last row is cut off.

    Args:
        file: Opened for reading and writing.
        style: `csv` or `jsonl`.
        columns: Those that it must have, as `result_columns` gives them.
        name: What to call the file in an error.

    Yields:
        A prediction a row, with the label and its probability.

    Raises:
        InputError: it has other columns, or doesn't hold results.
    """
    header = style == "csv"
    whole = 0
    for record in _whole_records(file, style):
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
                yield _prediction(row)
        except (ValueError, TypeError, KeyError, csv.Error, RecursionError) as error:
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
    again = classifier.predict([result.path for result in results if result.error is None])
    found = {prediction.path: prediction for prediction in again if prediction.error is None}
    for result in results:
        now = found.get(result.path)
        if now and abs((result.probability or 0) - (now.probability or 0)) > _NEARLY_EQUAL:
            raise InputError(
                f"{name}: was written by another model, or the images have changed: {result.path} is {result.label} "
                f"({result.probability:.3f}) there, and {now.label} ({now.probability:.3f}) with {classifier.path}; "
                "choose another --output"
            )


def _whole_records(file: BinaryIO, style: Format) -> Iterator[bytes]:
    """Rows with their line ends. In CSV, a quoted name may hold line breaks, and doubled quotes."""
    record = b""
    for line in file:
        record += line
        if record.endswith(b"\n") and not (style == "csv" and record.count(b'"') % 2):
            yield record
            record = b""


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


def _prediction(row: dict[str, Any]) -> Prediction:
    label, probability = row["label"] or None, row["probability"]
    if not isinstance(row["path"], str) or (label is None) == (not row["error"]):
        raise ValueError("a row with neither a label nor an error, or with both")
    if label is None:
        return Prediction(row["path"], None, None, error=str(row["error"]))
    return Prediction(row["path"], label, float(probability))
