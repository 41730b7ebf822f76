"""Host memory that the NVIDIA driver has locked, so that a GPU copies from it directly.

onnxruntime's Python API allocates such memory for plugin providers only (github.com/microsoft/onnxruntime/pull/28038).
So it comes from the driver, with functions that docs.nvidia.com/cuda/cuda-driver-api documents. CUDA recognizes its
addresses: onnxruntime needs to know nothing.
"""

import ctypes
import math
import weakref

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.installation import load_library
from rnn_runtime.engine.nvidia_driver import LIBRARY

_FOR_ALL_CONTEXTS = 1  # CU_MEMHOSTALLOC_PORTABLE
_FUNCTIONS = (
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
)


def page_locked(shape: tuple[int, ...], device_id: int = 0) -> NDArray[np.uint8]:
    """Allocate a uint8 array of this shape in page-locked memory.

    Without an NVIDIA driver, or if it locks no more memory, the array is in ordinary memory: copies are slower then,
    and nothing else differs.
    """
    cuda = load_library(LIBRARY)
    address = _allocate(cuda, math.prod(shape), device_id) if cuda is not None else None
    if cuda is None or address is None:
        return np.empty(shape, np.uint8)
    memory = (ctypes.c_uint8 * math.prod(shape)).from_address(address)
    # The array keeps `memory` alive. When a process ends, the driver frees its memory.
    weakref.finalize(memory, cuda.cuMemFreeHost, ctypes.c_void_p(address)).atexit = False
    return np.ctypeslib.as_array(memory).reshape(shape)


def _allocate(cuda: ctypes.CDLL, size: int, device_id: int) -> int | None:
    if not all(hasattr(cuda, name) for name in _FUNCTIONS):
        return None
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    # The device's primary context is the one in which CUDA's runtime, and so onnxruntime, works.
    if (
        cuda.cuDeviceGet(ctypes.byref(device), device_id)
        or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or cuda.cuCtxPushCurrent_v2(context)
    ):
        return None
    failed = cuda.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), _FOR_ALL_CONTEXTS)
    cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    return None if failed else address.value
