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
    cuda, size = load_library(LIBRARY), math.prod(shape)
    context = None if cuda is None else _primary_context(cuda, device_id)
    address = None if cuda is None or context is None else _allocate(cuda, context, size)
    if cuda is None or context is None or address is None:
        return np.empty(shape, np.uint8)
    memory = (ctypes.c_uint8 * size).from_address(address)
    # The array keeps `memory` alive. When a process ends, the driver frees its memory.
    weakref.finalize(memory, _free, cuda, context, address).atexit = False
    return np.ctypeslib.as_array(memory).reshape(shape)


def _primary_context(cuda: ctypes.CDLL, device_id: int) -> ctypes.c_void_p | None:
    """The device's context in which CUDA's runtime, and so onnxruntime, works; None if there is none."""
    if not all(hasattr(cuda, name) for name in _FUNCTIONS):
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    failed = cuda.cuDeviceGet(ctypes.byref(device), device_id) or cuda.cuDevicePrimaryCtxRetain(
        ctypes.byref(context), device
    )
    return None if failed else context


def _allocate(cuda: ctypes.CDLL, context: ctypes.c_void_p, size: int) -> int | None:
    if cuda.cuCtxPushCurrent_v2(context):
        return None
    address = ctypes.c_void_p()
    failed = cuda.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), _FOR_ALL_CONTEXTS)
    cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    return None if failed else address.value


def _free(cuda: ctypes.CDLL, context: ctypes.c_void_p, address: int) -> None:
    if cuda.cuCtxPushCurrent_v2(context) == 0:
        cuda.cuMemFreeHost(ctypes.c_void_p(address))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
