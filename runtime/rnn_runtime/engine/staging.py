"""Arrays in which batches wait for their copy to the device, used again and again."""

import threading
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.captures import CAPTURES
from rnn_runtime.engine.page_locked import page_locked


class Staging:
    """Page-locked arrays of a few sizes. There are as many as were in use at once.

    Args:
        shape: The shape of an image.
        device_id: Number of the GPU.
    """

    def __init__(self, shape: tuple[int, ...], device_id: int) -> None:
        self._shape, self._device_id = shape, device_id
        self._lock = threading.Lock()
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self._taken: dict[int, NDArray[np.uint8]] = {}  # by address

    def take(self, rows: int) -> NDArray[np.uint8]:
        """An array of this many images, whose content is of no meaning."""
        with self._lock:
            array = self._free[rows].pop() if self._free[rows] else None
        if array is None:
            with CAPTURES.shared():
                array = page_locked((rows, *self._shape), self._device_id)
        with self._lock:
            self._taken[array.ctypes.data] = array
        return array

    def find(self, images: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """The array that was taken and that these images are the beginning of; None if they are in no such array."""
        with self._lock:
            return self._taken.get(images.ctypes.data)

    def give_back(self, array: NDArray[np.uint8]) -> None:
        """Let an array that was taken be used again."""
        with self._lock:
            del self._taken[array.ctypes.data]
            self._free[len(array)].append(array)

    def discard(self, array: NDArray[np.uint8]) -> None:
        """Release the memory of an array that was taken, and of all arrays of its size that nobody has taken."""
        with self._lock:
            del self._taken[array.ctypes.data]
            self._free.pop(len(array), None)
