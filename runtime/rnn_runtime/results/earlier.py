"""Results that an earlier run wrote as CSV, TSV or JSON Lines, read back to be continued."""

import csv
import heapq
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from rnn_runtime.classifier import Classifier, Prediction
from rnn_runtime.errors import InputError
from rnn_runtime.results.write import DELIMITERS, Columns, Format

# Results that are computed again, to see whether they are this model's: the least certain ones, since two models may
# agree on easy images.
_CHECKED_AGAIN = 64
_LONGEST_RECORD = 1 << 20  # bytes; a path has at most 4096
# How much probabilities of one model, where it is least certain, differ between execution providers at most; with int8,
# also between batches, because each is quantized as a whole.
_NEARLY_EQUAL, _NEARLY_EQUAL_INT8 = 0.01, 0.05
_LAST_DIGIT = 1e-6  # of a probability in a file of text


class EarlierResults:
    """The predictions in a file of results; what a killed process left of a last row is cut off.

    Iterate over it once, to the end: a prediction per row, with the labels and probabilities. Then `check_model`.

    Args:
        file: Opened for reading and writing.
        format: `csv`, `tsv` or `jsonl`.
        columns: The columns that it must have, with the checkpoint and the minimum probability of this run.
        class_names: The labels that it may have.
        name: What to call the file in an error.

    Raises:
        InputError: while iterating: it has other columns, another checkpoint or minimum probability, or doesn't hold
            results.
    """

    def __init__(self, file: BinaryIO, format: Format, columns: Columns, class_names: Sequence[str], name: str) -> None:
        self._file, self._format, self._name = file, format, name
        self._settings, self._columns = columns, columns.names
        self._class_names = frozenset(class_names)
        # a heap whose first element is the most certain one
        self._least_certain: list[tuple[float, int, Prediction]] = []

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
                self._remember(prediction, number)
                yield prediction
        self._file.truncate(whole)

    def check_model(self, classifier: Classifier) -> None:
        """Compute the least certain results again, to see whether they are those of this model.

        Images that can't be read any more don't count.

        Raises:
            InputError: they are another model's.
        """
        results = [result for _, _, result in self._least_certain]
        again = classifier.predict([result.path for result in results], top_k=len(classifier.class_names))
        # Compared by the label that the file has: of a tie, it may be either.
        compared = sorted(
            (abs((result.probability or 0.0) - dict(now.top)[str(result.label)]), i)
            for i, (result, now) in enumerate(zip(results, again, strict=True))
            if now.error is None
        )
        if not compared:
            return
        median, i = compared[len(compared) // 2]
        int8 = classifier.metadata.export.get("precision") == "int8"
        if median > (_NEARLY_EQUAL_INT8 if int8 else _NEARLY_EQUAL):
            result, now = results[i], again[i]
            raise InputError(
                f"{self._name}: written by another model, or the images have changed: {result.path} is "
                f"{result.label} ({result.probability:.3f}) there, and with {classifier.path} {now.label} "
                f"({now.probability:.3f}). Delete the file, or choose another `output`"
            )

    def _remember(self, result: Prediction, number: int) -> None:
        if result.probability is None:
            return
        entry = (-result.probability, number, result)
        if len(self._least_certain) < _CHECKED_AGAIN:
            heapq.heappush(self._least_certain, entry)
        else:
            heapq.heappushpop(self._least_certain, entry)

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
        prediction = self._prediction(row)
        self._check_settings(row, prediction)
        return prediction

    def _check_settings(self, row: dict[str, Any], prediction: Prediction) -> None:
        """Rows that are added must mean the same as those that are there."""
        checkpoint, limit = self._settings.checkpoint, self._settings.min_probability
        if checkpoint is not None and row["checkpoint"] != checkpoint:
            raise InputError(
                f"{self._name}: written with checkpoint {str(row['checkpoint'])[:12]}, and this model has "
                f"{checkpoint[:12]}. Use the same model as before, or choose another `output`"
            )
        if limit is None or prediction.probability is None or abs(prediction.probability - limit) <= _LAST_DIGIT:
            return
        if (row["label"] or None) != (None if self._settings.is_below(prediction) else prediction.label):
            raise InputError(
                f"{self._name}: written with another `min_probability` than {limit}: {prediction.path} has label "
                f"{row['label'] or '(empty)'} and probability {prediction.probability}. Set it as before, or choose "
                "another `output`"
            )

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
