"""Which options of `rnn-infer` go together, and where each mode prints."""

import csv
import io
from pathlib import Path

import pytest

from tests.support.commands import Run


def test_benchmark_beside_images_leaves_stdout_to_their_results(
    run: Run, digits_model: Path, digits_images: Path
) -> None:
    arguments = ("--model", digits_model, "--provider", "cpu", "--benchmark", "--batch-size", "4")

    result = run("rnn-infer", *arguments, "--format", "csv", digits_images / "3")

    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == len(list((digits_images / "3").iterdir()))
    assert all(list(row) == ["path", "label", "probability", "error"] for row in rows)
    assert "batch_size,images_per_second,p50_ms,p90_ms,p99_ms,runs\n4," in result.stderr


def test_benchmark_prints_to_stdout_where_results_go_to_a_file(
    run: Run, tmp_path: Path, digits_model: Path, digits_images: Path
) -> None:
    arguments = ("--model", digits_model, "--provider", "cpu", "--benchmark", "--batch-size", "4")

    result = run("rnn-infer", *arguments, "--output", "out.csv", digits_images / "3")

    assert result.stdout.startswith("batch_size,images_per_second,p50_ms,p90_ms,p99_ms,runs\n4,")
    assert (tmp_path / "out.csv").read_text().startswith("path,label,probability,error\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--benchmark", "--atol", "1"), "--atol is a tolerance of --self-check. Add --self-check"),
        (("--rtol", "1", "a.png"), "--rtol is a tolerance of --self-check. Add --self-check"),
        (("--doctor", "a.png"), "--doctor classifies no images and measures nothing. Run it alone"),
        (("--self-check", "--output", "a.csv"), "--output is for classifying images. Name some, or leave it out"),
        (("--benchmark", "--summary", "a"), "--summary is for classifying images. Name some, or leave it out"),
        (("--resume", "a.png"), "--resume continues the results in a file. Add --output"),
        (("--null", "a.png"), "--null is for names on standard input. Add -, or leave it out"),
        (("--output", "a", "--summary", "./a", "b.png"), "--summary and --output are the same file. Choose another"),
        (("--provider", "cpu", "--tf32", "a.png"), "--tf32 does nothing on the CPU. Leave it out, or choose"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_go_together_are_refused(run: Run, arguments: tuple[str, ...], problem: str) -> None:
    result = run("rnn-infer", *arguments)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {problem}")
    assert result.stderr.endswith("; all options: rnn-infer --help\n")
