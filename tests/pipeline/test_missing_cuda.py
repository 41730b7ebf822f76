"""Whatever CUDA lacks: one line that names it, with the real packages in one new virtual environment.

The environment goes from one situation to the next (onnxruntime-gpu without CUDA's libraries, then onnxruntime over it,
then one of both uninstalled, then none), and each command's outcome is kept for the tests below.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

Outcomes = dict[tuple[str, str], subprocess.CompletedProcess[str]]


def _driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("missing cuda"),  # else each worker would make the environment
    pytest.mark.skipif(_driver(), reason="there is an NVIDIA driver"),
]


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    wheel: Path,
    digits_model: Path,
    digits_images: Path,
    stand_in_driver: Path,
) -> Iterator[Outcomes]:
    """What `rnn-infer --provider cuda`, `auto` and `cpu` and `rnn-onnx doctor` did in each situation."""
    folder = tmp_path_factory.mktemp("missing_cuda")
    venv.create(folder / "venv", with_pip=True)
    commands = folder / "venv" / "bin"
    found: Outcomes = {}

    def pip(*arguments: object) -> None:
        line = [str(commands / "python"), "-m", "pip", *map(str, arguments)]
        result = subprocess.run(line, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def record(situation: str, **environment: str) -> None:
        images = ("--recursive", str(digits_images))
        for name, arguments in {
            "cuda": ("--provider", "cuda", *images),
            "auto": ("--provider", "auto", *images),
            "cpu": ("--provider", "cpu", *images),
            "doctor": (),
        }.items():
            command = ("rnn-onnx", "doctor") if name == "doctor" else ("rnn-infer", "--model")
            found[situation, name] = subprocess.run(
                [str(commands / command[0]), command[1], str(digits_model), *arguments],
                capture_output=True,
                text=True,
                cwd=folder,
                env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | environment,
            )

    driver = str(stand_in_driver)
    pip("install", "--quiet", wheel, "onnxruntime-gpu")
    record("no driver")
    record("no libraries", LD_LIBRARY_PATH=driver)
    (package,) = commands.parent.glob("lib/python*/site-packages/onnxruntime")
    if libraries := _cuda_libraries(package):
        record("CUDA fails", LD_LIBRARY_PATH=os.pathsep.join([driver, *libraries]))
    pip("install", "--quiet", "--no-deps", "onnxruntime")
    record("both")
    pip("uninstall", "--quiet", "--yes", "onnxruntime-gpu")
    record("one of both uninstalled")
    pip("uninstall", "--quiet", "--yes", "onnxruntime", "onnxruntime-gpu")  # as the message says
    record("none")
    pip("install", "--quiet", "--no-deps", "onnxruntime")
    record("CPU only")
    yield found
    shutil.rmtree(folder)  # it holds 700 MB


def _cuda_libraries(package: Path) -> list[str]:
    """The folders of the CUDA libraries that PyTorch brought here, if they are those that onnxruntime is built for."""
    version = re.search(r"cuda_version = '(\d+)", (package / "capi" / "build_and_package_info.py").read_text())
    assert version
    folders = {str(path.parent) for path in Path(sysconfig.get_path("purelib"), "nvidia").glob("*/lib/lib*.so.*")}
    fits = any(Path(folder, f"libcublasLt.so.{version[1]}").exists() for folder in folders)
    return sorted(folders) if fits else []


STARTS = {  # what is missing, and how to mend it
    "no driver": (
        "no NVIDIA driver was found (libcuda.so.1)",
        "Install the driver and check it with: nvidia-smi, or run with --provider cpu",
    ),
    "no libraries": (
        ".so.",
        ": cannot open shared object file: No such file or directory. "
        "Install CUDA's libraries with: pip install 'onnxruntime-gpu[cuda,cudnn]', or run with --provider cpu",
    ),
    "both": (
        "are installed over one another",
        "Install one of them only: pip uninstall --yes onnxruntime onnxruntime-gpu && "
        "pip install 'onnxruntime-gpu[cuda,cudnn]', or run with --provider cpu",
    ),
    "CPU only": (
        "the installed onnxruntime is built for the CPU only",
        "Replace onnxruntime with: pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', "
        "or run with --provider cpu",
    ),
}
BROKEN = {
    "one of both uninstalled": (
        "the installed onnxruntime is broken (most of its files are missing",
        "Repair it with: pip uninstall --yes onnxruntime onnxruntime-gpu && pip install onnxruntime, ",
    ),
    "none": ("onnxruntime is not installed", "Install it with: pip install onnxruntime, "),
}


@pytest.mark.parametrize("situation", STARTS)
def test_cuda_that_cannot_start_gives_one_line_and_no_results(outcomes: Outcomes, situation: str) -> None:
    result = outcomes[situation, "cuda"]

    assert (result.returncode, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1
    assert "model.onnx: the CUDA provider could not start: " in result.stderr
    for text in STARTS[situation]:
        assert text in result.stderr


@pytest.mark.parametrize("situation", STARTS)
def test_auto_takes_the_cpu_with_a_notice_and_the_same_results(outcomes: Outcomes, situation: str) -> None:
    result = outcomes[situation, "auto"]

    *notice, summary = result.stderr.splitlines()
    assert result.returncode == 0
    if situation == "CPU only":  # neither a GPU nor a CUDA build: the CPU is what it is for
        assert notice == []
    else:
        assert len(notice) == 1
        assert notice[0].startswith("Running on the CPU: ")
        assert STARTS[situation][0] in notice[0]
    assert summary.endswith("on cpu")
    assert len(result.stdout.splitlines()) == 361
    assert result.stdout == outcomes[situation, "cpu"].stdout


def test_failure_within_onnxruntime_is_one_line_too(outcomes: Outcomes) -> None:
    result = outcomes.get(("CUDA fails", "cuda"))
    if result is None:
        pytest.skip("needs the CUDA libraries that PyTorch's default Linux packages bring")

    assert (result.returncode, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1
    assert re.search(r"the CUDA provider could not start: CUDA failure \d+: [\w -]+\. Check the GPU", result.stderr)


@pytest.mark.parametrize("situation", BROKEN)
@pytest.mark.parametrize("provider", ["cuda", "auto", "cpu"])
def test_onnxruntime_that_cannot_be_used_exits_with_one_line(outcomes: Outcomes, situation: str, provider: str) -> None:
    result = outcomes[situation, provider]

    assert (result.returncode, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1
    for text in BROKEN[situation]:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("situation", "exit_code", "step"),
    [
        ("no driver", 0, "nothing to repair for the CPU. For CUDA: Install the driver and check it with: nvidia-smi"),
        ("no libraries", 0, "Install CUDA's libraries with: pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        ("both", 0, "Install one of them only: pip uninstall --yes onnxruntime onnxruntime-gpu && pip install"),
        ("one of both uninstalled", 3, "the installed onnxruntime is broken"),
        ("none", 3, "onnxruntime is not installed. Install it with: pip install onnxruntime, or"),
        ("CPU only", 0, "nothing to repair"),
    ],
)
def test_doctor_names_the_next_thing_to_do(outcomes: Outcomes, situation: str, exit_code: int, step: str) -> None:
    result = outcomes[situation, "doctor"]

    assert (result.returncode, result.stderr) == (exit_code, "")
    assert result.stdout.splitlines()[-1].startswith(f"Next: {step}")
