"""An onnxruntime session on the execution provider that was asked for, or an error: never on another."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from rnn_runtime.device_buffers import run_options
from rnn_runtime.errors import MissingPackageError, ModelError, ProviderError

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["auto", "cuda", "cpu"]
PROVIDERS: tuple[Provider, ...] = ("auto", "cuda", "cpu")

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session, the provider it runs on, and for `auto` on the CPU the reason why it isn't CUDA."""

    session: "onnxruntime.InferenceSession"
    provider: Literal["cuda", "cpu"]
    notice: str | None = None


def open_session(
    model: bytes, provider: Provider = "auto", *, intra_op_threads: int = 1, cuda_graph: bool = False
) -> OpenSession:
    """Open a model on an execution provider.

    Runs may go on in several threads at once.

    Args:
        model: The content of an ONNX file whose one input is uint8 `(batch, height, width, channels)`.
        provider: `cpu`; `cuda`, which runs on CUDA or raises; `auto`, which is CUDA where it runs, else CPU.
        intra_op_threads: CPU threads that share each operator of a run; with 1, a run uses the calling thread only.
        cuda_graph: On CUDA, allow runs to be captured and replayed as CUDA graphs.

    Returns:
        The session and the provider it runs on. On CUDA, a first run has succeeded.

    Raises:
        MissingPackageError: no onnxruntime is installed.
        ModelError: no ONNX model that onnxruntime can load.
        ProviderError: CUDA was asked for and can't run here; the text says what is missing.
    """
    ort = _import_onnxruntime()
    if provider not in PROVIDERS:
        raise ProviderError(f"provider must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    problem = None
    if provider != "cpu":
        try:
            return OpenSession(_start_cuda(ort, model, cuda_graph), "cuda")
        except _CudaError as error:
            problem = error.problem
            if provider == "cuda":
                raise ProviderError(
                    f"the CUDA provider could not start: {problem}. {error.remedy}, or run with --provider cpu"
                ) from None
    return OpenSession(_create(ort, model, [CPU], intra_op_threads), "cpu", problem)


class _CudaError(Exception):
    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy


def _start_cuda(ort: ModuleType, model: bytes, cuda_graph: bool) -> "onnxruntime.InferenceSession":
    _check_cuda_libraries(ort)
    # TF32 rounds a product's factors to 10 bits of mantissa: parity comes first, so it is off.
    options = {"use_tf32": "0", "enable_cuda_graph": str(int(cuda_graph))}
    try:
        session = _create(ort, model, [(CUDA, options), CPU])
    except ModelError as error:
        if not cuda_graph:
            raise
        raise _CudaError(
            f"no CUDA graph can be made of this model: {error}",
            "Leave out --cuda-graph, or export the model with --graph unrolled",
        ) from None
    # onnxruntime takes the CPU without a word to the caller where CUDA doesn't start.
    if session.get_providers()[0] != CUDA:
        raise _CudaError("onnxruntime found no usable CUDA device", "Check the GPU and its driver with: nvidia-smi")
    images = session.get_inputs()[0]
    try:
        session.run(None, {images.name: np.zeros((1, *images.shape[1:]), np.uint8)}, run_options("-1"))
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        reason = " ".join(str(error).split())
        raise _CudaError(f"a first run failed: {reason}", "Check the GPU with: nvidia-smi") from None
    return session


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"onnxruntime can't be imported ({error}). Install it with: pip install 'rnn-onnx[cpu]', "
            "or on a machine with an NVIDIA GPU: pip install 'rnn-onnx[cuda]'"
        ) from None
    # Its log goes to stderr past Python; what matters in it, our own errors say.
    onnxruntime.set_default_logger_severity(4)
    return cast(ModuleType, onnxruntime)


def _create(
    ort: ModuleType, model: bytes, providers: list[str | tuple[str, dict[str, str]]], intra_op_threads: int = 1
) -> "onnxruntime.InferenceSession":
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            "no ONNX model that onnxruntime can load, or a damaged one: copy it again, or write it with rnn-export "
            f"({reason})"
        ) from None


def _check_cuda_libraries(ort: ModuleType) -> None:
    """Raise with the first thing that is missing, as onnxruntime itself names it in its log only."""
    # This list is what was compiled in, not what runs here (github.com/microsoft/onnxruntime/issues/23372).
    if CUDA not in ort.get_available_providers():
        raise _CudaError(
            "the installed onnxruntime is built for the CPU only",
            "Replace it with: pip uninstall --yes onnxruntime && pip install 'rnn-onnx[cuda]'",
        )
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        raise _CudaError(
            "no NVIDIA driver was found (libcuda.so.1)", "Install the driver and check it with: nvidia-smi"
        ) from None
    ort.preload_dlls()  # finds CUDA and cuDNN where pip installed them
    folder = Path(str(ort.__file__)).parent / "capi"
    if (folder / "libonnxruntime_providers_cuda.so").exists():
        # The provider takes symbols from onnxruntime's shared part, which has to be there first.
        try:
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
        except OSError as error:
            raise _CudaError(str(error), "Install it with: pip install 'rnn-onnx[cuda]'") from None
