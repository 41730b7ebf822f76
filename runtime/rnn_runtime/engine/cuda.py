"""CUDA: the options of a run, a session whose nodes all run there, and a runner of batches."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.installation import CHECK_GPU, CUDA, INSTALL_LIBRARIES, CudaError, check_cuda
from rnn_runtime.engine.session import BatchT, create_session, divide, error_text, run_session
from rnn_runtime.errors import ProviderError
from rnn_runtime.interruption import result_of
from rnn_runtime.model.fields import PlainFields, Range, check_fields

if TYPE_CHECKING:
    import onnxruntime

_LARGEST = 1 << 14  # images per run. Measured on no GPU yet: beyond it, launching kernels is a small part of a run
_AT_ONCE = 2  # runs: one is padded and copied while the other is computed
# A remedy that every cell has: the target cuda has no loops and no quantized operators.
_EXPORT_FOR_CUDA = "Export the model with: rnn-export --target cuda"
_FALLBACK = "fallback to CPU EP has been explicitly disabled"  # in onnxruntime's error
_INPUT_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


@dataclass(frozen=True, slots=True)
class CudaOptions(PlainFields):
    """How a model runs on CUDA (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider).

    Args:
        device_id: Number of the GPU, as CUDA counts them. `rnn-onnx doctor` lists them.
        memory_limit: Bytes for weights and intermediate results in onnxruntime's arena; None for no limit. CUDA itself,
            and the input and output of a batch, need memory besides.
        tf32: Round the factors of float32 products to 10 bits of mantissa: faster, but further from PyTorch's logits.

    Raises:
        SettingsError: a value has a wrong type or is out of range.
    """

    device_id: Annotated[int, Range(0, (1 << 31) - 1)] = 0
    memory_limit: Annotated[int, Range(1, (1 << 63) - 1)] | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def to_provider_options(self) -> dict[str, str]:
        """The options by onnxruntime's names, as the strings that it expects."""
        options = {"device_id": str(self.device_id), "use_tf32": str(int(self.tf32))}
        if self.memory_limit is None:
            return options
        # By default the arena doubles, and so would reach the limit with half of it unused.
        return options | {"gpu_mem_limit": str(self.memory_limit), "arena_extend_strategy": "kSameAsRequested"}


CUDA_DEFAULTS = CudaOptions()


def start_cuda(model: bytes, cuda: CudaOptions) -> "onnxruntime.InferenceSession":
    """Open a model on CUDA, and run it once.

    Args:
        model: The content of an ONNX file with one input, which opens on the CPU.
        cuda: How to run on CUDA.

    Returns:
        A session all of whose nodes run on CUDA. A first run has succeeded.

    Raises:
        CudaError: CUDA can't run here, or can't run this model.
    """
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
    return CudaError("CUDA has no kernel for some of this model's nodes", _EXPORT_FOR_CUDA)


def _failure(reason: str) -> CudaError:
    # cuDNN is loaded when an operator needs it (github.com/microsoft/onnxruntime/pull/29252).
    return CudaError(reason, INSTALL_LIBRARIES if "cuDNN" in reason else CHECK_GPU)


def _no_device() -> CudaError:
    return CudaError("onnxruntime found no usable CUDA device", CHECK_GPU)


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
        return self._start(output, images).result()

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
