"""CUDA: what it needs and what of that is missing, a session whose nodes all run there, and a runner of batches."""

import contextlib
import ctypes
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine import (
    CUDA,
    INSTALL_CUDA,
    UNINSTALL,
    BatchT,
    CudaOptions,
    create_session,
    cuda_major,
    divide,
    error_text,
    import_onnxruntime,
    installed_packages,
    run_session,
)
from rnn_runtime.errors import ProviderError
from rnn_runtime.interruption import result_of
from rnn_runtime.model.file import exported_precision

if TYPE_CHECKING:
    import onnxruntime

DRIVER = "libcuda.so.1"  # the NVIDIA driver's own library. No CUDA toolkit is needed
_CHECK_GPU = "Check the GPU and its driver with: nvidia-smi"
_INSTALL_LIBRARIES = f"Install CUDA's libraries with: {INSTALL_CUDA}"
_REPLACE = f"Replace onnxruntime with: pip uninstall --yes onnxruntime && {INSTALL_CUDA}"
# A remedy that every cell has: the target cuda has no loops and no quantized operators.
EXPORT_FOR_CUDA = "Export the model with: rnn-export --target cuda"
_FALLBACK = "fallback to CPU EP has been explicitly disabled"  # in onnxruntime's error
_INPUT_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
_LARGEST = 1 << 14  # images per run. Measured on no GPU yet: beyond it, launching kernels is a small part of a run
_AT_ONCE = 2  # runs: one is padded and copied while the other is computed


class CudaError(Exception):
    """A model doesn't start on CUDA. `problem` says why, `remedy` what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        packages = installed_packages()
        if len(packages) > 1:
            # One has replaced files of the other, so this may be the cause of whatever is missing.
            names = " and ".join(f"{name} {version}" for name, version in packages.items())
            problem = f"{names} are installed over one another ({problem})"
            remedy = f"Install one of them only: {UNINSTALL} && {INSTALL_CUDA}"
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver reports. All attributes are None if the library isn't NVIDIA's.

    Attributes:
        cuda_version: The newest version of CUDA that it supports.
        devices: The names of the GPUs, in the order of CUDA's device ids.
        problem: Why the driver couldn't start.
    """

    cuda_version: tuple[int, int] | None = None
    devices: tuple[str, ...] | None = None
    problem: str | None = None


def has_driver() -> bool:
    """Whether an NVIDIA driver is installed. It isn't started."""
    return load_library(DRIVER) is not None


def find_driver() -> Driver | None:
    """Query the driver; None if there is none.

    The functions are documented at docs.nvidia.com/cuda/cuda-driver-api.
    """
    cuda = load_library(DRIVER)
    if cuda is None:
        return None
    if not hasattr(cuda, "cuInit"):
        return Driver()
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = (number.value // 1000, number.value % 1000 // 10)
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number))
    if code:
        return Driver(version, problem=_error_text(cuda, code))
    return Driver(version, tuple(_device_name(cuda, device_id) for device_id in range(number.value)))


def _device_name(cuda: ctypes.CDLL, device_id: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if code := cuda.cuDeviceGet(ctypes.byref(device), device_id) or cuda.cuDeviceGetName(name, len(name), device):
        return _error_text(cuda, code)
    return name.value.decode(errors="replace")


def _error_text(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if hasattr(cuda, "cuGetErrorString"):
        cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode(errors='replace')} (CUDA error {code})"


def check_cuda(device_id: int) -> None:
    """Check that CUDA can start, and load its libraries. onnxruntime names what is missing in its log only.

    Args:
        device_id: Number of the GPU.

    Raises:
        CudaError: names the first thing that is missing.
    """
    ort = import_onnxruntime()
    if CUDA not in ort.get_available_providers():
        raise CudaError("the installed onnxruntime is built for the CPU only", _REPLACE)
    driver = find_driver()
    if driver is None:
        raise CudaError(f"no NVIDIA driver was found ({DRIVER})", "Install the driver and check it with: nvidia-smi")
    _check_driver(driver, cuda_major(), device_id)
    preload_cuda(ort)
    libraries = Path(str(ort.__file__)).parent / "capi"
    provider = libraries / "libonnxruntime_providers_cuda.so"
    if not provider.exists():  # the provider may be built in and not run here (microsoft/onnxruntime#23372)
        return
    try:
        # The provider needs symbols of onnxruntime's shared library, so that is loaded first.
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
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
        raise CudaError(f"the NVIDIA driver could not start: {driver.problem}", _hidden_gpus() or _CHECK_GPU)
    if devices is not None and device_id >= len(devices):
        found = ", ".join(f"{number} ({name})" for number, name in enumerate(devices)) or "none"
        remedy = "Choose one of these" if devices else _hidden_gpus() or _CHECK_GPU
        raise CudaError(f"there is no CUDA device {device_id}; found: {found}", remedy)


def _hidden_gpus() -> str | None:
    """What to do if the environment may be what hides GPUs."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else f"Unset CUDA_VISIBLE_DEVICES, which is {value!r} and may hide the GPU"


def load_library(name: str) -> ctypes.CDLL | None:
    """Load a shared library by its name; None if the system's loader doesn't find it."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def preload_cuda(ort: ModuleType) -> None:
    """Load CUDA's and cuDNN's libraries from pip packages, where these are installed."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which libraries it doesn't find
        ort.preload_dlls()


def start_cuda(
    model: bytes, on_cpu: "onnxruntime.InferenceSession", cuda: CudaOptions
) -> "onnxruntime.InferenceSession":
    """Open a model on CUDA, and run it once.

    Args:
        model: The content of an ONNX file with one input.
        on_cpu: A session of it on the CPU.
        cuda: How to run on CUDA.

    Returns:
        A session all of whose nodes run on CUDA. A first run has succeeded.

    Raises:
        CudaError: CUDA can't run here, or can't run this model.
    """
    if exported_precision(on_cpu.get_modelmeta().custom_metadata_map) == "int8":
        raise CudaError("this model is int8, and CUDA has no kernel for quantized LSTMs", EXPORT_FOR_CUDA)
    check_cuda(cuda.device_id)
    provider = (CUDA, cuda.to_provider_options())
    try:
        session = create_session(model, provider)
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        reason = error_text(error)
        raise (_explain_fallback(model, provider) if _FALLBACK in reason else _failure(reason)) from None
    if session.get_providers()[0] != CUDA:
        raise _no_device()
    images = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in images.shape]
    try:
        session.run(None, {images.name: np.zeros(shape, _INPUT_TYPES[images.type])})
    except Exception as error:
        raise _failure(f"a first run failed: {error_text(error)}") from None
    return session


def _explain_fallback(model: bytes, provider: tuple[str, dict[str, str]]) -> CudaError:
    """Why nodes are left for the CPU: CUDA lacks a kernel, or doesn't start. Then onnxruntime goes on without it."""
    try:
        session = create_session(model, provider, allow_cpu=True)
    except Exception as error:
        return _failure(error_text(error))
    if session.get_providers()[0] != CUDA:
        return _no_device()
    return CudaError("CUDA has no kernel for some of this model's nodes", EXPORT_FOR_CUDA)


def _failure(reason: str) -> CudaError:
    # cuDNN is loaded when an operator needs it (github.com/microsoft/onnxruntime/pull/29252).
    return CudaError(reason, _INSTALL_LIBRARIES if "cuDNN" in reason else _CHECK_GPU)


def _no_device() -> CudaError:
    return CudaError("onnxruntime found no usable CUDA device", _CHECK_GPU)


class CudaRunner:
    """A model on CUDA: a `Runner`. It runs two batches at a time, in threads of its own.

    Rows of a batch are independent. So each batch is padded to a power of two, and one of more than 16,384 images is
    divided: onnxruntime keeps a memory plan per size, and there are only a few sizes this way.

    Args:
        session: A session on CUDA with the input `images` and the outputs `logits` and `probabilities`.
        device_id: Number of the GPU.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", device_id: int = 0) -> None:
        self._session, self._place = session, f"CUDA device {device_id}"
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=f"cuda-{device_id}")
        self._process = os.getpid()

    def run(self, output: str, images: NDArray[np.uint8], *, alone: bool = False) -> NDArray[np.float32]:  # noqa: ARG002
        """Run one batch, as `Runner.run` says."""
        return result_of(self._start(output, images))

    def stream(self, output: str, batches: Iterable[BatchT]) -> Iterator[tuple[BatchT, NDArray[np.float32]]]:
        """Run two batches at a time, as `Runner.stream` says: the device always has something to do."""
        under_way: deque[tuple[BatchT, Future[NDArray[np.float32]]]] = deque()
        for batch in batches:
            under_way.append((batch, self._start(output, batch.images)))
            if len(under_way) == _AT_ONCE:
                first, run = under_way.popleft()
                yield first, result_of(run)
        for batch, run in under_way:
            yield batch, result_of(run)

    def _start(self, output: str, images: NDArray[np.uint8]) -> "Future[NDArray[np.float32]]":
        if os.getpid() != self._process:  # neither its threads nor CUDA exist there
            raise ProviderError("CUDA doesn't run in a forked process. Open the classifier in that process instead")
        return self._threads.submit(self._run, output, images)

    def _run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = divide(images, _LARGEST)
        return np.concatenate([self._run_part(output, part) for part in parts])

    def _run_part(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        power_of_two = 1 << (len(images) - 1).bit_length()
        return run_session(self._session, output, images, self._place, rows=power_of_two)
