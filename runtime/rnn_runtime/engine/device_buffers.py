"""Runs between buffers that stay on the device: a run allocates nothing, and CUDA can replay it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.calls import NO_GRAPH, run_failure, run_options

if TYPE_CHECKING:
    import onnxruntime

_OUTPUTS = ("logits", "probabilities")
_MOST_SIZES = 8  # batch sizes with buffers; further sizes run without


@dataclass(slots=True)
class _Buffers:
    images: "onnxruntime.OrtValue"
    outputs: "dict[str, onnxruntime.OrtValue]"
    binding: "onnxruntime.IOBinding"
    options: "onnxruntime.RunOptions"


class DeviceBuffers:
    """A session whose input and outputs are bound to buffers on a device, one set per batch size.

    Safe to use from several threads. Runs take turns.

    Args:
        session: A session with the input `images` and the outputs `logits` and `probabilities`.
        classes: Number of columns of the outputs.
        device: onnxruntime's name of the device: `cuda` or `cpu`.
        device_id: The device's number.
        cuda_graph: Capture the first run of each batch size as a CUDA graph, and replay it in later runs. The session
            needs the provider option `enable_cuda_graph`.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        classes: int,
        device: str,
        *,
        device_id: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        self._session = session
        self._classes = classes
        self._device, self._device_id = device, device_id
        self._cuda_graph = cuda_graph
        self._lock = threading.Lock()
        self._buffers: dict[int, _Buffers] = {}

    def run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            output: `logits` or `probabilities`.
            images: uint8 `(batch, height, width, channels)`, in C order, batch 1 or more.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            ProviderError: the run failed, for instance because the device's memory ran out.
        """
        try:
            with self._lock:
                return self._run(output, images)
        except Exception as error:  # onnxruntime's exceptions share no base class below this one
            raise run_failure(len(images), f"the device {self._device}:{self._device_id}", error) from None

    def _run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        buffers = self._buffers.get(len(images))
        if buffers is None:
            if len(self._buffers) >= _MOST_SIZES:
                return self._session.run([output], {"images": images}, run_options())[0]  # type: ignore[no-any-return]
            buffers = self._buffers[len(images)] = self._allocate(images.shape)
        buffers.images.update_inplace(images)
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        return buffers.outputs[output].numpy().copy()  # type: ignore[no-any-return]  # without copy(), on the CPU, this is the buffer itself

    def _allocate(self, shape: Sequence[int]) -> _Buffers:
        import onnxruntime

        def allocate(sides: Sequence[int], dtype: type[np.generic]) -> "onnxruntime.OrtValue":
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(sides), dtype, self._device, self._device_id)

        images = allocate(shape, np.uint8)
        outputs = {name: allocate((shape[0], self._classes), np.float32) for name in _OUTPUTS}
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        # onnxruntime keeps graphs by number; each batch size gets its own.
        return _Buffers(
            images, outputs, binding, run_options(str(len(self._buffers) + 1) if self._cuda_graph else NO_GRAPH)
        )
