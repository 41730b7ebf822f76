"""onnxruntime: opening a model on the requested execution provider, or an error; never on another provider.

`session` creates sessions, `cpu` and `cuda` run batches in them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rnn_runtime.engine.cpu import CpuRunner, images_per_run
from rnn_runtime.engine.cuda import EXPORT_FOR_CUDA, CudaError, CudaRunner, has_driver, start_cuda
from rnn_runtime.engine.session import (
    Runner,
    create_session,
    cuda_major,
    error_text,
    import_onnxruntime,
    installed_packages,
)
from rnn_runtime.errors import Argument, ModelError, ProviderError, SettingsError
from rnn_runtime.model.metadata import exported_precision
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import Count, DeviceId, PlainFields, check_fields

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["auto", "cuda", "cpu"]
PROVIDERS: tuple[Provider, ...] = ("auto", "cuda", "cpu")


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

    device_id: DeviceId = 0
    memory_limit: Count | None = None
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


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session and the provider that it runs on.

    Attributes:
        session: The session. All of its nodes run on the provider.
        provider: Its provider.
        problem: Why CUDA doesn't start, if `auto` chose the CPU.
        remedy: What to do about it.
        notice: The same in a sentence if options for CUDA were given, or a driver or a CUDA build of onnxruntime is
            installed. Elsewhere, the CPU is as expected.
    """

    session: "onnxruntime.InferenceSession"
    provider: Literal["cuda", "cpu"]
    problem: str | None = None
    remedy: str | None = None
    notice: str | None = None


def open_session(
    model: bytes, provider: Provider = "auto", *, threads: int = 1, cuda: CudaOptions = CUDA_DEFAULTS
) -> OpenSession:
    """Open a model on an execution provider.

    Several threads may run it at once.

    Args:
        model: The content of an ONNX file whose one input is uint8 `(batch, height, width, channels)`.
        provider: `cpu`; `cuda`, which runs all nodes on CUDA or raises; or `auto`, which is CUDA if all nodes run
            there, else the CPU.
        threads: CPU threads per operator; with 1, a run uses the calling thread only.
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
        raise SettingsError(Argument("provider"), f" must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    if provider == "cpu" and cuda != CUDA_DEFAULTS:
        raise SettingsError(
            "options for CUDA do nothing on the CPU. Leave them out, or choose ",
            Argument("provider", "cuda"),
            " or ",
            Argument("provider", "auto"),
        )
    ort = import_onnxruntime()
    on_cpu = _open_on_cpu(model, threads)
    if provider == "cpu":
        return OpenSession(on_cpu, "cpu")
    try:
        _check_precision(on_cpu)
        return OpenSession(start_cuda(model, cuda), "cuda")
    except CudaError as error:
        if provider == "cuda":
            raise ProviderError(
                f"the CUDA provider could not start: {error.problem}. {error.remedy}, or run with ",
                Argument("provider", "cpu"),
            ) from None
        installed = cuda_major(ort) or "onnxruntime-gpu" in installed_packages() or has_driver()
        expected = bool(installed) or cuda != CUDA_DEFAULTS
        notice = f"Running on the CPU: {error.problem}. {error.remedy}" if expected else None
        return OpenSession(on_cpu, "cpu", error.problem, error.remedy, notice)


def make_runner(opened: OpenSession, model: bytes, spec: ModelSpec, *, threads: int, device_id: int = 0) -> Runner:
    """What runs batches of images in a session.

    Args:
        opened: The session.
        model: The content of the ONNX file that it is of.
        spec: What the model is.
        threads: CPU threads that share a batch.
        device_id: Number of the GPU, on CUDA.

    Raises:
        ModelError: the memory doesn't suffice for another session.
    """
    if opened.provider == "cuda":
        return CudaRunner(opened.session, device_id)
    # For small batches of an LSTM, onnxruntime's own threads are faster than chunks (docs/explanation/measurements.md).
    threaded = _open_on_cpu(model, threads) if spec.cell == "lstm" and threads > 1 else None
    return CpuRunner(opened.session, threads, images_per_run(spec), threaded)


def _check_precision(session: "onnxruntime.InferenceSession") -> None:
    if exported_precision(session.get_modelmeta().custom_metadata_map) == "int8":
        raise CudaError("this model is int8, and CUDA has no kernel for quantized LSTMs", EXPORT_FOR_CUDA)


def _open_on_cpu(model: bytes, threads: int) -> "onnxruntime.InferenceSession":
    try:
        return create_session(model, threads=threads)
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        raise ModelError(
            "not an ONNX model that onnxruntime can load, or a damaged one. Copy it again, or export it with "
            f"rnn-export ({error_text(error)})"
        ) from None
