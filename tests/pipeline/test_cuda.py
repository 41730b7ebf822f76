"""The CUDA execution provider, where there is a GPU and the extra cuda is installed."""

import os
import re
import resource
import subprocess
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_export import export_onnx
from rnn_runtime import Classifier, CudaOptions
from rnn_runtime.checks.self_check import cuda_tolerance, self_check
from rnn_runtime.checks.speed import compare
from rnn_runtime.engine import open_session
from rnn_runtime.errors import ProviderError
from rnn_runtime.model.difference import Difference
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import predict_logits
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run

pytestmark = pytest.mark.gpu


def export(folder: Path, spec: ModelSpec, **options: Any) -> Path:
    random_checkpoint(spec).save(folder / "model.pt")
    export_onnx(folder / "model.pt", folder / "model.onnx", **options)
    return folder / "model.onnx"


def spec_of(cell: Cell = "rnn", height: int = 28, **options: Any) -> ModelSpec:
    return ModelSpec(ImageSpec(height, 28, 1), tuple("0123456789"), cell, **options)


def random_images(count: int, seed: int, height: int = 28) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, 28, 1), np.uint8)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("height", [28, 33, 64, 128])
def test_cuda_agrees_with_pytorch_at_every_batch_size(
    tmp_path: Path, cell: Cell, height: int, bidirectional: bool
) -> None:
    path = export(tmp_path, spec_of(cell, height, bidirectional=bidirectional))
    model = Checkpoint.load(tmp_path / "model.pt").build_model()

    classifier = Classifier(path, provider="cuda")

    assert classifier.provider == "cuda"
    atol, rtol = cuda_tolerance(classifier.metadata)
    for size in (1, 2, 3, 7, 64, 257):
        images = random_images(size, size, height)
        found, expected = classifier.predict_logits(images), predict_logits(model, images)
        difference = Difference.between(found, expected, atol=atol, rtol=rtol)
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


def test_int8_is_refused_on_cuda_and_runs_on_the_cpu_with_auto(tmp_path: Path) -> None:
    path = export(tmp_path, spec_of("lstm"), precision="int8")

    with pytest.raises(ProviderError, match="this model is int8, and CUDA has no kernel for quantized LSTMs"):
        Classifier(path, provider="cuda")
    assert Classifier(path, provider="auto").provider == "cpu"


def test_nodes_without_a_kernel_are_an_error(tmp_path: Path) -> None:
    # onnxruntime gives the operator RNN to CUDA with tanh only (cuda_execution_provider.cc, RNNNeedFallbackToCPU)
    path = export(tmp_path, spec_of(nonlinearity="relu"), graph="operator")

    with pytest.raises(ProviderError, match="CUDA has no kernel for some of this model's nodes"):
        Classifier(path, provider="cuda")


@pytest.mark.parametrize("classifiers", [1, 2])
def test_threads_and_classifiers_share_the_device(tmp_path: Path, classifiers: int) -> None:
    path = export(tmp_path, spec_of(height=64))
    plain = Classifier(path, provider="cuda")
    shared = [Classifier(path, provider="cuda") for _ in range(classifiers)]
    batches = [random_images(1 + 37 * seed % 300, seed, 64) for seed in range(200)]
    expected = [plain.predict_logits(batch) for batch in batches]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: shared[i % classifiers].predict_logits(batches[i]), range(len(batches))))

    for actual, logits in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, logits)


@pytest.mark.slow
def test_memory_stays_flat_over_many_runs_in_new_threads(tmp_path: Path) -> None:
    classifier = Classifier(export(tmp_path, spec_of()), provider="cuda")

    def run_in_new_threads(runs: int) -> None:
        for start in range(0, runs, 100):
            with ThreadPoolExecutor(4) as pool:
                list(
                    pool.map(
                        lambda i: classifier.predict_logits(random_images(1 + i % 256, i)), range(start, start + 100)
                    )
                )

    run_in_new_threads(1_000)
    before = gpu_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_in_new_threads(10_000)
    after = gpu_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert after[0] - before[0] <= 4  # MiB; nvidia-smi counts in pages of 2
    assert after[1] - before[1] <= 20_000  # KiB


def gpu_memory() -> int:
    """MiB that this process uses on all GPUs."""
    line = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    rows = [row.split(", ") for row in subprocess.check_output(line, text=True).splitlines()]
    used = [int(memory) for pid, memory in rows if int(pid) == os.getpid()]
    return sum(used) if used else sum(int(memory) for _, memory in rows)  # in a container, pids are others


@pytest.mark.slow
def test_the_unconstrained_install_runs_on_cuda(tmp_path: Path, wheel: Path, digits_model: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    commands = tmp_path / "venv" / "bin"
    subprocess.run([commands / "python", "-m", "pip", "install", "--quiet", f"{wheel}[cuda]"], check=True)

    result = subprocess.run(
        [commands / "rnn-onnx", "check", digits_model, "--provider", "cuda"],
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr
    assert "on cuda" in result.stdout


def test_device_memory_limit_and_tf32_reach_onnxruntime(digits_model: Path) -> None:
    opened = open_session(digits_model.read_bytes(), "cuda", cuda=CudaOptions(0, memory_limit=1 << 30, tf32=True))

    options = opened.session.get_provider_options()["CUDAExecutionProvider"]
    assert (options["device_id"], options["gpu_mem_limit"], options["use_tf32"]) == ("0", str(1 << 30), "1")


def test_tf32_is_off_by_default(digits_model: Path) -> None:
    opened = open_session(digits_model.read_bytes(), "cuda")

    assert opened.session.get_provider_options()["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_unknown_device_is_refused_with_those_there_are(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "check", digits_model, "--provider", "cuda", "--device-id", "99")

    assert result.returncode == 3
    assert result.stdout == ""
    assert "there is no CUDA device 99; found: 0 (" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_memory_limit_that_is_too_small_ends_in_one_line(run: Run, digits_model: Path) -> None:
    arguments = ("--provider", "cuda", "--gpu-memory-limit", "1", "--batch-size", "65536")

    result = run("rnn-onnx", "benchmark", digits_model, *arguments)

    assert result.returncode == 3
    assert len(result.stderr.splitlines()) == 1


def test_doctor_lists_the_gpus_and_starts_cuda(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "doctor", "--provider", "cuda", digits_model)

    assert result.returncode == 0
    assert re.search(r"^CUDA device 0 +\w", result.stdout, re.MULTILINE)
    assert re.search(r"^CUDA provider +starts$", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("Next: nothing to repair\n")


def test_the_ways_to_run_a_model_are_compared(run: Run, digits_model: Path) -> None:
    found = compare(digits_model, batch_sizes=(1, 64, 1024), seconds=0.01)

    assert [variant.name for variant in found.variants] == ["cpu", "cuda", "cuda tf32"]
    assert found.problems == {}
    assert {(timing.variant, timing.batch_size) for timing in found.timings} == {
        (name, size) for name in ("cpu", "cuda", "cuda tf32") for size in (1, 64, 1024)
    }
    result = run("rnn-onnx", "compare", digits_model, "--batch-size", "64")
    assert result.returncode == 0, result.stderr
    assert "CUDA is " in result.stderr
