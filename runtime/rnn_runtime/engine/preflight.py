"""What CUDA needs, looked for before onnxruntime is asked: it names what is missing in its log only."""

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from rnn_runtime.engine.calls import CUDA
from rnn_runtime.engine.installation import UNINSTALL, cuda_major, installed_packages, preload_cuda
from rnn_runtime.engine.nvidia_driver import LIBRARY, Driver, find_driver

CHECK_GPU = "Check the GPU and its driver with: nvidia-smi"
_INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
INSTALL_LIBRARIES = f"Install CUDA's libraries with: {_INSTALL_CUDA}"
_REPLACE = f"Replace onnxruntime with: pip uninstall --yes onnxruntime && {_INSTALL_CUDA}"
# The module of the packages onnxruntime-ep-cuda*, which bring the provider alone, for any build of onnxruntime
# (github.com/microsoft/onnxruntime, plugin-ep-cuda/python).
_PLUGIN, _LIBRARY = "onnxruntime_ep_cuda", "libonnxruntime_providers_cuda.so"


class CudaError(Exception):
    """A model doesn't start on CUDA. `problem` says why, `remedy` what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        packages = installed_packages()
        if len(packages) > 1:
            # One has replaced files of the other, so this may be the cause of whatever is missing.
            names = " and ".join(f"{name} {version}" for name, version in packages.items())
            problem = f"{names} are installed over one another ({problem})"
            remedy = f"Install one of them only: {UNINSTALL} && {_INSTALL_CUDA}"
        self.problem, self.remedy = problem, remedy


def check_cuda(ort: ModuleType, device_id: int) -> None:
    """Check that CUDA can start, and load its libraries.

    Args:
        ort: The module onnxruntime.
        device_id: Number of the GPU.

    Raises:
        CudaError: names the first thing that is missing.
    """
    is_built_in = CUDA in ort.get_available_providers()  # but may not run here (microsoft/onnxruntime#23372)
    library = _library_of(ort) if is_built_in else _find_plugin()
    if library is None:
        raise CudaError("the installed onnxruntime is built for the CPU only", _REPLACE)
    driver = find_driver()
    if driver is None:
        raise CudaError(f"no NVIDIA driver was found ({LIBRARY})", "Install the driver and check it with: nvidia-smi")
    _check_driver(driver, cuda_major(ort), device_id)
    preload_cuda(ort)
    try:
        if is_built_in and library.exists():
            # The provider needs symbols of onnxruntime's shared library, so that is loaded first.
            ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), mode=ctypes.RTLD_GLOBAL)
        if library.exists():
            ctypes.CDLL(str(library))
    except OSError as error:
        raise CudaError(str(error), INSTALL_LIBRARIES if is_built_in else _REPLACE) from None
    if not is_built_in:
        _register(ort, library)


def _library_of(ort: ModuleType) -> Path:
    return Path(str(ort.__file__)).parent / "capi" / _LIBRARY


def _find_plugin() -> Path | None:
    """The library of the provider in a package of its own, if there is one."""
    spec = find_spec(_PLUGIN)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / _LIBRARY


def _register(ort: ModuleType, library: Path) -> None:
    """Make the provider of a package known to onnxruntime, as that package's own description says."""
    try:
        ort.register_execution_provider_library(CUDA, str(library))
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        if "already registered" not in str(error).lower():
            raise CudaError(
                f"the package {_PLUGIN} doesn't fit onnxruntime {ort.__version__}: {error}", _REPLACE
            ) from None


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
        remedy = (not devices and _hidden_gpus()) or "Choose one with `device_id`"
        raise CudaError(f"there is no CUDA device {device_id}; found: {found}", remedy)


def _hidden_gpus() -> str | None:
    """What to do if the environment may be what hides GPUs."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else f"Unset CUDA_VISIBLE_DEVICES, which is {value!r} and may hide the GPU"
