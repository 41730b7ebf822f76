"""An onnxruntime session on the requested execution provider, or an error; never on another provider."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from rnn_runtime.engine.calls import CPU, create_session, error_text
from rnn_runtime.engine.cuda import CUDA_DEFAULTS, CudaOptions, start_cuda
from rnn_runtime.engine.installation import cuda_major, import_onnxruntime, installed_packages
from rnn_runtime.engine.nvidia_driver import find_driver
from rnn_runtime.engine.preflight import CudaError
from rnn_runtime.errors import ModelError, ProviderError, SettingsError
from rnn_runtime.model.metadata import exported_precision

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["auto", "cuda", "cpu"]
PROVIDERS: tuple[Provider, ...] = ("auto", "cuda", "cpu")


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session and the provider that it runs on.

    Attributes:
        session: The session. All of its nodes run on the provider.
        provider: Its provider.
        cuda: How it runs on CUDA.
        problem: Why CUDA doesn't start, if `auto` chose the CPU.
        remedy: What to do about it.
        notice: What `auto` left out of what was asked for, why, and what to do: CUDA graphs; or CUDA, if options for it
            were given, or a driver or a CUDA build of onnxruntime is installed (elsewhere, the CPU is as expected).
    """

    session: "onnxruntime.InferenceSession"
    provider: Literal["cuda", "cpu"]
    cuda: CudaOptions = CUDA_DEFAULTS
    problem: str | None = None
    remedy: str | None = None
    notice: str | None = None


def open_session(
    model: bytes, provider: Provider = "auto", *, intra_op_threads: int = 1, cuda: CudaOptions = CUDA_DEFAULTS
) -> OpenSession:
    """Open a model on an execution provider.

    Several threads may run it at once.

    Args:
        model: The content of an ONNX file whose one input is uint8 `(batch, height, width, channels)`.
        provider: `cpu`; `cuda`, which runs all nodes on CUDA or raises; or `auto`, which is CUDA if all nodes run
            there, else the CPU. Where CUDA graphs can't be captured, `auto` runs on CUDA without them.
        intra_op_threads: CPU threads per operator; with 1, a run uses the calling thread only.
        cuda: How to run on CUDA.

    Returns:
        The session and its provider. On CUDA, a first run has succeeded.

    Raises:
        MissingPackageError: onnxruntime isn't installed, or its installation is broken.
        ModelError: onnxruntime can't load the model.
        ProviderError: CUDA was asked for and can't run here; the text says what is missing.
        SettingsError: options for CUDA were given together with `cpu`.
    """
    if provider not in PROVIDERS:
        raise SettingsError(f"`provider` must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    if provider == "cpu" and cuda != CUDA_DEFAULTS:
        raise SettingsError(
            'options for CUDA do nothing on the CPU. Leave them out, or choose `provider="cuda"` or `provider="auto"`'
        )
    ort = import_onnxruntime()
    on_cpu = _open_on_cpu(ort, model, intra_op_threads)
    if provider == "cpu":
        return OpenSession(on_cpu, "cpu")
    try:
        _check_precision(on_cpu)
        started = start_cuda(ort, model, cuda, graph_required=provider == "cuda")
    except CudaError as error:
        if provider == "cuda":
            raise ProviderError(
                f'the CUDA provider could not start: {error.problem}. {error.remedy}, or run with `provider="cpu"`'
            ) from None
        installed = cuda_major(ort) or "onnxruntime-gpu" in installed_packages() or find_driver()
        expected = bool(installed) or cuda != CUDA_DEFAULTS
        notice = f"Running on the CPU: {error.problem}. {error.remedy}" if expected else None
        return OpenSession(on_cpu, "cpu", CUDA_DEFAULTS, error.problem, error.remedy, notice)
    notice = f"Running on CUDA without a graph: {started.notice}" if started.notice else None
    return OpenSession(started.session, "cuda", started.options, notice=notice)


def _check_precision(session: "onnxruntime.InferenceSession") -> None:
    if exported_precision(session.get_modelmeta().custom_metadata_map) == "int8":
        raise CudaError(
            "this model is int8, and CUDA has no kernel for quantized LSTMs",
            "Export the model with: rnn-export --target cuda",
        )


def _open_on_cpu(ort: ModuleType, model: bytes, intra_op_threads: int = 1) -> "onnxruntime.InferenceSession":
    try:
        return create_session(ort, model, CPU, intra_op_threads)
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> ModelError:
    return ModelError(
        "not an ONNX model that onnxruntime can load, or a damaged one. Copy it again, or export it with rnn-export "
        f"({error_text(error)})"
    )


def other_provider(provider: Literal["cuda", "cpu"]) -> str:
    """The remedy where a model's results can't be trusted on a provider."""
    return "export it again" if provider == "cpu" else 'try `provider="cpu"`'
