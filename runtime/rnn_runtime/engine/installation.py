"""What is installed: onnxruntime, the NVIDIA driver, CUDA's libraries; and what is missing, with how to get it."""

import contextlib
import ctypes
import io
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from rnn_runtime.errors import MissingPackageError

CUDA = "CUDAExecutionProvider"
DRIVER = "libcuda.so.1"  # the NVIDIA driver's own library. No CUDA toolkit is needed

CHECK_GPU = "Check the GPU and its driver with: nvidia-smi"
_UNINSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu"
_INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
INSTALL_LIBRARIES = f"Install CUDA's libraries with: {_INSTALL_CUDA}"
_REPLACE = f"Replace onnxruntime with: pip uninstall --yes onnxruntime && {_INSTALL_CUDA}"
_INSTALL = f"pip install onnxruntime, or with an NVIDIA GPU: {_INSTALL_CUDA}"


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        MissingPackageError: it isn't installed, or a part of it is missing; the text says how to repair it.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise (_missing() if error.name == "onnxruntime" else _broken(str(error))) from None
    except Exception as error:  # anything may be missing in a broken installation
        raise _broken(str(error)) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # Python imports a leftover folder without files as a module
        if not installed_packages():
            raise _missing()
        raise _broken("most of its files are missing, as after uninstalling one of two packages that share them")
    return cast(ModuleType, onnxruntime)


def installed_packages() -> dict[str, str]:
    """The versions of the packages that provide the module `onnxruntime`. Both install into the same folder."""
    import importlib.metadata  # takes 20 ms, and is needed only where something is wrong

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cuda_major(ort: ModuleType) -> int | None:
    """The major version of CUDA that onnxruntime was built for; None if it was built for the CPU."""
    version = str(getattr(ort, "cuda_version", "")).partition(".")[0]
    return int(version) if version.isdigit() else None


def preload_cuda(ort: ModuleType) -> None:
    """Load CUDA's and cuDNN's libraries from pip packages, where these are installed."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which libraries it doesn't find
        ort.preload_dlls()


def load_library(name: str) -> ctypes.CDLL | None:
    """Load a shared library by its name; None if the system's loader doesn't find it."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _missing() -> MissingPackageError:
    return MissingPackageError(f"onnxruntime is not installed. Install it with: {_INSTALL}")


def _broken(reason: str) -> MissingPackageError:
    packages = installed_packages()
    if len(packages) > 1:
        reason = f"{' and '.join(packages)} are installed over one another: {reason}"
    return MissingPackageError(
        f"the installed onnxruntime is broken ({reason}). Repair it with: {_UNINSTALL} && {_INSTALL}"
    )


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


class CudaError(Exception):
    """A model doesn't start on CUDA. `problem` says why, `remedy` what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        packages = installed_packages()
        if len(packages) > 1:
            # One has replaced files of the other, so this may be the cause of whatever is missing.
            names = " and ".join(f"{name} {version}" for name, version in packages.items())
            problem = f"{names} are installed over one another ({problem})"
            remedy = f"Install one of them only: {_UNINSTALL} && {_INSTALL_CUDA}"
        self.problem, self.remedy = problem, remedy


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
    _check_driver(driver, cuda_major(ort), device_id)
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
        raise CudaError(str(error), INSTALL_LIBRARIES) from None


def _check_driver(driver: Driver, built_for: int | None, device_id: int) -> None:
    version, devices = driver.cuda_version, driver.devices
    if version and built_for and version[0] < built_for:
        raise CudaError(
            f"the NVIDIA driver supports CUDA up to {version[0]}.{version[1]}, and this onnxruntime needs {built_for}",
            "Update the driver",
        )
    if driver.problem:
        raise CudaError(f"the NVIDIA driver could not start: {driver.problem}", _hidden_gpus() or CHECK_GPU)
    if devices is not None and device_id >= len(devices):
        found = ", ".join(f"{number} ({name})" for number, name in enumerate(devices)) or "none"
        remedy = "Choose one of these" if devices else _hidden_gpus() or CHECK_GPU
        raise CudaError(f"there is no CUDA device {device_id}; found: {found}", remedy)


def _hidden_gpus() -> str | None:
    """What to do if the environment may be what hides GPUs."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else f"Unset CUDA_VISIBLE_DEVICES, which is {value!r} and may hide the GPU"
