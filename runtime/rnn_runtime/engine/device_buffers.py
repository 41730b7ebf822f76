"""Running a session between arrays that stay on its device: nothing is allocated for a run, and CUDA can replay it."""

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
_MOST_SIZES = 8  # batch sizes whose buffers are kept; what comes beyond is run without


@dataclass(slots=True)
class _Buffers:
    images: "onnxruntime.OrtValue"
    outputs: "dict[str, onnxruntime.OrtValue]"
    binding: "onnxruntime.IOBinding"
    options: "onnxruntime.RunOptions"


class DeviceBuffers:
    """A session whose input and outputs are bound to buffers on a device, one set for each batch size in use.

    Safe to use from several threads; runs take turns.

    Args:
        session: Takes `images`, gives `logits` and `probabilities`, as `rnn-export` writes them.
        classes: Columns of the outputs.
        device: onnxruntime's name of the device: `cuda` or `cpu`.
        device_id: Which of them; on it lie the buffers.
        cuda_graph: Capture the first run of each batch size as a CUDA graph, and replay it from then on. The
            session must have been made with the provider option `enable_cuda_graph`.
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
            ProviderError: the device fails, or its memory doesn't suffice.
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
        return buffers.outputs[output].numpy().copy()  # type: ignore[no-any-return]  # else, on the CPU, the buffer itself

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
        # A graph is remembered by number; every batch size has one of its own.
        return _Buffers(
            images, outputs, binding, run_options(str(len(self._buffers) + 1) if self._cuda_graph else NO_GRAPH)
        )
