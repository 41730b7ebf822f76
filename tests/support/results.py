"""What commands write, read back."""

import csv
import io
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def csv_rows(text: str) -> list[Row]:
    """The rows of CSV, by the names of their columns."""
    # line ends within a name are to stay what they are, as the csv module's documentation says
    return list(csv.DictReader(io.StringIO(text, newline="")))


def jsonl_rows(text: str) -> list[Row]:
    """The results in JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]


def read_results(path: Path) -> list[Row]:
    """The results in a file of `rnn-infer`: CSV, or JSON Lines if its name says so."""
    text = path.read_bytes().decode(errors="surrogateescape")
    return jsonl_rows(text) if ".jsonl" in path.suffixes else csv_rows(text)
