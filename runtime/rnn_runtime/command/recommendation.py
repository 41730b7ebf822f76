"""The command lines that a comparison recommends."""

import shlex
from pathlib import Path

from rnn_runtime.engine.cuda import CudaOptions


def command_line(
    model: str | Path, provider: str, batch_size: int, *, cuda: CudaOptions, threads: int | None = None
) -> str:
    """The command line of `rnn-infer` that runs a model in this way; images go at its end."""
    options: list[object] = ["--model", model, "--provider", provider, "--batch-size", batch_size]
    if threads is not None:
        options += ["--threads", threads]
    if cuda.device_id:
        options += ["--device-id", cuda.device_id]
    if cuda.memory_limit is not None:
        options += ["--gpu-memory-limit", cuda.memory_limit >> 20]
    options += [name for name, given in (("--tf32", cuda.tf32), ("--cuda-graph", cuda.graph)) if given]
    return shlex.join(map(str, ["rnn-infer", *options]))
