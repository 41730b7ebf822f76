"""The CUDA execution provider, where there is a GPU and the extra cuda is installed."""

import re
from pathlib import Path

import numpy as np
import pytest

from rnn_export import export_onnx
from rnn_export.graph.onnx_model import Graph, Precision
from rnn_runtime import Classifier, CudaOptions
from rnn_runtime.checks.self_check import self_check
from rnn_runtime.engine.session import open_session
from rnn_runtime.errors import ProviderError
from rnn_runtime.model.difference import Difference
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import predict_logits
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_cuda_agrees_with_pytorch_at_every_batch_size(tmp_path: Path, cell: str, bidirectional: bool) -> None:
    spec = ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"), cell, bidirectional=bidirectional)  # type: ignore[arg-type]
    random_checkpoint(spec).save(tmp_path / "model.pt")
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")
    model = Checkpoint.load(tmp_path / "model.pt").build_model()

    classifier = Classifier(tmp_path / "model.onnx", provider="cuda")

    assert classifier.provider == "cuda"
    for size in (1, 2, 3, 7, 64, 257):
        images = np.random.default_rng(size).integers(0, 256, (size, 28, 28, 1), np.uint8)
        difference = Difference.between(classifier.predict_logits(images), predict_logits(model, images))
        assert difference.within_tolerance, f"batch {size}: {difference}"


def test_auto_takes_cuda_where_it_runs(digits_model: Path) -> None:
    classifier = Classifier(digits_model, provider="auto")

    assert (classifier.provider, classifier.notice) == ("cuda", None)


def test_golden_samples_agree_on_cuda(digits_model: Path) -> None:
    assert self_check(Classifier(digits_model, provider="cuda")).equal_labels == 1


def test_infer_command_runs_on_cuda(run: Run, digits_model: Path, digits_images: Path) -> None:
    result = run("rnn-infer", "--model", digits_model, "--provider", "cuda", "--recursive", digits_images)

    assert result.returncode == 0, result.stderr
    assert result.stderr.rstrip().endswith("on cuda")


@pytest.mark.parametrize(("cell", "form"), [("rnn", "unrolled"), ("rnn", "operator"), ("gru", "operator")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_graph_gives_what_plain_runs_give(tmp_path: Path, cell: Cell, form: Graph, precision: Precision) -> None:
    random_checkpoint(ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"), cell)).save(tmp_path / "model.pt")
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph=form, precision=precision)
    plain = Classifier(tmp_path / "model.onnx", provider="cuda")

    graph = Classifier(tmp_path / "model.onnx", provider="cuda", cuda=CudaOptions(graph=True))

    for size in (1, 64, 1, 64, 257):  # captured, captured, replayed, replayed, captured
        images = np.random.default_rng(size).integers(0, 256, (size, 28, 28, 1), np.uint8)
        np.testing.assert_allclose(graph.predict_logits(images), plain.predict_logits(images), atol=1e-5)


def test_cuda_graph_of_a_loop_is_refused_with_the_way_out(tmp_path: Path) -> None:
    random_checkpoint(ModelSpec(ImageSpec(9, 4, 1), ("a", "b"))).save(tmp_path / "model.pt")
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", graph="scan")

    with pytest.raises(ProviderError, match="--graph unrolled"):
        Classifier(tmp_path / "model.onnx", provider="cuda", cuda=CudaOptions(graph=True))


def test_device_memory_limit_and_tf32_reach_onnxruntime(digits_model: Path) -> None:
    opened = open_session(digits_model.read_bytes(), "cuda", cuda=CudaOptions(0, memory_limit=1 << 30, tf32=True))

    options = opened.session.get_provider_options()["CUDAExecutionProvider"]
    assert (options["device_id"], options["gpu_mem_limit"], options["use_tf32"]) == ("0", str(1 << 30), "1")


def test_tf32_is_off_by_default(digits_model: Path) -> None:
    opened = open_session(digits_model.read_bytes(), "cuda")

    assert opened.session.get_provider_options()["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_unknown_device_is_refused_with_those_there_are(run: Run, digits_model: Path) -> None:
    result = run("rnn-infer", "--model", digits_model, "--provider", "cuda", "--device-id", "99", "--self-check")

    assert result.returncode == 3
    assert result.stdout == ""
    assert "there is no CUDA device 99; found: 0 (" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_memory_limit_that_is_too_small_ends_in_one_line(run: Run, digits_model: Path) -> None:
    arguments = ("--provider", "cuda", "--gpu-memory-limit", "1", "--benchmark", "--batch-size", "65536")

    result = run("rnn-infer", "--model", digits_model, *arguments)

    assert result.returncode == 3
    assert len(result.stderr.splitlines()) == 1


def test_doctor_lists_the_gpus_and_starts_cuda(run: Run, digits_model: Path) -> None:
    result = run("rnn-infer", "--doctor", "--provider", "cuda", "--model", digits_model)

    assert result.returncode == 0
    assert re.search(r"^CUDA device 0 +\w", result.stdout, re.MULTILINE)
    assert re.search(r"^CUDA provider +starts$", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("Next: Nothing to repair.\n")
