"""`rnn-infer --provider cuda` up to where a GPU is needed, with stand-ins for the driver and onnxruntime's build."""

import json
import pickle
from pathlib import Path

import onnxruntime
import pytest

from rnn_export import export_onnx
from rnn_runtime import Classifier, CudaOptions, ImageLike, RunOptions, classify_files
from rnn_runtime.engine import cuda as engine_cuda
from rnn_runtime.images.ahead import PEEKED
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Result, Run
from tests.support.cuda import build_for_cuda
from tests.support.folders import MakeOnce
from tests.support.results import assert_same_results, read_results

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, stand_in_driver: Path) -> None:
    for name, value in build_for_cuda().items():
        monkeypatch.setattr(onnxruntime, name, value)
    monkeypatch.setattr(engine_cuda, "DRIVER", str(stand_in_driver / "libcuda.so.1"))


@pytest.fixture(scope="module")
def models(make_once: MakeOnce) -> Path:
    """`int8.onnx` and `fp32.onnx` of an LSTM for digits."""

    def fill(folder: Path) -> None:
        image, names = ImageSpec(8, 8, 1), tuple("0123456789")
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
        ("--tf32", "--gpu-memory-limit", "100", "--device-id", "1"),
        pytest.param((), marks=pytest.mark.slow),
    ],
)
def test_cuda_gives_the_results_of_the_cpu(
    run: Run,
    digits_model: Path,
    digits_images: Path,
    options: tuple[str, ...],
) -> None:
    arguments = ("--model", digits_model, "--recursive", "--batch-size", "50", digits_images)
    expected = run("rnn-infer", "--provider", "cpu", *arguments)

    result = run("rnn-infer", "--provider", "cuda", *options, *arguments)

    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1), result.stderr
    assert result.stderr.rstrip().endswith("on cuda")
    assert labels(result) == labels(expected)


def test_streams_of_readable_and_unreadable_images_are_those_of_the_cpu(
    digits_model: Path, digits_images: Path
) -> None:
    on_cpu, on_cuda = Classifier(digits_model, provider="cpu"), Classifier(digits_model, provider="cuda")
    found = sorted(map(str, digits_images.glob("*/*.png")))
    files: list[ImageLike] = [image for name in found for image in (name, "missing.png", b"broken")]

    def labels(classifier: Classifier, count: int, size: int) -> list[tuple[str, str | None, str | None]]:
        predictions = classifier.iter_predictions(files[:count], batch_size=size)
        return [(prediction.path, prediction.label, prediction.error) for prediction in predictions]

    for count, size in ((1, 1), (0, 4), (2, 1), (3, 1), (99, 7), (400, 64), (1080, 256)):
        assert labels(on_cuda, count, size) == labels(on_cpu, count, size), (count, size)


def test_a_stream_may_end_while_batches_are_under_way(digits_model: Path, digits_images: Path) -> None:
    classifier = Classifier(digits_model, provider="cuda")
    stream = classifier.iter_predictions(sorted(digits_images.glob("*/*.png")), batch_size=8)

    first = next(stream)
    stream.close()

    assert classifier.predict(first.path).label == first.label


def test_many_small_files_are_decoded_by_processes(digits_model: Path, digits_images: Path, tmp_path: Path) -> None:
    paths = [*sorted(map(str, digits_images.glob("*/*.png"))), "missing.png"] * 6
    options = RunOptions(batch_size=100, processes=2)

    for provider in ("cpu", "cuda"):
        classifier = Classifier(digits_model, provider=provider)
        classify_files(classifier, paths, tmp_path / f"{provider}.csv", options)

    on_cpu, on_cuda = (read_results(tmp_path / f"{provider}.csv") for provider in ("cpu", "cuda"))
    assert len(on_cpu) == len(paths) > PEEKED
    assert_same_results(on_cuda, on_cpu)


def test_a_classifier_on_cuda_can_be_sent_to_another_process(digits_model: Path) -> None:
    classifier = Classifier(digits_model, provider="cuda", cuda=CudaOptions(device_id=1, tf32=True))

    copy = pickle.loads(pickle.dumps(classifier))

    assert (copy.provider, copy.cuda) == ("cuda", classifier.cuda)


def test_options_reach_the_session(run: Run, tmp_path: Path, digits_model: Path) -> None:
    options = ("--tf32", "--gpu-memory-limit", "100", "--device-id", "1")

    result = run(
        "rnn-onnx",
        *("check", digits_model, "--provider", "cuda", *options),
        env={"SESSIONS": str(tmp_path / "sessions")},
    )

    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in (tmp_path / "sessions").read_text().splitlines()] == [
        {
            "device_id": "1",
            "use_tf32": "1",
            "gpu_mem_limit": "104857600",
            "arena_extend_strategy": "kSameAsRequested",
        }
    ]


@pytest.mark.parametrize(
    ("driver", "problem", "remedy"),
    [
        (
            {"DRIVER_FAILS": "100"},
            "the NVIDIA driver could not start: no CUDA-capable device is detected (CUDA error 100)",
            "Check the GPU and its driver with: nvidia-smi",
        ),
        (
            {"DRIVER_FAILS": "100", "CUDA_VISIBLE_DEVICES": "3"},
            "the NVIDIA driver could not start: no CUDA-capable device is detected (CUDA error 100)",
            "Unset CUDA_VISIBLE_DEVICES, which is '3' and may hide the GPU",
        ),
        (
            {"DRIVER_CUDA": "11080"},
            "the NVIDIA driver supports CUDA up to 11.8, and this onnxruntime needs 13",
            "Update the driver",
        ),
        ({}, "there is no CUDA device 7; found: 0 (GPU A), 1 (GPU B)", "Choose one of these"),
    ],
)
def test_what_is_wrong_with_the_driver_is_one_line_with_the_way_out(
    run: Run, digits_model: Path, driver: dict[str, str], problem: str, remedy: str
) -> None:
    env = {"CUDA_VISIBLE_DEVICES": None, **driver}
    arguments = (digits_model, "--device-id", 7)

    required, chosen = (run("rnn-onnx", "check", *arguments, "-p", name, env=env) for name in ("cuda", "auto"))
    doctor = run("rnn-onnx", "doctor", *arguments, env=env)

    assert (required.returncode, required.stdout) == (3, "")
    assert required.stderr == (
        f"Error: {digits_model}: the CUDA provider could not start: {problem}. {remedy}, or run with --provider cpu\n"
    )
    assert (chosen.returncode, chosen.stderr) == (0, f"Running on the CPU: {problem}. {remedy}\n")
    assert "on cpu" in chosen.stdout
    assert (doctor.returncode, doctor.stderr) == (0, "")
    assert doctor.stdout.endswith(f"Next: {remedy}\n")


def test_int8_is_refused_on_cuda_before_anything_else(run: Run, models: Path) -> None:
    result = run("rnn-onnx", "check", models / "int8.onnx", "--provider", "cuda")

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == (
        f"Error: {models}/int8.onnx: the CUDA provider could not start: this model is int8, and CUDA has no kernel for "
        "quantized LSTMs. Export the model with: rnn-export --target cuda, or run with --provider cpu\n"
    )


def test_auto_runs_int8_on_the_cpu_and_says_why(run: Run, models: Path, digits_images: Path) -> None:
    result = run("rnn-infer", "--model", models / "int8.onnx", digits_images / "3")

    notice, summary = result.stderr.splitlines()
    assert notice == (
        "Running on the CPU: this model is int8, and CUDA has no kernel for quantized LSTMs. Export the model with: "
        "rnn-export --target cuda"
    )
    assert summary.endswith("on cpu")


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_model_with_nodes_for_the_cpu_does_not_run_on_cuda(
    run: Run, models: Path, digits_images: Path, provider: str
) -> None:
    arguments = ("--model", models / "fp32.onnx", "--provider", provider, digits_images / "3")

    result = run("rnn-infer", *arguments, env={"NO_KERNEL": "LSTM"})

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
    run: Run,
    digits_model: Path,
    digits_images: Path,
    provider: str,
) -> None:
    arguments = ("--model", digits_model, "--provider", provider, digits_images / "3")

    result = run("rnn-infer", *arguments, env={"NO_DEVICE": "1"})

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


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; hostname=node7 ; file=/x/cudnn.cc ; line=9",
            "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR. Check the GPU",
        ),
        (
            "cuDNN is required for this operator.",
            "cuDNN is required for this operator. Install CUDA's libraries with: ",
        ),
    ],
)
def test_a_first_run_that_fails_is_told_without_source_locations(
    run: Run, digits_model: Path, failure: str, told: str
) -> None:
    arguments = ("check", digits_model, "--provider", "cuda")

    result = run("rnn-onnx", *arguments, env={"RUN_FAILS": failure})

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (3, "", 1)
    assert f"the CUDA provider could not start: a first run failed: {told}" in result.stderr
