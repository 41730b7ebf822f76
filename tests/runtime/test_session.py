"""Execution providers: the one that was asked for, or an error."""

import os
from pathlib import Path

import onnx
import onnxruntime
import pytest

from rnn_runtime import Classifier
from rnn_runtime.errors import ModelError, ProviderError
from rnn_runtime.session import open_session
from tests.conftest import Run

without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers() and os.path.exists("/dev/nvidiactl"),
    reason="there is a GPU",
)


@without_gpu
def test_cuda_without_a_gpu_raises_instead_of_using_the_cpu(digits_model: Path) -> None:
    with pytest.raises(ProviderError, match=r"the CUDA provider could not start: .*or run with --provider cpu"):
        Classifier(digits_model, provider="cuda")


@without_gpu
def test_cuda_without_a_gpu_exits_with_one_line_and_no_results(
    run: Run, digits_model: Path, digits_images: Path
) -> None:
    result = run("rnn-infer", "--provider", "cuda", "--model", digits_model, "--recursive", digits_images)

    assert result.returncode == 3
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"Error: {digits_model}: the CUDA provider could not start: ")


@without_gpu
def test_auto_without_a_gpu_takes_the_cpu_and_says_why(run: Run, digits_model: Path, digits_images: Path) -> None:
    result = run("rnn-infer", "--model", digits_model, "--recursive", digits_images)

    assert result.returncode == 0
    notice, summary = result.stderr.splitlines()
    assert notice.startswith("Running on the CPU: ")
    assert summary.endswith("on cpu")


def test_cpu_is_taken_without_a_word(digits_model: Path) -> None:
    classifier = Classifier(digits_model, provider="cpu")

    assert (classifier.provider, classifier.notice) == ("cpu", None)


def test_unknown_provider_names_those_there_are(digits_model: Path) -> None:
    with pytest.raises(ProviderError, match="one of auto, cuda, cpu, not 'tpu'"):
        open_session(digits_model.read_bytes(), "tpu")  # type: ignore[arg-type]


def test_without_onnxruntime_the_extra_to_install_is_named(run: Run, tmp_path: Path, digits_model: Path) -> None:
    # An import that fails stands in for a package that isn't installed.
    (tmp_path / "onnxruntime.py").write_text("raise ImportError(\"No module named 'onnxruntime'\")\n")

    result = run("rnn-infer", "--model", digits_model, "a.png", env=os.environ | {"PYTHONPATH": str(tmp_path)})

    assert result.returncode == 3
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "pip install 'rnn-onnx[cpu]'" in result.stderr
    assert "pip install 'rnn-onnx[cuda]'" in result.stderr


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000), b"\x08\x08"])
def test_what_is_no_model_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=r"model\.onnx: "):
        Classifier(path, provider="cpu")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_model_is_a_model_error(tmp_path: Path, digits_model: Path, share: float) -> None:
    data = digits_model.read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[: int(share * len(data))])

    with pytest.raises(ModelError):
        Classifier(tmp_path / "model.onnx", provider="cpu")


def test_weights_outside_of_the_file_are_not_read(tmp_path: Path, digits_model: Path) -> None:
    onnx.save(
        onnx.load(digits_model),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )

    with pytest.raises(ModelError):
        Classifier(tmp_path / "model.onnx", provider="cpu")
