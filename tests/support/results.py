"""What commands write, read back."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def csv_rows(text: str, delimiter: str = ",") -> list[Row]:
    """The rows of CSV, by the names of their columns."""
    # line ends within a name are to stay what they are, as the csv module's documentation says
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def jsonl_rows(text: str) -> list[Row]:
    """The results in JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]


def read_results(path: Path) -> list[Row]:
    """The results in a file of `rnn-infer`: CSV, or TSV or JSON Lines if its name says so."""
    text = path.read_bytes().decode(errors="surrogateescape")
    if ".jsonl" in path.suffixes:
        return jsonl_rows(text)
    return csv_rows(text, "\t" if ".tsv" in path.suffixes else ",")


def assert_same_results(found: list[Row], expected: list[Row]) -> None:
    """Assert that rows are the same, but for how sums in batches of another size are rounded."""
    assert [_without_probabilities(row) for row in found] == [_without_probabilities(row) for row in expected]
    left, right = (
        [float(value or -1) for row in rows for name, value in row.items() if name.startswith("probability")]
        for rows in (found, expected)
    )
    np.testing.assert_allclose(left, right, atol=1e-5)


def _without_probabilities(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("probability")}
