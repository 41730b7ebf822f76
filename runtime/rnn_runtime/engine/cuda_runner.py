"""Runs on CUDA: batches padded to a few sizes, copies that overlap with computing, and CUDA graphs."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.buckets import LARGEST, Buckets, divide
from rnn_runtime.engine.calls import error_text, run_failure, run_options
from rnn_runtime.engine.captures import CAPTURES, graph_thread
from rnn_runtime.engine.staging import Staging
from rnn_runtime.errors import ProviderError

if TYPE_CHECKING:
    import onnxruntime

_OUTPUTS = ("logits", "probabilities")
_AT_ONCE = 2  # runs: one is copied while the other is computed


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured graph: it reads and writes these buffers, whose addresses never change."""

    images: "onnxruntime.OrtValue"
    outputs: "dict[str, onnxruntime.OrtValue]"
    binding: "onnxruntime.IOBinding"
    options: "onnxruntime.RunOptions"


class CudaRunner:
    """A session on CUDA. Any number of threads may run it.

    Runs take place in threads of its own: two, so that one batch is copied while another is computed; or, with graphs,
    the one thread that all graphs of the device share.

    Args:
        session: A session with the input `images` and the outputs `logits` and `probabilities`.
        shape: The shape of an image.
        classes: Number of columns of the outputs.
        device: onnxruntime's name of the device: `cuda`, or `cpu` in tests.
        device_id: The device's number.
        graph: Capture the first run of each batch size as a CUDA graph, and replay it in later runs. The session needs
            the provider option `enable_cuda_graph`.

    Attributes:
        notice (str | None): Why no more graphs are captured; None as long as all goes well.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        shape: tuple[int, ...],
        classes: int,
        *,
        device: str = "cuda",
        device_id: int = 0,
        graph: bool = False,
    ) -> None:
        self._session, self._shape, self._classes = session, shape, classes
        self._device, self._device_id = device, device_id
        self._with_graphs = graph
        self._threads = (
            graph_thread(device_id) if graph else ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=f"cuda-{device_id}")
        )
        self._process = os.getpid()
        self._buckets = Buckets()
        self._staging = Staging(shape, device_id)
        self._graphs: dict[int, _Graph] = {}  # by batch size; used in the graph thread only
        # onnxruntime keeps graphs by number. The number of a capture that failed can't be used again.
        self._numbers = itertools.count(1)
        self.notice: str | None = None

    def allocate(self, images: int, batch_size: int) -> NDArray[np.uint8]:
        """Memory for a batch, from which it is copied to the device without a copy in between.

        It belongs to the caller until it is run.

        Args:
            images: Number of images, 1 or more.
            batch_size: The size of full batches.
        """
        if images > LARGEST:
            return np.empty((images, *self._shape), np.uint8)
        return self._staging.take(self._buckets.fit(images, batch_size))[:images]

    def start(
        self, output: str, images: NDArray[np.uint8], batch_size: int | None = None
    ) -> "Future[NDArray[np.float32]]":
        """Begin to run a batch; shapes and errors as for `run`. Errors come with the result."""
        if os.getpid() != self._process:  # neither its threads nor CUDA exist there
            raise ProviderError("CUDA doesn't run in a forked process. Open the classifier in that process instead")
        return self._threads.submit(self._run, output, images, batch_size)

    def run(self, output: str, images: NDArray[np.uint8], batch_size: int | None = None) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            output: `logits` or `probabilities`.
            images: uint8 `(batch, height, width, channels)`, in C order, batch 1 or more.
            batch_size: The size of full batches, if this is one or a part of one; None for a batch of any size.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            ProviderError: the run failed, for instance because the device's memory ran out.
        """
        return self.start(output, images, batch_size).result()

    def _run(self, output: str, images: NDArray[np.uint8], batch_size: int | None) -> NDArray[np.float32]:
        parts = [self._run_part(output, images[part], batch_size) for part in divide(len(images))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run_part(self, output: str, images: NDArray[np.uint8], batch_size: int | None) -> NDArray[np.float32]:
        rows = self._buckets.fit(len(images), batch_size)
        staged = self._staging.find(images)
        if staged is None and len(images) < rows:
            staged = self._staging.take(rows)
            staged[: len(images)] = images
        padded = images if staged is None else staged
        try:
            values = self._run_rows(output, padded)
        except Exception as error:  # onnxruntime's exceptions share no base class below this one
            # The memory may have run out, or may do so because of what this size keeps.
            self._buckets.forget(len(padded))
            if staged is not None:
                self._staging.discard(staged)
            raise run_failure(len(images), f"the device {self._device}:{self._device_id}", error) from None
        self._buckets.keep(len(padded))
        if staged is not None:
            self._staging.give_back(staged)
        return values[: len(images)]

    def _run_rows(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        graph = self._graphs.get(len(images))
        if graph is not None:
            with CAPTURES.shared():
                return self._replay(graph, output, images)
        problem = None
        if self._with_graphs and self.notice is None:
            try:
                return self._capture(output, images)
            except Exception as error:
                problem = error_text(error)
        with CAPTURES.shared():
            values = self._session.run([output], {"images": images}, run_options())[0]
        if problem is not None:  # if the plain run fails as well, it isn't for the capture
            self.notice = f"no more CUDA graphs are captured: {problem}"
        return values  # type: ignore[no-any-return]

    def _capture(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with CAPTURES.alone():
            graph = self._allocate_graph(len(images), next(self._numbers))
            values = self._replay(graph, output, images)
        self._graphs[len(images)] = graph
        return values

    def _replay(self, graph: _Graph, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        graph.images.update_inplace(images)
        self._session.run_with_iobinding(graph.binding, graph.options)
        values = graph.outputs[output].numpy()
        return values.copy() if self._device == "cpu" else values  # type: ignore[no-any-return]  # on the CPU, the buffer itself

    def _allocate_graph(self, rows: int, number: int) -> _Graph:
        import onnxruntime

        def allocate(shape: Sequence[int], dtype: type[np.generic]) -> "onnxruntime.OrtValue":
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self._device, self._device_id)

        images = allocate((rows, *self._shape), np.uint8)
        outputs = {name: allocate((rows, self._classes), np.float32) for name in _OUTPUTS}
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Graph(images, outputs, binding, run_options(str(number)))
