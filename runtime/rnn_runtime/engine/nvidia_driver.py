"""The NVIDIA driver's version and GPUs, from its own library. No CUDA toolkit is needed."""

import ctypes
from dataclasses import dataclass

from rnn_runtime.engine.installation import load_library

LIBRARY = "libcuda.so.1"


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
    cuda = load_library(LIBRARY)
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
