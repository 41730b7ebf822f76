"""`rnn-onnx doctor`: what a bug report needs, and the next thing to do."""

import hashlib
import os
import re
from pathlib import Path

import onnxruntime
import pytest

from rnn_runtime.checks.doctor import examine
from tests.support.commands import Run, RunProcess, modules_from

BUILT_FOR_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
cpu_build = pytest.mark.skipif(BUILT_FOR_CUDA, reason="onnxruntime is built for CUDA")


def facts_of(text: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines()[:-1])


@cpu_build
def test_cuda_that_cannot_start_is_what_to_mend_if_asked_for(run: Run) -> None:
    result = run("rnn-onnx", "doctor", "--provider", "cuda")

    assert result.returncode == 3
    assert result.stdout.splitlines()[-1] == (
        "Next: Replace onnxruntime with: pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


@cpu_build
def test_doctor_tells_versions_providers_and_the_model(run: Run, digits_model: Path, digits_checkpoint: Path) -> None:
    result = run("rnn-onnx", "doctor", digits_model)

    facts = facts_of(result.stdout)
    assert result.returncode == 0
    assert result.stderr == ""
    assert facts["onnxruntime"].startswith(f"{onnxruntime.__version__}, in ")
    assert facts["onnxruntime from"] == f"onnxruntime {onnxruntime.__version__}"
    assert facts["compiled in"] == ", ".join(onnxruntime.get_available_providers())
    assert facts["CPU provider"] == "starts"
    assert facts["CUDA provider"] == "doesn't start: the installed onnxruntime is built for the CPU only"
    assert facts["network"] == "RNN (tanh), 2 layers of 128"
    assert facts["images"] == "8x8, gray; 10 classes"
    assert facts["checkpoint"] == f"SHA-256 {hashlib.sha256(digits_checkpoint.read_bytes()).hexdigest()}"
    assert {"rnn-onnx", "Python", "system", "numpy", "Pillow", "kornia-rs", "click", "msgspec", "torch"} <= set(facts)


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver")
def test_machine_without_a_driver_has_nothing_to_repair(run: Run, digits_model: Path) -> None:
    result = run("rnn-onnx", "doctor", digits_model)

    assert facts_of(result.stdout)["NVIDIA driver"] == "not found (libcuda.so.1)"
    for_cuda = " for the CPU. For CUDA: Install the driver and check it with: nvidia-smi" if BUILT_FOR_CUDA else ""
    assert result.stdout.splitlines()[-1] == f"Next: nothing to repair{for_cuda}"


@cpu_build
def test_with_a_driver_doctor_says_how_to_get_cuda(
    run_process: RunProcess, digits_model: Path, stand_in_driver: Path
) -> None:
    environment = {"LD_LIBRARY_PATH": str(stand_in_driver)}

    result = run_process("rnn-onnx", "doctor", digits_model, env=environment)

    facts = facts_of(result.stdout)
    assert facts["NVIDIA driver"] == "supports CUDA up to 99.0"
    assert (facts["CUDA device 0"], facts["CUDA device 1"]) == ("GPU A", "GPU B")
    assert result.stdout.endswith(
        "Next: Replace onnxruntime with: pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'\n"
    )


@cpu_build
def test_missing_model_is_the_next_thing_to_do(run: Run) -> None:
    result = run("rnn-onnx", "doctor")

    assert result.returncode == 0
    assert facts_of(result.stdout)["model"].startswith("model.onnx: no such file or directory")
    assert result.stdout.splitlines()[-1] == "Next: Write a model with: rnn-export model.pt model.onnx"


@cpu_build
def test_instead_of_a_checkpoint_doctor_asks_for_a_model(run: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    (tmp_path / "model.pt").write_bytes(digits_checkpoint.read_bytes())

    result = run("rnn-onnx", "doctor", "model.pt")

    assert result.stdout.splitlines()[-1] == "Next: Write a model with: rnn-export model.pt model.onnx"


@cpu_build
def test_damaged_model_is_told_and_providers_start_without_it(run: Run, tmp_path: Path, digits_model: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(digits_model.read_bytes()[:1000])

    result = run("rnn-onnx", "doctor")

    assert result.returncode == 0
    assert result.stderr == ""
    assert facts_of(result.stdout)["CPU provider"] == "starts"
    assert result.stdout.splitlines()[-1].startswith("Next: Copy model.onnx again, or write it with: rnn-export")


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("raise ModuleNotFoundError('...', name='onnxruntime')", "onnxruntime is not installed. Install it with: "),
        (
            "raise ImportError('libx.so')",
            "the installed onnxruntime is broken (libx.so). Repair it with: pip uninstall",
        ),
        ("", "the installed onnxruntime is broken (most of its files are missing"),
    ],
    ids=["missing", "broken", "empty"],
)
def test_an_unusable_onnxruntime_is_the_next_thing_to_repair(
    run_process: RunProcess, tmp_path: Path, digits_model: Path, module: str, problem: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(module)

    result = run_process("rnn-onnx", "doctor", digits_model, env=modules_from(tmp_path))

    assert result.returncode == 3
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1].startswith(f"Next: {problem}")
    assert "pip install onnxruntime, or" in result.stdout.splitlines()[-1]


@cpu_build
def test_a_wanted_provider_that_cannot_start_gives_exit_code_3(run: Run, digits_model: Path) -> None:
    assert run("rnn-onnx", "doctor", digits_model, "--provider", "cpu").returncode == 0
    assert run("rnn-onnx", "doctor", digits_model, "--provider", "cuda").returncode == 3


def test_torch_is_asked_for_its_version_and_not_imported(run_process: RunProcess) -> None:
    code = "import sys; from rnn_runtime.checks.doctor import examine; examine(); print('torch' in sys.modules)"

    assert run_process("python", "-c", code).stdout == "False\n"


def test_without_a_model_providers_are_started_all_the_same() -> None:
    assert "cpu" in examine().providers
