"""onnxruntime: opening a model on the requested execution provider, or an error, and running batches in it.

What only CUDA needs is in `cuda`.
"""

import contextlib
import ctypes
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.cores import startable_threads
from rnn_runtime.errors import Argument, MissingPackageError, ModelError, ProviderError, SettingsError
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import Count, DeviceId, PlainFields
from rnn_runtime.threads import ThreadPool

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["auto", "cuda", "cpu"]
PROVIDERS: tuple[Provider, ...] = ("auto", "cuda", "cpu")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
UNINSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu"
INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_INSTALL = f"pip install onnxruntime, or with an NVIDIA GPU: {INSTALL_CUDA}"
_SILENT = 4  # onnxruntime's severity "fatal"; our own errors say what matters
_PLACE = "the CPU"
_SMALLEST_CHUNK = 16  # images that are worth waking a thread
_KIB = 1024
_USUAL_BYTES = 512 * _KIB  # the least of the servers' processors in use: Zen 3
_FEWEST, _MOST = 16, 256  # images per run; beyond, nothing is gained (docs/explanation/measurements.md)
_OPERATOR_IMAGES = 64  # GRU and LSTM: their kernels divide a batch by themselves
_HIDDEN_STATES = 12  # per image and direction, the products of several steps counted
_FLOAT_BYTES = 4


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


def open_session(model: bytes, provider: Provider = "auto", *, cuda: CudaOptions = CUDA_DEFAULTS) -> OpenSession:
    """Open a model on an execution provider.

    Several threads may run it at once.

    Args:
        model: The content of an ONNX file whose one input is uint8 `(batch, height, width, channels)`.
        provider: `cpu`; `cuda`, which runs all nodes on CUDA or raises; or `auto`, which is CUDA if all nodes run
            there, else the CPU.
        cuda: How to run on CUDA.

    Returns:
        The session and its provider. On CUDA, a first run has succeeded. On the CPU, it uses the calling thread only.

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
    import_onnxruntime()
    on_cpu = _open_on_cpu(model)
    if provider == "cpu":
        return OpenSession(on_cpu, "cpu")
    from rnn_runtime.engine.cuda import CudaError, has_driver, start_cuda

    try:
        return OpenSession(start_cuda(model, on_cpu, cuda), "cuda")
    except CudaError as error:
        if provider == "cuda":
            raise ProviderError(
                f"the CUDA provider could not start: {error.problem}. {error.remedy}, or run with ",
                Argument("provider", "cpu"),
            ) from None
        installed = cuda_major() or "onnxruntime-gpu" in installed_packages() or has_driver()
        expected = bool(installed) or cuda != CUDA_DEFAULTS
        notice = f"Running on the CPU: {error.problem}. {error.remedy}" if expected else None
        return OpenSession(on_cpu, "cpu", error.problem, error.remedy, notice)


def make_runner(opened: OpenSession, model: bytes, spec: ModelSpec, *, threads: int, device_id: int = 0) -> "Runner":
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
        from rnn_runtime.engine.cuda import CudaRunner

        return CudaRunner(opened.session, device_id)
    # For small batches of an LSTM, onnxruntime's own threads are faster than chunks (docs/explanation/measurements.md).
    threaded = None
    # Where onnxruntime can't start one of its threads, it may wait for it forever. Twice as many must be possible,
    # since those that were tried may still be ending.
    if spec.cell == "lstm" and threads > 1 and startable_threads(2 * threads) == 2 * threads:
        threaded = _open_on_cpu(model, threads)
    return CpuRunner(opened.session, threads, _images_per_run(spec), threaded)


def _open_on_cpu(model: bytes, threads: int = 1) -> "onnxruntime.InferenceSession":
    try:
        return create_session(model, threads=threads)
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        raise ModelError(
            "not an ONNX model that onnxruntime can load, or a damaged one. Copy it again, or export it with "
            f"rnn-export ({error_text(error)})"
        ) from None


def create_session(
    model: bytes,
    provider: str | tuple[str, dict[str, str]] = CPU,
    *,
    threads: int = 1,
    allow_cpu: bool = False,
) -> "onnxruntime.InferenceSession":
    """Create a session that logs nothing, and runs no node on another provider than this one, unless `allow_cpu`.

    onnxruntime adds the CPU to every session, and places nodes there for which the provider has no kernel. The option
    `session.disable_cpu_ep_fallback` makes that an error. It conflicts with naming the CPU as a second provider
    (github.com/microsoft/onnxruntime/pull/16016).

    Args:
        model: The content of an ONNX file.
        provider: onnxruntime's name of an execution provider, with its options if there are any.
        threads: CPU threads per operator. With 1, a run uses the calling thread only.
        allow_cpu: Whether nodes may run on the CPU though another provider was asked for.

    Raises:
        MissingPackageError: onnxruntime isn't installed, or its installation is broken.
        Exception: whatever onnxruntime raises; `error_text` puts it into one line.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT
    # Otherwise, a file with `ORTM` at byte 4 is read by another parser.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if provider != CPU and not allow_cpu:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # onnxruntime's own fallback prints to stdout that it uses the CPU, at the start and in each run.
    session: onnxruntime.InferenceSession = ort.InferenceSession(
        model, options, providers=[provider], enable_fallback=0
    )
    return session


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        MissingPackageError: it isn't installed, or a part of it is missing; the text says how to repair it.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise (_missing() if error.name == "onnxruntime" else _broken(str(error))) from None
    except Exception as error:  # anything may be missing in a broken installation
        raise _broken(str(error)) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # Python imports a leftover folder without files as a module
        if not installed_packages():
            raise _missing()
        raise _broken("most of its files are missing, as after uninstalling one of two packages that share them")
    return cast(ModuleType, onnxruntime)


def installed_packages() -> dict[str, str]:
    """The versions of the packages that provide the module `onnxruntime`. Both install into the same folder."""
    import importlib.metadata  # takes 20 ms, and is needed only where something is wrong

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cuda_major() -> int | None:
    """The major version of CUDA that onnxruntime was built for; None if it was built for the CPU."""
    version = str(getattr(import_onnxruntime(), "cuda_version", "")).partition(".")[0]
    return int(version) if version.isdigit() else None


def _missing() -> MissingPackageError:
    return MissingPackageError(f"onnxruntime is not installed. Install it with: {_INSTALL}")


def _broken(reason: str) -> MissingPackageError:
    packages = installed_packages()
    if len(packages) > 1:
        reason = f"{' and '.join(packages)} are installed over one another: {reason}"
    return MissingPackageError(
        f"the installed onnxruntime is broken ({reason}). Repair it with: {UNINSTALL} && {_INSTALL}"
    )


class Batch(Protocol):
    """Images that are run together: uint8 `(batch, height, width, channels)`, in C order."""

    @property
    def images(self) -> NDArray[np.uint8]: ...


BatchT = TypeVar("BatchT", bound=Batch)
_Value = TypeVar("_Value")


class Runner(Protocol):
    """A model on an execution provider. Any number of threads may use it.

    A batch may be of any size, and empty.
    """

    def run(self, output: str, images: NDArray[np.uint8], *, alone: bool = False) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            output: `logits` or `probabilities`.
            images: uint8 `(batch, height, width, channels)`, in C order.
            alone: Whether to use the calling thread only, as one process of several does.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            ProviderError: the run failed, for instance because memory ran out.
        """

    def stream(self, output: str, batches: Iterable[BatchT]) -> Iterator[tuple[BatchT, NDArray[np.float32]]]:
        """Run batches one after the other, or two at a time where that is faster.

        Args:
            output: As for `run`.
            batches: Drawn at most two ahead of the results.

        Yields:
            Each batch and its result, in the order of `batches`.

        Raises:
            ProviderError: As for `run`.
        """


class CpuRunner:
    """A model on the CPU that divides batches among threads: a `Runner`.

    Safe to use from several threads, and in a forked process.

    Args:
        session: A session of one thread, with the input `images` and the outputs `logits` and `probabilities`.
        threads: Number of threads that share a batch.
        largest_chunk: The most images that a thread runs at once.
        threaded_session: The same model with onnxruntime's own threads, for batches of a single chunk.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        threads: int,
        largest_chunk: int,
        threaded_session: "onnxruntime.InferenceSession | None" = None,
    ) -> None:
        self._session, self._threads, self._threaded_session = session, threads, threaded_session
        self._largest_chunk = largest_chunk
        self._pool: ThreadPool | None = None
        _instances.add(self)

    def run(self, output: str, images: NDArray[np.uint8], *, alone: bool = False) -> NDArray[np.float32]:
        """Run one batch, as `Runner.run` says."""
        count, session, pool, chunk_size = len(images), self._session, None, self._largest_chunk
        if self._threaded_session and count <= self._largest_chunk and not alone:
            session = self._threaded_session
        elif self._threads > 1 and count > _SMALLEST_CHUNK and not alone:
            pool = self._pool = self._pool or ThreadPool(self._threads - 1, thread_name_prefix="model")
            chunk_size = self._chunk_size(count)
        if count <= chunk_size:
            return run_session(session, output, images, _PLACE)
        run = partial(run_session, session, output, place=_PLACE)
        return np.concatenate(share([partial(run, chunk) for chunk in divide(images, chunk_size)], pool))

    def stream(self, output: str, batches: Iterable[BatchT]) -> Iterator[tuple[BatchT, NDArray[np.float32]]]:
        """Run batches one after the other, as `Runner.stream` says."""
        for batch in batches:
            yield batch, self.run(output, batch.images)

    def _chunk_size(self, images: int) -> int:
        """Images per run: all threads get as many runs, none of more than the largest chunk."""
        runs = -(-images // (self._threads * self._largest_chunk)) * self._threads
        return max(-(-images // runs), _SMALLEST_CHUNK)

    def forget_threads(self) -> None:
        """In a forked child, where no threads survive: drop them; the next run starts new ones."""
        if self._threaded_session is not None:
            # Destroying it could wait forever for its threads, or for locks that they held at the fork.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._threaded_session))
        self._pool = self._threaded_session = None


def share(tasks: Sequence[Callable[[], _Value]], pool: ThreadPool | None) -> list[_Value]:
    """Compute tasks in this thread and in those of a pool, if there is one; the results, in order.

    This thread, which is awake, begins with the first, and then takes the last ones that no other has begun.
    """
    first, *others = tasks
    futures: list[Future[_Value]] = [pool.submit(task) if pool else Future() for task in others]
    try:
        results = [first()]
        for task, future in reversed(list(zip(others, futures, strict=True))):
            results.insert(1, task() if future.cancel() else future.result())
    finally:
        for future in futures:
            future.cancel()
    return results


_instances: "weakref.WeakSet[CpuRunner]" = weakref.WeakSet()


def _forget_threads() -> None:
    for instance in list(_instances):
        instance.forget_threads()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)


def _images_per_run(spec: ModelSpec) -> int:
    """The most images that a thread runs at once.

    For a vanilla RNN, their pixels and hidden states fill the second-level cache of a core. On Linux, the kernel tells
    its size; elsewhere, 512 KiB are assumed.
    """
    if spec.cell != "rnn":
        return _OPERATOR_IMAGES
    image, directions = spec.image_spec, 2 if spec.bidirectional else 1
    values = image.height * image.width * image.channels + _HIDDEN_STATES * directions * spec.hidden_size
    return min(max(_second_level_bytes() // (_FLOAT_BYTES * values), _FEWEST), _MOST)


@cache
def _second_level_bytes() -> int:
    """The size that Linux tells in sysfs (Documentation/ABI/testing/sysfs-devices-system-cpu in its source)."""
    try:
        # index0 and index1 are the first level, for data and for instructions
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
    except OSError:
        return _USUAL_BYTES
    return int(size[:-1]) * _KIB if re.fullmatch(r"\d+K", size) else _USUAL_BYTES


def run_session(
    session: "onnxruntime.InferenceSession", output: str, images: NDArray[np.uint8], place: str, *, rows: int = 0
) -> NDArray[np.float32]:
    """Run one batch in one call; shapes as for `Runner.run`.

    Args:
        session: A session of an exported model.
        output: `logits` or `probabilities`.
        images: The batch.
        place: Where the session runs, for errors.
        rows: The number of images to run: black ones follow if `images` are fewer.

    Raises:
        ProviderError: the run failed; the text says where, with how many images, and why.
    """
    if not len(images):  # onnxruntime's kernels fail without any rows
        return np.empty((0, session.get_outputs()[0].shape[1]), np.float32)
    count = len(images)
    if count < rows:
        images = np.concatenate([images, np.zeros((rows - count, *images.shape[1:]), np.uint8)])
    try:
        results: NDArray[np.float32] = session.run([output], {"images": images})[0]
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        raise ProviderError(
            f"a run of {count} images failed on {place}: {error_text(error)}. If memory is short, use smaller batches"
        ) from None
    return results[:count]


def divide(images: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    """Divide a batch into parts of at most this size. An empty batch is one part."""
    return [images[start : start + size] for start in range(0, len(images), size)] or [images]


def error_text(error: Exception) -> str:
    """onnxruntime's message in one line. A failure of CUDA's libraries is cut down to its cause, without locations."""
    text = " ".join(str(error).split()).rstrip(".")
    failure = re.search(r"\b(CUDA|CUBLAS|CUDNN|CURAND) failure \d+: [^;]*[^; ]", text)
    return failure[0] if failure else text


def other_provider(provider: Literal["cuda", "cpu"]) -> tuple[str | Argument, ...]:
    """What to do where a model's results can't be trusted on a provider, as parts of an error."""
    return ("export it again",) if provider == "cpu" else ("try ", Argument("provider", "cpu"))
