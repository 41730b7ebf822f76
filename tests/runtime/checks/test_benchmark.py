"""Speed by batch size."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_runtime import Classifier
from rnn_runtime.checks.benchmark import Speed, measure_speed, write_speeds
from rnn_runtime.errors import InputError
from tests.support.commands import Run
from tests.support.results import csv_rows


def test_each_batch_size_is_timed(digits_model: Path) -> None:
    speeds = measure_speed(Classifier(digits_model, provider="cpu"), batch_sizes=(1, 5), seconds=0.05)

    assert [speed.batch_size for speed in speeds] == [1, 5]
    for speed in speeds:
        assert 0 < speed.p50_ms <= speed.p90_ms <= speed.p99_ms
        assert speed.runs >= 10
        assert speed.images_per_second > 0


@pytest.mark.parametrize("options", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"seconds": 0}])
def test_nothing_to_time_is_an_input_error(digits_model: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="at least 1 and seconds above 0"):
        measure_speed(Classifier(digits_model, provider="cpu"), **options)  # type: ignore[arg-type]


def test_a_batch_that_is_too_large_is_one_line(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "benchmark", digits_model, "--batch-size", "16777216")

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "at most 8,388,608 fit into 512 MiB. Choose a smaller batch size" in result.stderr


def test_slow_runs_are_made_three_times(digits_model: Path) -> None:
    class SlowClassifier(Classifier):
        def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            time.sleep(0.05)
            return super().predict_proba(images)

    (speed,) = measure_speed(SlowClassifier(digits_model, "cpu"), batch_sizes=(1,), seconds=0.01)

    assert speed.runs == 3


@pytest.mark.slow
def test_command_prints_a_row_a_batch_size(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "benchmark", digits_model, "--provider", "cpu")

    rows = csv_rows(result.stdout)
    assert [row["batch_size"] for row in rows] == ["1", "8", "32", "64", "256", "1024"]
    assert all(float(row["images_per_second"]) > 0 for row in rows)


def test_command_times_the_batch_size_that_was_asked_for(run: Run, digits_model: Path) -> None:
    options = ("--provider", "cpu", "--batch-size", "5", "--format", "jsonl")

    result = run("rnn-onnx", "benchmark", digits_model, *options)

    assert [json.loads(line)["batch_size"] for line in result.stdout.splitlines()] == [5]


def test_speeds_are_written_as_json_lines_and_as_a_table() -> None:
    speed = Speed(8, 1234.5, 6.0, 7.0, 8.25, 100)
    jsonl, table = io.StringIO(), io.StringIO()

    write_speeds([speed], jsonl, "jsonl")
    write_speeds([speed], table, "table")

    assert Speed(**json.loads(jsonl.getvalue())) == speed
    for text in ("images_per_second", "1234.500", "8.250"):
        assert text in table.getvalue()
