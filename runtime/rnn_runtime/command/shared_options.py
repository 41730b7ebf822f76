"""Options that several commands have, with the same names and texts: decorators for their functions."""

from pathlib import Path
from typing import Annotated

import click
from msgspec import Meta

from rnn_runtime.command.options import Rule, option_group
from rnn_runtime.files.atomic import CHECKPOINT_SUFFIXES, MODEL_SUFFIXES
from rnn_runtime.model.values import BatchSize, Count, DeviceId, Probability, Threads

_input, _model, _output, _cuda = map(option_group, ("Input", "Model and provider", "Output", "CUDA"))

recursive = _input("-r", "--recursive", is_flag=True, help="Search subfolders too.")
null = _input("-0", "--null", is_flag=True, help="Names on standard input end with a null character (find -print0).")

model = _model(
    "-m",
    "--model",
    type=click.Path(path_type=Path),
    default="model.onnx",
    envvar="RNN_MODEL",
    help="The model that rnn-export wrote.",
)
provider = _model(
    "-p",
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    help="Execution provider. cuda runs on CUDA or fails; auto takes CUDA where it runs, else the CPU.",
)
batch_size = _model("-b", "--batch-size", type=BatchSize, default=256, help="Images per batch.")
threads = _model("-j", "--threads", type=Threads, default_text="one per core", help="Number of CPU threads.")

top_k = _output("-k", "--top-k", type=Count, default=1, help="Show this many of the likeliest classes per image.")
min_probability = _output(
    "--min-probability",
    type=Probability,
    metavar="P",
    help="Leave the label empty where the probability is lower; the likeliest class is in a column guess.",
)
checkpoint_column = _output(
    "--checkpoint-column", is_flag=True, help="Repeat the SHA-256 of the model's checkpoint in every row."
)

device_id = _cuda(
    "--device-id",
    type=DeviceId,
    default=0,
    help="Number of the GPU, as rnn-onnx doctor lists them.",
)
gpu_memory_limit = _cuda(
    "--gpu-memory-limit",
    type=Annotated[int, Meta(ge=1, le=2**43 - 1)],
    metavar="MIB",
    default_text="no limit",
    help="Memory for weights and intermediate results, in MiB.",
)
tf32 = _cuda(
    "--tf32/--no-tf32",
    default=False,
    help="Compute float32 products in TensorFloat-32: faster, and less like PyTorch.",
)
NOT_ON_THE_CPU = Rule(
    ("device_id", "gpu_memory_limit", "tf32"),
    lambda given: given["provider"] != "cpu",
    "does nothing on the CPU. Leave it out, or choose --provider cuda or auto",
)
A_FILE_FOR_RESULTS = (
    Rule(
        ("output",),
        lambda given: str(given["output"]) != "-",
        "takes a file name. For standard output, leave it out",
    ),
    Rule(
        ("output",),
        lambda given: given.get("shard") is not None or isinstance(given["output"], Path),
        "is in object storage, which only gets the parts of --shard. Choose a file on a disk",
    ),
    Rule(
        ("output",),
        lambda given: Path(given["output"]).suffix not in (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES),
        "is named like a checkpoint or model. Choose a name for results, such as results.csv",
    ),
)
