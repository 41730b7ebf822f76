"""CUDA: the options of a run, and a session whose nodes all run there."""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import numpy as np

from rnn_runtime.engine.calls import CUDA, create_session, error_text, run_options
from rnn_runtime.engine.captures import CAPTURES
from rnn_runtime.engine.preflight import CHECK_GPU, INSTALL_LIBRARIES, CudaError, check_cuda
from rnn_runtime.model.fields import PlainFields, Range, check_fields

if TYPE_CHECKING:
    import onnxruntime

# Remedies that every cell has: the target cuda has no loops and no quantized operators.
_EXPORT_FOR_CUDA = "Export the model with: rnn-export --target cuda"
_WITHOUT_GRAPH = "Run without CUDA graphs, or export it with: rnn-export --target cuda"
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
        graph: Capture the first run of each batch size as a CUDA graph, and replay it in later runs: less time between
            kernels. Needs a model without loops, as `rnn-export --target cuda` writes it.

    Raises:
        SettingsError: a value has a wrong type or is out of range.
    """

    device_id: Annotated[int, Range(0, (1 << 31) - 1)] = 0
    memory_limit: Annotated[int, Range(1, (1 << 63) - 1)] | None = None
    tf32: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def to_provider_options(self) -> dict[str, str]:
        """The options by onnxruntime's names, as the strings that it expects."""
        options = {
            "device_id": str(self.device_id),
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.graph)),
        }
        if self.memory_limit is None:
            return options
        # By default the arena doubles, and so would reach the limit with half of it unused.
        return options | {"gpu_mem_limit": str(self.memory_limit), "arena_extend_strategy": "kSameAsRequested"}


CUDA_DEFAULTS = CudaOptions()


class CaptureError(CudaError):
    """A model runs on CUDA, but can't be captured in a CUDA graph."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this model can't be captured in a CUDA graph: {reason}", _WITHOUT_GRAPH)


@dataclass(frozen=True, slots=True)
class CudaSession:
    """A session on CUDA.

    Attributes:
        session: All of its nodes run on CUDA. A first run has succeeded.
        options: How it runs, which may be without the CUDA graph that was asked for.
        notice: Why it runs without one; None if nothing was left out.
    """

    session: "onnxruntime.InferenceSession"
    options: CudaOptions
    notice: str | None = None


def start_cuda(ort: ModuleType, model: bytes, cuda: CudaOptions, *, graph_required: bool) -> CudaSession:
    """Open a model on CUDA, and run it once.

    Args:
        ort: The module onnxruntime.
        model: The content of an ONNX file with one input, which opens on the CPU.
        cuda: How to run on CUDA.
        graph_required: Whether a model that can't be captured in a CUDA graph is an error, if `cuda` asks for graphs.

    Raises:
        CudaError: CUDA can't run here, or can't run this model.
    """
    check_cuda(ort, cuda.device_id)
    try:
        session = _open(ort, model, cuda)
    except CaptureError as error:
        if graph_required:
            raise
        cuda = replace(cuda, graph=False)
        return CudaSession(_open(ort, model, cuda), cuda, error.problem)
    return CudaSession(session, cuda)


def _open(ort: ModuleType, model: bytes, cuda: CudaOptions) -> "onnxruntime.InferenceSession":
    provider = (CUDA, cuda.to_provider_options())
    # Allocating memory would spoil a capture that is going on.
    with CAPTURES.shared():
        try:
            session = create_session(ort, model, provider)
        except Exception as error:  # onnxruntime's exceptions share no base class below this one
            reason = error_text(error)
            if "graph capture feature" in reason:
                raise CaptureError(reason) from None
            if _FALLBACK in reason:
                raise _explain_fallback(ort, model, provider) from None
            raise CudaError(reason, CHECK_GPU) from None
        if session.get_providers()[0] != CUDA:
            raise _no_device()
        _run_once(session)
        return session


def _explain_fallback(ort: ModuleType, model: bytes, provider: tuple[str, dict[str, str]]) -> CudaError:
    """Why nodes are left for the CPU: CUDA lacks a kernel, or doesn't start. Then onnxruntime goes on without it."""
    try:
        session = create_session(ort, model, provider, allow_cpu=True)
    except Exception as error:
        return CudaError(error_text(error), CHECK_GPU)
    if session.get_providers()[0] != CUDA:
        return _no_device()
    return CudaError("CUDA has no kernel for some of this model's nodes", _EXPORT_FOR_CUDA)


def _no_device() -> CudaError:
    return CudaError("onnxruntime found no usable CUDA device", CHECK_GPU)


def _run_once(session: "onnxruntime.InferenceSession") -> None:
    images = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in images.shape]
    try:
        session.run(None, {images.name: np.zeros(shape, _INPUT_TYPES[images.type])}, run_options())
    except Exception as error:
        reason = error_text(error)
        # cuDNN is loaded by the first operator that needs it (github.com/microsoft/onnxruntime/pull/29252).
        remedy = INSTALL_LIBRARIES if "cuDNN" in reason else CHECK_GPU
        raise CudaError(f"a first run failed: {reason}", remedy) from None
