"""`rnn-infer --provider cuda` up to where a GPU is needed, with stand-ins for the driver and onnxruntime's build."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from rnn_export import export_onnx
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Result, Run, RunProcess, modules_from
from tests.support.folders import MakeOnce

STAND_IN = Path(__file__).parents[1] / "support" / "stand_in_cuda"


@pytest.fixture
def environment(stand_in_driver: Path) -> dict[str, str | None]:
    return {**modules_from(STAND_IN), "LD_LIBRARY_PATH": str(stand_in_driver)}


@pytest.fixture(scope="module")
def models(make_once: MakeOnce) -> Path:
    """`scan.onnx` with a loop, `int8.onnx` and `fp32.onnx` of an LSTM, all for digits."""

    def fill(folder: Path) -> None:
        image, names = ImageSpec(8, 8, 1), tuple("0123456789")
        random_checkpoint(ModelSpec(image, names)).save(folder / "rnn.pt")
        export_onnx(folder / "rnn.pt", folder / "scan.onnx", graph="scan")
        random_checkpoint(ModelSpec(image, names, "lstm")).save(folder / "lstm.pt")
        for precision in ("int8", "fp32"):
            export_onnx(folder / "lstm.pt", folder / f"{precision}.onnx", precision=precision)

    return make_once("stand_in_cuda_models", fill)


def labels(result: Result) -> list[list[str]]:
    """The path and label of each row; probabilities differ by rounding between batch sizes."""
    return [row.split(",")[:2] for row in result.stdout.splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        ("--cuda-graph",),
        ("--tf32", "--gpu-memory-limit", "100", "--device-id", "1"),
        pytest.param((), marks=pytest.mark.slow),
    ],
)
def test_cuda_gives_the_results_of_the_cpu(
    run: Run,
    run_process: RunProcess,
    digits_model: Path,
    digits_images: Path,
    environment: Mapping[str, str | None],
    options: tuple[str, ...],
) -> None:
    arguments = ("--model", digits_model, "--recursive", "--batch-size", "50", digits_images)
    expected = run("rnn-infer", "--provider", "cpu", *arguments)

    result = run_process("rnn-infer", "--provider", "cuda", *options, *arguments, env=environment)

    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1), result.stderr
    assert result.stderr.rstrip().endswith("on cuda")
    assert labels(result) == labels(expected)


STREAMS = """
import glob, pickle, sys
import numpy as np
from rnn_runtime import Classifier, CudaOptions

model, folder, graph = sys.argv[1:]
cpu = Classifier(model, provider="cpu")
cuda = Classifier(model, provider="cuda", cuda=CudaOptions(graph=graph == "graph"))
files = sorted(glob.glob(folder + "/*/*.png"))
files = [name for pair in zip(files, ["missing.png", b"broken"] * len(files)) for name in pair]

def labels(classifier, count, size):
    return [(p.path, p.label, p.error) for p in classifier.iter_predictions(files[:count], batch_size=size)]

for count, size in ((1, 1), (0, 4), (2, 1), (99, 7), (400, 64), (720, 256)):
    assert labels(cuda, count, size) == labels(cpu, count, size), (count, size)

stream = cuda.iter_predictions(files, batch_size=8)
next(stream)
stream.close()  # while batches are under way
assert cuda.predict(files[0]).label == cpu.predict(files[0]).label
copy = pickle.loads(pickle.dumps(cuda))
assert (copy.provider, copy.cuda) == ("cuda", cuda.cuda)
images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
for count in (0, 1, 300, 3):
    assert np.allclose(copy.predict_proba(images[:count]), cpu.predict_proba(images[:count]), atol=1e-6)
print("equal")
"""


@pytest.mark.parametrize("graph", ["plain", "graph"])
def test_streams_of_readable_and_unreadable_images_are_those_of_the_cpu(
    run_process: RunProcess,
    digits_model: Path,
    digits_images: Path,
    environment: Mapping[str, str | None],
    graph: str,
) -> None:
    result = run_process("python", "-c", STREAMS, digits_model, digits_images, graph, env=environment)

    assert (result.stdout, result.stderr) == ("equal\n", "")


def test_options_reach_the_session(
    run_process: RunProcess, tmp_path: Path, digits_model: Path, environment: Mapping[str, str | None]
) -> None:
    options = ("--tf32", "--gpu-memory-limit", "100", "--device-id", "1", "--cuda-graph")

    result = run_process(
        "rnn-onnx",
        *("check", digits_model, "--provider", "cuda", *options),
        env={**environment, "SESSIONS": str(tmp_path / "sessions")},
    )

    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in (tmp_path / "sessions").read_text().splitlines()] == [
        {
            "device_id": "1",
            "use_tf32": "1",
            "enable_cuda_graph": "1",
            "gpu_mem_limit": "104857600",
            "arena_extend_strategy": "kSameAsRequested",
        }
    ]


def test_int8_is_refused_on_cuda_before_anything_else(run: Run, models: Path) -> None:
    result = run("rnn-onnx", "check", models / "int8.onnx", "--provider", "cuda")

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == (
        f"Error: {models}/int8.onnx: the CUDA provider could not start: this model is int8, and CUDA has no kernel for "
        "quantized LSTMs. Export the model with: rnn-export --target cuda, or run with --provider cpu\n"
    )


def test_auto_runs_int8_on_the_cpu_and_says_why(
    run_process: RunProcess, models: Path, digits_images: Path, environment: Mapping[str, str | None]
) -> None:
    result = run_process("rnn-infer", "--model", models / "int8.onnx", digits_images / "3", env=environment)

    notice, summary = result.stderr.splitlines()
    assert notice == (
        "Running on the CPU: this model is int8, and CUDA has no kernel for quantized LSTMs. Export the model with: "
        "rnn-export --target cuda"
    )
    assert summary.endswith("on cpu")


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_model_with_nodes_for_the_cpu_does_not_run_on_cuda(
    run_process: RunProcess, models: Path, digits_images: Path, environment: Mapping[str, str | None], provider: str
) -> None:
    arguments = ("--model", models / "fp32.onnx", "--provider", provider, digits_images / "3")

    result = run_process("rnn-infer", *arguments, env={**environment, "NO_KERNEL": "LSTM"})

    problem = "CUDA has no kernel for some of this model's nodes"
    if provider == "cuda":
        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr == (
            f"Error: {models}/fp32.onnx: the CUDA provider could not start: {problem}. Export the model with: "
            "rnn-export --target cuda, or run with --provider cpu\n"
        )
    else:
        notice, summary = result.stderr.splitlines()
        assert (notice, result.returncode) == (
            f"Running on the CPU: {problem}. Export the model with: rnn-export --target cuda",
            0,
        )
        assert summary.endswith("on cpu")


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_cuda_that_onnxruntime_leaves_out_is_not_taken_for_a_missing_kernel(
    run_process: RunProcess,
    digits_model: Path,
    digits_images: Path,
    environment: Mapping[str, str | None],
    provider: str,
) -> None:
    arguments = ("--model", digits_model, "--provider", provider, digits_images / "3")

    result = run_process("rnn-infer", *arguments, env={**environment, "NO_DEVICE": "1"})

    if provider == "cuda":
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (3, "", 1)
        assert "could not start: onnxruntime found no usable CUDA device. Check the GPU" in result.stderr
    else:
        notice, summary = result.stderr.splitlines()
        assert (notice, result.returncode) == (
            "Running on the CPU: onnxruntime found no usable CUDA device. Check the GPU and its driver with: "
            "nvidia-smi",
            0,
        )
        assert summary.endswith("on cpu")


def test_auto_stays_on_cuda_where_a_graph_cannot_be_captured(
    run_process: RunProcess, models: Path, digits_images: Path, environment: Mapping[str, str | None]
) -> None:
    arguments = ("--model", models / "scan.onnx", "--cuda-graph", digits_images / "3")

    result = run_process("rnn-infer", *arguments, env=environment)

    notice, summary = result.stderr.splitlines()
    assert result.returncode == 0
    assert notice.startswith("Running on CUDA without a graph: this model can't be captured in a CUDA graph: ")
    assert summary.endswith("on cuda")


def test_cuda_with_a_graph_that_cannot_be_captured_is_an_error_with_a_way_out(
    run_process: RunProcess, models: Path, environment: Mapping[str, str | None]
) -> None:
    arguments = (models / "scan.onnx", "--provider", "cuda", "--cuda-graph")

    result = run_process("rnn-onnx", "check", *arguments, env=environment)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (3, "", 1)
    assert "can't be captured in a CUDA graph: This session cannot use the graph capture feature" in result.stderr
    assert "Run without CUDA graphs, or export it with: rnn-export --target cuda, or run with --prov" in result.stderr


def test_a_capture_that_fails_later_is_said_at_the_end(
    run: Run,
    run_process: RunProcess,
    digits_model: Path,
    digits_images: Path,
    environment: Mapping[str, str | None],
) -> None:
    arguments = ("--model", digits_model, "--recursive", "--batch-size", "50", digits_images)
    expected = run("rnn-infer", "--provider", "cpu", *arguments)
    failing = {**environment, "CAPTURE_FAILS": "50"}

    result = run_process("rnn-infer", "--provider", "cuda", "--cuda-graph", *arguments, env=failing)

    summary, notice = result.stderr.splitlines()
    assert result.returncode == 0
    assert summary.endswith("on cuda")
    assert notice == (
        "no more CUDA graphs are captured: CUDA failure 900: operation not permitted when stream is capturing"
    )
    assert labels(result) == labels(expected)


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_first_capture_that_fails_is_an_error_only_for_cuda(
    run_process: RunProcess, digits_model: Path, environment: Mapping[str, str | None], provider: str
) -> None:
    arguments = (digits_model, "--provider", provider, "--cuda-graph")

    result = run_process("rnn-onnx", "check", *arguments, env={**environment, "CAPTURE_FAILS": "1"})

    assert len(result.stderr.splitlines()) == 1
    if provider == "cuda":
        assert result.returncode == 3
        assert "its CUDA graph can't be captured: no more CUDA graphs are captured: CUDA failure 900" in result.stderr
    else:
        assert result.returncode == 0
        assert result.stderr.startswith("no more CUDA graphs are captured: CUDA failure 900")
        assert "on cuda" in result.stdout


def test_a_provider_of_its_own_package_is_registered(
    run_process: RunProcess, tmp_path: Path, digits_model: Path, stand_in_driver: Path
) -> None:
    (tmp_path / "onnxruntime_ep_cuda").mkdir()
    (tmp_path / "onnxruntime_ep_cuda" / "__init__.py").touch()
    (tmp_path / "onnxruntime.py").write_text(
        "import os, sys\n"
        "sys.path.remove(os.path.dirname(__file__))\n"
        "del sys.modules['onnxruntime']\n"
        "import onnxruntime\n"
        "sys.path.append(os.path.dirname(__file__))\n"
        "def register(name, path):\n"
        "    print('registered', name, os.path.relpath(path, os.path.dirname(__file__)))\n"
        "    raise RuntimeError('API version 99 is not supported')\n"
        "onnxruntime.register_execution_provider_library = register\n"
    )
    environment = {**modules_from(tmp_path), "LD_LIBRARY_PATH": str(stand_in_driver)}

    result = run_process("rnn-onnx", "check", digits_model, "--provider", "cuda", env=environment)

    assert result.returncode == 3
    assert result.stdout == ("registered CUDAExecutionProvider onnxruntime_ep_cuda/libonnxruntime_providers_cuda.so\n")
    assert len(result.stderr.splitlines()) == 1
    assert "the package onnxruntime_ep_cuda doesn't fit onnxruntime 1." in result.stderr
    assert "API version 99 is not supported" in result.stderr


def test_the_comparison_lists_a_graph_that_fails_and_recommends_none(
    run_process: RunProcess, digits_model: Path, environment: Mapping[str, str | None]
) -> None:
    failing = {**environment, "CAPTURE_FAILS": "8"}

    result = run_process("rnn-onnx", "compare", digits_model, "--batch-size", "8", env=failing)

    assert result.returncode == 0, result.stderr
    assert {row.split(",")[0] for row in result.stdout.splitlines()[1:]} == {"cpu", "cuda", "cuda tf32"}
    assert "cuda graph, cuda graph tf32: no batches of 8 and more: no more CUDA graphs are captured: " in result.stderr
    assert "--cuda-graph" not in result.stderr
