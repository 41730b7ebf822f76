"""The command `python -m rnn_runtime.ray`."""

import sys
from pathlib import Path
from typing import Any

import click

import rnn_runtime
from rnn_runtime.command import shared_options
from rnn_runtime.command.command import Command
from rnn_runtime.command.options import PathOrStorage, option_group
from rnn_runtime.command.streams import say

_input, _model, _output = map(option_group, ("Input", "Model and provider", "Output"))


@click.command(cls=Command, requires=("ray",), imports=("onnxruntime", "rnn_runtime.ray.run"))
@click.argument("paths", nargs=-1, required=True, type=click.Path(readable=False))
@shared_options.recursive
@shared_options.null
@_input(
    "--shards", type=click.IntRange(1, 99_999), default_text="one per 10,000 images", help="Number of parts to write."
)
@shared_options.model
@_model(
    "-p",
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    help="Execution provider. cuda takes one GPU per actor; auto is cuda if the cluster has GPUs.",
)
@_model("--actors", type=click.IntRange(1, 4096), default_text="one per GPU or machine", help="Number of Ray actors.")
@_model(
    "-j",
    "--threads",
    type=click.IntRange(1, 4096),
    default_text="all of the machine",
    help="Number of CPU threads per actor.",
)
@shared_options.batch_size
@_output(
    "-o",
    "--output",
    type=PathOrStorage(file_okay=False),
    required=True,
    help="Write the parts into this folder, which may be in object storage.",
)
@_output(
    "-f",
    "--format",
    type=click.Choice(["csv", "tsv", "jsonl", "parquet"]),
    default="csv",
    help="Format of the results.",
)
@shared_options.top_k
@shared_options.min_probability
@shared_options.checkpoint_column
@_output("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.version_option(rnn_runtime.__version__, prog_name="python -m rnn_runtime.ray")
def main(
    paths: tuple[str, ...], model: Path, output: str | Path, recursive: bool, null: bool, quiet: bool, **options: Any
) -> None:
    """Classify images on a Ray cluster, and write parts for rnn-infer --merge.

    It runs on the cluster that the variable RAY_ADDRESS names, or on one that it starts on this machine, and stops
    again. Start the same line again to continue: finished parts are kept.

    \b
    python -m rnn_runtime.ray -m model.onnx -o parts -r images/
    rnn-infer --merge parts -o results.csv
    """
    from rnn_runtime.images.find import find_images, read_names
    from rnn_runtime.ray.run import classify_on_ray

    names = list(read_names(sys.stdin, null=null)) if "-" in paths else []
    images = find_images([path for path in paths if path != "-"], recursive=recursive, literal=names)
    summary = classify_on_ray(model, images, output, **options)
    if summary.unreadable or not quiet:
        say(str(summary))
    if summary.unreadable:
        raise click.exceptions.Exit(1)
