"""An onnxruntime session on the execution provider that was asked for, or an error: never on another."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from rnn_runtime.engine.device_buffers import error_text, run_options
from rnn_runtime.engine.driver import LIBRARY, Driver, find_driver
from rnn_runtime.engine.installation import UNINSTALL, cuda_major, import_onnxruntime, installed_packages, preload_cuda
from rnn_runtime.errors import ModelError, ProviderError, SettingsError

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["auto", "cuda", "cpu"]
PROVIDERS: tuple[Provider, ...] = ("auto", "cuda", "cpu")

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

_CHECK_GPU = "Check the GPU and its driver with: nvidia-smi"
_INSTALL_LIBRARIES = "Install CUDA's libraries with: pip install 'rnn-onnx[cuda]'"


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How a model runs on CUDA (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider).

    Args:
        device_id: Which GPU, as CUDA counts them; `rnn-infer --doctor` lists them.
        memory_limit: Bytes that onnxruntime's arena may take for weights and intermediate results; None for all there
            are. CUDA itself, and the input and output of a batch, come on top.
        tf32: Round the factors of float32 products to 10 bits of mantissa: faster, and further from PyTorch's logits.
        graph: Capture the first run of each batch size, and replay it from then on: less time between one kernel and
            the next. For a graph without loops: `rnn-export --graph unrolled` or `operator`.

    Raises:
        SettingsError: a number is out of range.
    """

    device_id: int = 0
    memory_limit: int | None = None
    tf32: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.device_id < 1 << 31:
            raise SettingsError(f"the CUDA device id must be 0 or more, and below 2^31, not {self.device_id}")
        if self.memory_limit is not None and not 1 <= self.memory_limit < 1 << 63:
            raise SettingsError(
                f"the CUDA memory limit must be 1 byte or more, and below 2^63 bytes, not {self.memory_limit}"
            )

    def to_provider_options(self) -> dict[str, str]:
        """Under the names, and as the texts, that onnxruntime takes."""
        options = {
            "device_id": str(self.device_id),
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.graph)),
        }
        return options if self.memory_limit is None else options | {"gpu_mem_limit": str(self.memory_limit)}


CUDA_DEFAULTS = CudaOptions()


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session and the provider it runs on; for `auto` on the CPU, why it isn't CUDA (`notice`) and the way there."""

    session: "onnxruntime.InferenceSession"
    provider: Literal["cuda", "cpu"]
    notice: str | None = None
    remedy: str | None = None


def open_session(
    model: bytes, provider: Provider = "auto", *, intra_op_threads: int = 1, cuda: CudaOptions = CUDA_DEFAULTS
) -> OpenSession:
    """Open a model on an execution provider.

    Runs may go on in several threads at once.

    Args:
        model: The content of an ONNX file whose one input is uint8 `(batch, height, width, channels)`.
        provider: `cpu`; `cuda`, which runs on CUDA or raises; `auto`, which is CUDA where it runs, else CPU.
        intra_op_threads: CPU threads that share each operator of a run; with 1, a run uses the calling thread only.
        cuda: How to run on CUDA.

    Returns:
        The session and the provider it runs on. On CUDA, a first run has succeeded.

    Raises:
        MissingPackageError: no onnxruntime is installed, or a broken one.
        ModelError: no ONNX model that onnxruntime can load.
        ProviderError: CUDA was asked for and can't run here; the text says what is missing.
        SettingsError: options for CUDA came with `cpu`.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"provider must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    if provider == "cpu" and cuda != CUDA_DEFAULTS:
        raise SettingsError(
            "options for CUDA do nothing on the CPU: leave them out, or choose the provider cuda or auto"
        )
    ort = import_onnxruntime()
    problem = remedy = None
    if provider != "cpu":
        try:
            return OpenSession(_start_cuda(ort, model, cuda), "cuda")
        except _CudaError as error:
            problem, remedy = _explain(error)
            if provider == "cuda":
                raise ProviderError(
                    f"the CUDA provider could not start: {problem}. {remedy}, or run with --provider cpu"
                ) from None
    return OpenSession(_open_on_cpu(ort, model, intra_op_threads), "cpu", problem, remedy)


class _CudaError(Exception):
    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy


def _explain(error: _CudaError) -> tuple[str, str]:
    packages = installed_packages()
    if len(packages) < 2:
        return error.problem, error.remedy
    # The later one has replaced files of the other, so whatever CUDA lacks may come from that.
    names = " and ".join(f"{name} {version}" for name, version in packages.items())
    return (
        f"{names} are installed over one another ({error.problem})",
        f"Install one of them only: {UNINSTALL} && pip install 'rnn-onnx[cuda]'",
    )


def _start_cuda(ort: ModuleType, model: bytes, cuda: CudaOptions) -> "onnxruntime.InferenceSession":
    _check_cuda(ort, cuda.device_id)
    try:
        session = _create(ort, model, [(CUDA, cuda.to_provider_options()), CPU])
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        _open_on_cpu(ort, model)  # raises where it is the model's fault
        reason = error_text(error)
        if "graph capture feature" in reason:
            raise _CudaError(
                f"no CUDA graph can be made of this model: {reason}",
                "Leave out --cuda-graph, or export the model with --graph unrolled",
            ) from None
        raise _CudaError(reason, _CHECK_GPU) from None
    # onnxruntime takes the CPU without a word to the caller where CUDA doesn't start.
    if session.get_providers()[0] != CUDA:
        raise _CudaError("onnxruntime found no usable CUDA device", _CHECK_GPU)
    images = session.get_inputs()[0]
    try:
        session.run(None, {images.name: np.zeros((1, *images.shape[1:]), np.uint8)}, run_options("-1"))
    except Exception as error:
        reason = error_text(error)
        # cuDNN is loaded by the first operator that needs it (github.com/microsoft/onnxruntime/pull/29252).
        remedy = _INSTALL_LIBRARIES if "cuDNN" in reason else _CHECK_GPU
        raise _CudaError(f"a first run failed: {reason}", remedy) from None
    return session


def _check_cuda(ort: ModuleType, device_id: int) -> None:
    """Raise with the first thing that is missing, as onnxruntime itself names it in its log only."""
    # This list is what was compiled in, not what runs here (github.com/microsoft/onnxruntime/issues/23372).
    if CUDA not in ort.get_available_providers():
        raise _CudaError(
            "the installed onnxruntime is built for the CPU only",
            "Replace it with: pip uninstall --yes onnxruntime && pip install 'rnn-onnx[cuda]'",
        )
    driver = find_driver()
    if driver is None:
        raise _CudaError(f"no NVIDIA driver was found ({LIBRARY})", "Install the driver and check it with: nvidia-smi")
    _check_driver(driver, cuda_major(ort), device_id)
    preload_cuda(ort)
    folder = Path(str(ort.__file__)).parent / "capi"
    if (folder / "libonnxruntime_providers_cuda.so").exists():
        # The provider takes symbols from onnxruntime's shared part, which has to be there first.
        try:
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
        except OSError as error:
            raise _CudaError(str(error), _INSTALL_LIBRARIES) from None


def _check_driver(driver: Driver, built_for: int | None, device_id: int) -> None:
    version, devices = driver.cuda_version, driver.devices
    if version and built_for and version[0] < built_for:
        raise _CudaError(
            f"the NVIDIA driver runs CUDA up to {version[0]}.{version[1]}, and this onnxruntime needs {built_for}",
            "Update the driver",
        )
    if driver.problem:
        raise _CudaError(f"the NVIDIA driver could not start: {driver.problem}", _CHECK_GPU)
    if devices is not None and device_id >= len(devices):
        found = ", ".join(f"{number} ({name})" for number, name in enumerate(devices)) or "none"
        raise _CudaError(f"there is no CUDA device {device_id}; found: {found}", "Choose one with --device-id")


def _open_on_cpu(ort: ModuleType, model: bytes, intra_op_threads: int = 1) -> "onnxruntime.InferenceSession":
    try:
        return _create(ort, model, [CPU], intra_op_threads)
    except Exception as error:
        raise ModelError(
            "no ONNX model that onnxruntime can load, or a damaged one: copy it again, or write it with rnn-export "
            f"({error_text(error)})"
        ) from None


def _create(
    ort: ModuleType, model: bytes, providers: list[str | tuple[str, dict[str, str]]], intra_op_threads: int = 1
) -> "onnxruntime.InferenceSession":
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.log_severity_level = 4
    # Its own fallback would print to stdout that it goes on on the CPU, when it starts and in each run.
    return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
