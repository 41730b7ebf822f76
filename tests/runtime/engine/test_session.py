"""Execution providers: the one that was asked for, or an error."""

import os
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from rnn_runtime import Classifier, CudaOptions
from rnn_runtime.engine import create_session, open_session
from rnn_runtime.errors import ModelError, ProviderError, SettingsError
from tests.support.commands import Run, RunProcess, modules_from

without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers() and os.path.exists("/dev/nvidiactl"),
    reason="there is a GPU",
)
for_cpus_only = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers() or os.path.exists("/dev/nvidiactl"),
    reason="there is a GPU or a CUDA build of onnxruntime",
)


@without_gpu
def test_cuda_without_a_gpu_raises_instead_of_using_the_cpu(digits_model: Path) -> None:
    with pytest.raises(ProviderError, match=r"the CUDA provider could not start: .*or run with `provider=\"cpu\"`"):
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


@for_cpus_only
def test_auto_of_an_install_for_the_cpu_takes_it_without_a_notice(
    run: Run, digits_model: Path, digits_images: Path
) -> None:
    result = run("rnn-infer", "--model", digits_model, "--recursive", digits_images)

    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.endswith("on cpu\n")


def test_cpu_is_taken_without_a_word(digits_model: Path) -> None:
    classifier = Classifier(digits_model, provider="cpu")

    assert (classifier.provider, classifier.notice) == ("cpu", None)


def test_unknown_provider_names_those_there_are(digits_model: Path) -> None:
    with pytest.raises(SettingsError, match="one of auto, cuda, cpu, not 'tpu'"):
        open_session(digits_model.read_bytes(), "tpu")  # type: ignore[arg-type]


def test_without_onnxruntime_the_package_is_named(run_process: RunProcess, tmp_path: Path, digits_model: Path) -> None:
    # An import that fails stands in for a package that isn't installed.
    (tmp_path / "onnxruntime.py").write_text("raise ImportError(\"No module named 'onnxruntime'\")\n")

    result = run_process("rnn-infer", "--model", digits_model, "a.png", env=modules_from(tmp_path))

    assert result.returncode == 3
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "pip install onnxruntime, or with an NVIDIA GPU: pip install 'onnxruntime-gpu[cuda,cudnn]'" in result.stderr


def test_what_onnxruntime_writes_when_imported_is_not_seen(
    run_process: RunProcess, tmp_path: Path, digits_model: Path
) -> None:
    # As releases 1.23 and 1.24 do, where /sys/class/drm has a display that is no PCI card; then the real one follows.
    (tmp_path / "onnxruntime.py").write_text(
        "import os, sys\n"
        "os.write(2, b'[W:onnxruntime:Default, device_discovery.cc:164] GPU device discovery failed\\n')\n"
        "sys.path.remove(os.path.dirname(__file__))\n"
        "del sys.modules['onnxruntime']\n"
        "import onnxruntime\n"
    )
    arguments = ("--provider", "cpu", "--model", digits_model, "no.png")

    result = run_process("rnn-infer", *arguments, env=modules_from(tmp_path))

    assert result.stdout.endswith("no such file or directory\n")
    assert result.stderr.startswith("1 image, 1 unreadable, ")


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


def test_no_node_goes_to_the_cpu_where_another_provider_was_asked_for(digits_model: Path) -> None:
    # Azure's provider has no kernels: a session would run on the CPU, and say "Azure". CUDA's build hasn't got it.
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime's build for the CPU")
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        create_session(digits_model.read_bytes(), "AzureExecutionProvider")


@pytest.mark.parametrize("options", [{"device_id": -1}, {"memory_limit": 0}, {"device_id": "1"}, {"tf32": 1}])
def test_cuda_options_that_cannot_be_are_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options

    with pytest.raises(SettingsError, match=f"^`{name}` must be "):
        CudaOptions(**options)


def test_cuda_options_are_parity_first_by_default() -> None:
    assert CudaOptions().to_provider_options() == {"device_id": "0", "use_tf32": "0"}


def test_cuda_options_go_to_onnxruntime_under_its_names() -> None:
    options = CudaOptions(device_id=1, memory_limit=1 << 30, tf32=True)

    assert options.to_provider_options() == {
        "device_id": "1",
        "gpu_mem_limit": "1073741824",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "1",
    }


def test_cuda_options_with_the_cpu_provider_are_refused(digits_model: Path) -> None:
    with pytest.raises(SettingsError, match="do nothing on the CPU"):
        Classifier(digits_model, provider="cpu", cuda=CudaOptions(device_id=1))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_among_onnxruntimes_imports_is_told_in_a_line(
    run_process: RunProcess, tmp_path: Path, digits_model: Path, name: str, code: int
) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.{name})\nInferenceSession = None\n"
    )

    result = run_process("rnn-infer", "--model", digits_model, "a.png", env=modules_from(tmp_path))

    assert result.returncode == code
    assert result.stderr == ("Error: interrupted\n" if code == 130 else "Error: terminated\n")


CUDA_ARGUMENTS = [("--device-id", "0"), ("--gpu-memory-limit", "512"), ("--tf32",), ("--no-tf32",)]


@pytest.mark.parametrize("arguments", CUDA_ARGUMENTS)
def test_cuda_arguments_with_the_cpu_provider_are_refused(
    run: Run, digits_model: Path, arguments: tuple[str, ...]
) -> None:
    result = run("rnn-onnx", "check", digits_model, "--provider", "cpu", *arguments)

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {arguments[0]} does nothing on the CPU. Leave it out")
    assert len(result.stderr.splitlines()) == 1


@for_cpus_only
def test_cuda_arguments_with_auto_wait_for_a_gpu(run: Run, digits_model: Path) -> None:
    arguments = ("--device-id", "1", "--gpu-memory-limit", "512", "--tf32")

    result = run("rnn-onnx", "check", digits_model, *arguments)

    assert result.returncode == 0
    assert result.stderr.startswith("Running on the CPU: the installed onnxruntime is built for the CPU only. Replace")


def test_defaults_of_the_cuda_arguments_are_in_the_help(run: Run) -> None:
    text = " ".join(run("rnn-infer", "--help").stdout.split())

    assert "Number of the GPU, as rnn-onnx doctor lists them. [default: 0]" in text
    assert "[default: no limit]" in text
    assert "less like PyTorch. [default: off]" in text
