"""Golden samples, replayed."""

from pathlib import Path

import numpy as np
import pytest

from rnn_runtime import Classifier
from rnn_runtime.checks.self_check import self_check
from rnn_runtime.errors import ParityError
from rnn_runtime.model.difference import Difference
from tests.support.commands import Run
from tests.support.tampered_models import change_weight


def test_fresh_model_agrees_with_pytorch(digits_model: Path) -> None:
    difference = self_check(Classifier(digits_model, provider="cpu"))

    assert difference.equal_labels == 1
    assert difference.max_absolute < 1e-4


def test_tampered_weight_is_found_out(run: Run, tmp_path: Path, digits_model: Path) -> None:
    change_weight(digits_model, tmp_path / "model.onnx", "linear.bias", lambda bias: bias + 1e-3)

    with pytest.raises(ParityError, match=r"differ from PyTorch's by up to 1\.0"):
        self_check(Classifier(tmp_path / "model.onnx", provider="cpu"))
    result = run("rnn-infer", "--provider", "cpu", "--self-check")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_command_reports_agreement(run: Run, digits_model: Path) -> None:
    result = run("rnn-infer", "--model", digits_model, "--provider", "cpu", "--self-check")

    assert result.returncode == 0, result.stderr
    assert "on cpu, 11 golden samples agree with PyTorch: largest difference of logits" in result.stdout
    assert "labels equal 100.0 %" in result.stdout


def test_tolerances_of_the_command_count(run: Run, digits_model: Path) -> None:
    result = run(
        "rnn-infer", "--model", digits_model, "--provider", "cpu", "--self-check", "--atol", "0", "--rtol", "0"
    )

    assert result.returncode == 1
    assert "--atol 0 and --rtol 0" in result.stderr


def test_difference_is_absolute_and_relative_to_largest_logit() -> None:
    reference = np.array([[1.0, -4.0], [0.0, 2.0]])
    actual = np.array([[1.0, -4.1], [2.5, 2.0]])

    difference = Difference.between(actual, reference, atol=0.1, rtol=0)

    assert difference.max_absolute == 2.5
    assert difference.max_relative == 1.25
    assert difference.equal_labels == 0.5
    assert not difference.within_tolerance


@pytest.mark.parametrize(("atol", "rtol", "within"), [(0.11, 0, True), (0, 0.03, True), (0.05, 0.01, False)])
def test_tolerance_is_numpys_rule(atol: float, rtol: float, within: bool) -> None:
    difference = Difference.between(np.array([[4.1, 0.0]]), np.array([[4.0, 0.0]]), atol=atol, rtol=rtol)

    assert difference.within_tolerance == within


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_beyond_any_tolerance(value: float) -> None:
    logits = np.array([[value, 0.0]])

    assert not Difference.between(logits, logits, atol=1e9, rtol=1e9).within_tolerance
