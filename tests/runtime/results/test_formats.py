"""Formats of results: each is what the file's ending says, or what --format says."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest

from rnn_runtime import Classifier
from rnn_runtime.errors import SettingsError
from rnn_runtime.results.run import RunOptions, classify_files
from tests.support.commands import Run, RunProcess, modules_from


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder: model.onnx, and images/ with five digits and a file that is none."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for i, path in enumerate(sorted(digits_images.rglob("*.png"))[:5]):
        shutil.copy(path, tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    return tmp_path


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    if path.suffix in (".jsonl", ".ndjson"):
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return [
            {name: value or None for name, value in row.items()} for row in csv.DictReader(file, delimiter=delimiter)
        ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.ndjson", "a.parquet", "a.CSV"])
def test_a_file_is_written_as_its_ending_says(
    run: Run, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    images = sorted(map(str, Path("images").iterdir()))
    expected = Classifier("model.onnx", provider="cpu").predict(images, top_k=2)

    result = run("rnn-infer", "--output", name, "--top-k", "2", "images")

    rows = rows_of(folder / name)
    assert result.returncode == 1  # one image can't be read
    assert [row["path"] for row in rows] == [prediction.path for prediction in expected]
    assert [row["label"] for row in rows] == [prediction.label for prediction in expected]
    assert [row["error"] for row in rows] == [prediction.error for prediction in expected]
    for row, prediction in zip(rows, expected, strict=True):
        found = [float(row[name]) for name in ("probability", "probability_2") if row[name] is not None]
        assert found == pytest.approx([probability for _, probability in prediction.top], abs=1e-6)


@pytest.mark.parametrize("name", ["a.json", "a.xlsx", "a", "a.txt", "a.csv.gz"])
def test_another_ending_needs_a_format(run: Run, folder: Path, name: str) -> None:
    refused = run("rnn-infer", "--provider", "cpu", "--output", name, "images")
    written = run("rnn-infer", "--output", name, "--format", "csv", "images")

    assert refused.returncode == 2
    assert (
        "doesn't say which format the results get. Choose .csv, .tsv, .jsonl, .ndjson or .parquet, or set --format"
        in (refused.stderr)
    )
    assert len(refused.stderr.splitlines()) == 1
    assert written.returncode == 1
    assert (folder / name).read_text().startswith("path,label,probability,error\n")


def test_json_lines_are_results_of_one_shape(run: Run, folder: Path) -> None:
    run("rnn-infer", "--output", "a.jsonl", "images")

    rows = rows_of(folder / "a.jsonl")
    assert [list(row) for row in rows] == [["path", "label", "probability", "error"]] * 6


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_every_row_names_the_checkpoint_if_asked_for(run: Run, folder: Path, name: str) -> None:
    checkpoint = Classifier(folder / "model.onnx", provider="cpu").metadata.checkpoint_sha256

    run("rnn-infer", "--output", name, "--checkpoint-column", "images")

    assert {row["checkpoint"] for row in rows_of(folder / name)} == {checkpoint}


def test_a_spreadsheet_runs_no_name_if_that_is_asked_for(run: Run, folder: Path) -> None:
    shutil.copy(next((folder / "images").iterdir()), folder / "=cmd.png")

    run("rnn-infer", "--output", "a.csv", "--csv-safe", "=cmd.png")
    other = run("rnn-infer", "--output", "a.jsonl", "--csv-safe", "=cmd.png")

    assert (folder / "a.csv").read_text().splitlines()[1].startswith("'=cmd.png,")
    assert other.stderr.startswith("Error: --csv-safe does nothing for jsonl. Leave it out")


def test_parquet_has_types_that_pandas_reads(run: Run, folder: Path) -> None:
    run("rnn-infer", "--output", "a.parquet", "images")

    frame = pandas.read_parquet(folder / "a.parquet")
    assert frame["probability"].dtype == "float32"
    assert list(frame["error"].isna()) == [True] * 5 + [False]
    assert frame["label"][:5].notna().all()


def test_parquet_of_no_image_is_a_table_without_rows(folder: Path) -> None:
    classify_files(Classifier(folder / "model.onnx", provider="cpu"), [], folder / "a.parquet")

    assert rows_of(folder / "a.parquet") == []


def test_names_that_are_not_utf_8_are_escaped_in_parquet(run: Run, folder: Path) -> None:
    shutil.copy(folder / "images" / "0.png", folder / "images" / os.fsdecode(b"\xff.png"))

    run("rnn-infer", "--output", "a.parquet", "images")

    assert "images/\\xff.png" in [row["path"] for row in rows_of(folder / "a.parquet")]


def test_parquet_is_not_for_standard_output_or_resuming(run: Run, folder: Path) -> None:
    printed = run("rnn-infer", "--format", "parquet", "images")
    resumed = run("rnn-infer", "--output", "a.parquet", "--resume", "images")

    assert (printed.returncode, resumed.returncode) == (2, 2)
    assert "--format parquet needs a file. Set --output" in printed.stderr
    assert "--resume continues results in a file of csv, tsv, jsonl" in resumed.stderr
    assert not (folder / "a.parquet").exists()


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        ("raise ModuleNotFoundError", "pyarrow is not installed. Install it with: pip install pyarrow"),
        (
            "raise ImportError('pyarrow requires NumPy 2.0 or newer')",
            "pyarrow can't be imported: pyarrow requires NumPy 2.0 or newer. "
            "Repair it with: pip install --upgrade pyarrow numpy",
        ),
    ],
)
def test_parquet_without_a_usable_pyarrow_is_exit_code_3(
    run_process: RunProcess, folder: Path, failure: str, problem: str
) -> None:
    # An import that fails stands in for a package that isn't installed.
    (folder / "modules").mkdir()
    (folder / "modules" / "pyarrow.py").write_text(f"{failure}\n")

    arguments = ("--provider", "cpu", "--output", "a.parquet", "images")

    result = run_process("rnn-infer", *arguments, env=modules_from(folder / "modules"))

    assert result.returncode == 3
    assert result.stderr == f"Error: {problem}\n"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_below_the_minimum_probability_the_label_is_empty(run: Run, folder: Path, name: str) -> None:
    run("rnn-infer", "--output", f"all-{name}", "images")
    probabilities = [float(row["probability"]) for row in rows_of(folder / f"all-{name}") if row["probability"]]
    limit = sorted(probabilities)[2]

    result = run("rnn-infer", "--output", name, "--min-probability", limit, "--summary", "summary.json", "images")

    before, rows = rows_of(folder / f"all-{name}"), rows_of(folder / name)
    assert list(rows[0]) == ["path", "label", "guess", "probability", "error"]
    assert [row["guess"] for row in rows] == [row["label"] for row in before]
    for row in rows[:5]:
        assert row["label"] == (row["guess"] if float(row["probability"]) >= limit else None)
    below = sum(row["label"] is None for row in rows[:5])
    assert 1 <= below <= 3
    assert f"{below} without a label" in result.stderr
    assert json.loads((folder / "summary.json").read_text())["below_min_probability"] == below


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_an_evaluation_shows_coverage_and_accuracy_of_labels(
    run: Run, folder: Path, digits_images: Path, rank: int
) -> None:
    shutil.copytree(digits_images, folder / "true")
    arguments = ("-r", "--labels-from-folders", "--output", "a.csv", "true")
    whole = run("rnn-infer", *arguments)
    rows = rows_of(folder / "a.csv")
    limit = sorted(float(row["probability"]) for row in rows)[rank * (len(rows) - 1) // 4] + (rank == 4)
    limit = min(limit, 1.0)

    result = run("rnn-infer", *arguments, "--min-probability", limit, "--summary", "summary.json")

    labeled = [row for row in rows_of(folder / "a.csv") if row["label"]]
    right = sum(row["label"] == row["true_label"] for row in labeled)
    share = f"{len(labeled)} of {len(rows)} images ({100 * len(labeled) / len(rows):.2f} %)"
    accuracy = f", accuracy of these: {100 * right / len(labeled):.2f} %" if labeled else ""
    assert result.stdout == f"{whole.stdout}With a label (probability at least {limit:g}): {share}{accuracy}\n"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["labeled"], summary["labeled_correct"]) == (len(labeled), right)


def test_a_minimum_probability_is_from_0_to_1() -> None:
    with pytest.raises(SettingsError, match="`min_probability` must be a number from 0 to 1, not 50"):
        RunOptions(min_probability=50)


def test_an_output_is_a_path(folder: Path) -> None:
    with pytest.raises(SettingsError, match="`output` must be a path, not 5"):
        classify_files(Classifier(folder / "model.onnx", provider="cpu"), [], 5)  # type: ignore[arg-type]
