"""onnxruntime: its installation, one way to create sessions for all of the product, runs, and its errors in words."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import Argument, MissingPackageError, ProviderError

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
UNINSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu"
INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_INSTALL = f"pip install onnxruntime, or with an NVIDIA GPU: {INSTALL_CUDA}"
_Value = TypeVar("_Value")
_SILENT = 4  # onnxruntime's severity "fatal"; our own errors say what matters


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


def cuda_major(ort: ModuleType) -> int | None:
    """The major version of CUDA that onnxruntime was built for; None if it was built for the CPU."""
    version = str(getattr(ort, "cuda_version", "")).partition(".")[0]
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
    """Images that are run together, such as an `ImageBatch`: uint8 `(batch, height, width, channels)`, in C order."""

    @property
    def images(self) -> NDArray[np.uint8]: ...


BatchT = TypeVar("BatchT", bound=Batch)


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
    if provider != CPU and not allow_cpu:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # onnxruntime's own fallback prints to stdout that it uses the CPU, at the start and in each run.
    session: onnxruntime.InferenceSession = ort.InferenceSession(
        model, options, providers=[provider], enable_fallback=0
    )
    return session


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


def share(tasks: Sequence[Callable[[], _Value]], pool: ThreadPoolExecutor | None) -> list[_Value]:
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


def error_text(error: Exception) -> str:
    """onnxruntime's message in one line. A failure of CUDA's libraries is cut down to its cause, without locations."""
    text = " ".join(str(error).split()).rstrip(".")
    failure = re.search(r"\b(CUDA|CUBLAS|CUDNN|CURAND) failure \d+: [^;]*[^; ]", text)
    return failure[0] if failure else text


def other_provider(provider: Literal["cuda", "cpu"]) -> tuple[str | Argument, ...]:
    """What to do where a model's results can't be trusted on a provider, as parts of an error."""
    return ("export it again",) if provider == "cpu" else ("try ", Argument("provider", "cpu"))
