"""Golden samples, replayed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_runtime import Classifier
from rnn_runtime.checks.self_check import cuda_tolerance, export_tolerance, self_check
from rnn_runtime.errors import ParityError
from rnn_runtime.model.difference import Difference
from rnn_train.checkpoint import Checkpoint
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
    result = run("rnn-onnx", "check", "--provider", "cpu")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_command_reports_agreement(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "check", digits_model, "--provider", "cpu")

    assert result.returncode == 0, result.stderr
    assert "on cpu, 11 golden samples agree with PyTorch: largest difference of logits" in result.stdout
    assert "labels equal 100.0 %" in result.stdout


def test_tolerances_of_the_command_count(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "check", digits_model, "--provider", "cpu", "--atol", "0", "--rtol", "0")

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


def sum_one_by_one(factors: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """A matrix product whose sums add one term after another, the order with the largest errors."""
    products = factors[:, :, None] * weights.T[None]
    return np.add.accumulate(products, axis=1, dtype=np.float32)[:, -1]


def logits_one_by_one(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    weights = {name: tensor.numpy() for name, tensor in checkpoint.weights.items()}
    steps = list((images[..., 0].astype(np.float32) / np.float32(255)).swapaxes(0, 1))
    for layer in range(checkpoint.spec.num_layers):
        hidden = np.zeros((len(images), checkpoint.spec.hidden_size), np.float32)
        bias = weights[f"rnn.bias_ih_l{layer}"] + weights[f"rnn.bias_hh_l{layer}"]
        for t, step in enumerate(steps):
            inputs = sum_one_by_one(step, weights[f"rnn.weight_ih_l{layer}"])
            recurrent = sum_one_by_one(hidden, weights[f"rnn.weight_hh_l{layer}"])
            steps[t] = hidden = np.tanh(inputs + recurrent + bias)
    logits: NDArray[np.float32] = sum_one_by_one(steps[-1], weights["linear.weight"]) + weights["linear.bias"]
    return logits


def test_the_tolerance_of_cuda_covers_sums_in_another_order_and_little_more(
    digits_checkpoint: Path, digits_model: Path
) -> None:
    metadata, checkpoint = Classifier(digits_model, provider="cpu").metadata, Checkpoint.load(digits_checkpoint)
    atol, rtol = cuda_tolerance(metadata)
    golden = metadata.golden

    found = logits_one_by_one(checkpoint, golden.images)

    assert not np.array_equal(found, golden.logits)  # it is another order
    assert Difference.between(found, golden.logits, atol=atol, rtol=rtol).within_tolerance
    assert rtol == export_tolerance(metadata)[1]
    assert export_tolerance(metadata)[0] < atol < 1e-3  # a weight that is off by 0.001 is still found out


def test_the_tolerance_of_tf32_is_that_of_float16(digits_model: Path) -> None:
    assert cuda_tolerance(Classifier(digits_model, provider="cpu").metadata, tf32=True) == (5e-2, 1e-2)


@pytest.mark.parametrize(
    "parity", [{}, {"rows": 3}, {"rows": [{}]}, {"rows": [{"pytorch_float64": {"max_absolute": "x"}}]}]
)
def test_metadata_without_a_comparison_gives_the_tolerance_of_the_export(
    digits_model: Path, parity: dict[str, Any]
) -> None:
    metadata = replace(Classifier(digits_model, provider="cpu").metadata, parity=parity)

    assert cuda_tolerance(metadata) == (1e-5, 1e-4)
