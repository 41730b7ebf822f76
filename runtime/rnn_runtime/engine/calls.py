"""Calls into onnxruntime: sessions and runs with our options, and errors in one line."""

import re
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import ProviderError

if TYPE_CHECKING:
    import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_SILENT = 4  # onnxruntime's severity "fatal"; our own errors say what matters
NO_GRAPH = "-1"


def create_session(
    ort: ModuleType,
    model: bytes,
    provider: str | tuple[str, dict[str, str]],
    intra_op_threads: int = 1,
    *,
    allow_cpu: bool = False,
) -> "onnxruntime.InferenceSession":
    """Create a session that logs nothing, and runs no node on another provider than this one, unless `allow_cpu`.

    onnxruntime adds the CPU to every session, and places nodes there for which the provider has no kernel. The option
    `session.disable_cpu_ep_fallback` makes that an error. It conflicts with naming the CPU as a second provider
    (github.com/microsoft/onnxruntime/pull/16016).

    Raises:
        Exception: whatever onnxruntime raises.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.log_severity_level = _SILENT
    if provider != CPU and not allow_cpu:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # onnxruntime's own fallback prints to stdout that it uses the CPU, at the start and in each run.
    return ort.InferenceSession(model, options, providers=[provider], enable_fallback=0)


def run_options(graph: str = NO_GRAPH) -> "onnxruntime.RunOptions":
    """Options for a run that captures or replays the CUDA graph of this number.

    The key is documented in onnxruntime's onnxruntime_run_options_config_keys.h.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _SILENT
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


def run_session(session: "onnxruntime.InferenceSession", output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run one batch on the CPU; shapes and errors as for `CpuThreads.run`."""
    try:
        return session.run([output], {"images": images})[0]  # type: ignore[no-any-return]
    except Exception as error:  # onnxruntime's exceptions share no base class below this one
        raise run_failure(len(images), "the CPU", error) from None


def run_failure(images: int, place: str, error: Exception) -> ProviderError:
    """The error for a batch that failed in onnxruntime."""
    return ProviderError(
        f"a run of {images} images failed on {place}: {error_text(error)}. If memory is short, use smaller batches"
    )


def error_text(error: Exception) -> str:
    """onnxruntime's message in one line. A CUDA failure is cut down to its cause, without source locations."""
    text = " ".join(str(error).split()).rstrip(".")
    failure = re.search(r"CUDA failure \d+: [^;]*[^; ]", text)
    return failure[0] if failure else text
