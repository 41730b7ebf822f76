"""CUDA: the options of a run, and what is missing where CUDA can't start."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import numpy as np

from rnn_runtime.engine.calls import create_session, error_text, run_options
from rnn_runtime.engine.installation import UNINSTALL, cuda_major, installed_packages, preload_cuda
from rnn_runtime.engine.nvidia_driver import LIBRARY, Driver, find_driver
from rnn_runtime.model.fields import PlainFields, Range, check_fields

if TYPE_CHECKING:
    import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

_CHECK_GPU = "Check the GPU and its driver with: nvidia-smi"
_INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_INSTALL_LIBRARIES = f"Install CUDA's libraries with: {_INSTALL_CUDA}"
_INPUT_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


@dataclass(frozen=True, slots=True)
class CudaOptions(PlainFields):
    """How a model runs on CUDA (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider).

    Args:
        device_id: Number of the GPU, as CUDA counts them. `rnn-infer --doctor` lists them.
        memory_limit: Bytes for weights and intermediate results in onnxruntime's arena; None for no limit. CUDA itself,
            and the input and output of a batch, need memory besides.
        tf32: Round the factors of float32 products to 10 bits of mantissa: faster, but further from PyTorch's logits.
        graph: Capture the first run of each batch size as a CUDA graph, and replay it in later runs: less time between
            kernels. Needs a model without loops, as `rnn-export --graph unrolled` or `operator` writes it.

    Raises:
        SettingsError: a value has a wrong type or is out of range.
    """

    device_id: Annotated[int, Range(0, (1 << 31) - 1)] = 0
    memory_limit: Annotated[int, Range(1, (1 << 63) - 1)] | None = None
    tf32: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def to_provider_options(self) -> dict[str, str]:
        """The options by onnxruntime's names, as the strings that it expects."""
        options = {
            "device_id": str(self.device_id),
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.graph)),
        }
        return options if self.memory_limit is None else options | {"gpu_mem_limit": str(self.memory_limit)}


CUDA_DEFAULTS = CudaOptions()


class CudaError(Exception):
    """CUDA doesn't start. `problem` says why, `remedy` what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        packages = installed_packages()
        if len(packages) > 1:
            # One has replaced files of the other, so this may be the cause of whatever is missing.
            names = " and ".join(f"{name} {version}" for name, version in packages.items())
            problem = f"{names} are installed over one another ({problem})"
            remedy = f"Install one of them only: {UNINSTALL} && {_INSTALL_CUDA}"
        self.problem, self.remedy = problem, remedy


def start_cuda(ort: ModuleType, model: bytes, cuda: CudaOptions) -> "onnxruntime.InferenceSession":
    """Open a model on CUDA, and run it once.

    Args:
        ort: The module onnxruntime.
        model: The content of an ONNX file with one input.
        cuda: How to run on CUDA.

    Raises:
        CudaError: CUDA can't run here, or can't run this model.
        Exception: whatever onnxruntime raises for a model that it can't open at all.
    """
    _check_cuda(ort, cuda.device_id)
    try:
        session = create_session(ort, model, [(CUDA, cuda.to_provider_options()), CPU])
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        create_session(ort, model, [CPU])  # raises if the model is at fault
        reason = error_text(error)
        if "graph capture feature" in reason:
            raise CudaError(
                f"this model can't be captured in a CUDA graph: {reason}",
                "Run without CUDA graphs, or export the model with: rnn-export --graph unrolled",
            ) from None
        raise CudaError(reason, _CHECK_GPU) from None
    # Where CUDA doesn't start, onnxruntime uses the CPU and doesn't tell the caller.
    if session.get_providers()[0] != CUDA:
        raise CudaError("onnxruntime found no usable CUDA device", _CHECK_GPU)
    _run_once(session)
    return session


def _check_cuda(ort: ModuleType, device_id: int) -> None:
    """Raise an error for the first thing that is missing. onnxruntime names it in its log only."""
    # These are compiled in, but may not run here (github.com/microsoft/onnxruntime/issues/23372).
    if CUDA not in ort.get_available_providers():
        raise CudaError(
            "the installed onnxruntime is built for the CPU only",
            f"Replace it with: pip uninstall --yes onnxruntime && {_INSTALL_CUDA}",
        )
    driver = find_driver()
    if driver is None:
        raise CudaError(f"no NVIDIA driver was found ({LIBRARY})", "Install the driver and check it with: nvidia-smi")
    _check_driver(driver, cuda_major(ort), device_id)
    preload_cuda(ort)
    folder = Path(str(ort.__file__)).parent / "capi"
    if (folder / "libonnxruntime_providers_cuda.so").exists():
        # The provider needs symbols of onnxruntime's shared library, so that is loaded first.
        try:
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
        except OSError as error:
            raise CudaError(str(error), _INSTALL_LIBRARIES) from None


def _check_driver(driver: Driver, built_for: int | None, device_id: int) -> None:
    version, devices = driver.cuda_version, driver.devices
    if version and built_for and version[0] < built_for:
        raise CudaError(
            f"the NVIDIA driver supports CUDA up to {version[0]}.{version[1]}, and this onnxruntime needs {built_for}",
            "Update the driver",
        )
    if driver.problem:
        raise CudaError(f"the NVIDIA driver could not start: {driver.problem}", _CHECK_GPU)
    if devices is not None and device_id >= len(devices):
        found = ", ".join(f"{number} ({name})" for number, name in enumerate(devices)) or "none"
        raise CudaError(f"there is no CUDA device {device_id}; found: {found}", "Choose one with `device_id`")


def _run_once(session: "onnxruntime.InferenceSession") -> None:
    images = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in images.shape]
    try:
        session.run(None, {images.name: np.zeros(shape, _INPUT_TYPES[images.type])}, run_options())
    except Exception as error:
        reason = error_text(error)
        # cuDNN is loaded by the first operator that needs it (github.com/microsoft/onnxruntime/pull/29252).
        remedy = _INSTALL_LIBRARIES if "cuDNN" in reason else _CHECK_GPU
        raise CudaError(f"a first run failed: {reason}", remedy) from None
