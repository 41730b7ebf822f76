"""The command `rnn-onnx`: everything around a model that isn't training, export, classifying or serving."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from msgspec import Meta

import rnn_runtime
from rnn_runtime.command import options as shared
from rnn_runtime.command.command import Command, say
from rnn_runtime.command.options import Decorator, PathOrStorage, option_group
from rnn_runtime.model.values import BatchSize, FromZero, Threads
from rnn_runtime.text import count_of

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine import CudaOptions, Provider
    from rnn_runtime.results.write import Format

_input, _model, _output, _check, _timing = map(
    option_group, ("Input", "Model and provider", "Output", "Tolerance", "Timing")
)
_model_file = click.argument(
    "model", type=click.Path(path_type=Path), required=False, default="model.onnx", envvar="RNN_MODEL"
)
_batch_size = _timing("-b", "--batch-size", type=BatchSize, help="Only this batch size.")
_format = _timing(
    "-f",
    "--format",
    type=click.Choice(["table", "csv", "jsonl"]),
    default_text="table on a terminal, else csv",
    help="Format of the figures.",
)
_Shards = Annotated[int, Meta(ge=1, le=99_999)]
_MODEL_IS_AN_ARGUMENT = {"--model": "the argument MODEL", "-m": "the argument MODEL"}


class _ToolBox(Command, click.Group):
    """The commands in the order in which they are defined, and one that needs torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """The names of all commands."""
        return [*self.commands, "write-images"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None if there is none."""
        if cmd_name == "write-images":
            return import_module("rnn_train.write_images").main  # type: ignore[no-any-return]
        return super().get_command(ctx, cmd_name)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, then the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)


@click.group(cls=_ToolBox, no_args_is_help=False, subcommand_metavar="COMMAND ...")
@click.version_option(rnn_runtime.__version__, prog_name="rnn-onnx")
def main() -> None:
    """Check, time and compare exported models, and work with what rnn-infer writes.

    MODEL is model.onnx unless it is given, or the environment names another in RNN_MODEL.

    \b
    rnn-onnx doctor
    rnn-onnx check model.onnx
    rnn-onnx merge parts -o results.csv
    """


def _model_command(name: str, **options: Any) -> Decorator:
    """A command that opens the model that is its argument."""
    return main.command(name, cls=Command, check=shared.check_cuda, other_names=_MODEL_IS_AN_ARGUMENT, **options)


@_model_command("doctor", imports=("onnxruntime", "rnn_runtime.checks.doctor"))
@_model_file
@shared.provider
@shared.cuda
def doctor(model: Path, provider: "Provider", **cuda: Any) -> None:
    """Print versions, execution providers and what is missing.

    Bug reports need it. The last line is the one thing to do next. The exit code is 3 if no execution provider starts,
    or not the one that --provider names.
    """
    from rnn_runtime.checks.doctor import examine, print_diagnosis

    diagnosis = examine(model, provider, cuda=shared.cuda_options(**cuda))
    print_diagnosis(diagnosis, sys.stdout)
    if not diagnosis.providers or provider not in ("auto", *diagnosis.providers):
        raise click.exceptions.Exit(3)


@_model_command("check", imports=("onnxruntime", "rnn_runtime.checks.self_check"))
@_model_file
@shared.provider
@shared.threads
@_check("--atol", type=FromZero, default_text="that of the export", help="Absolute tolerance of a logit.")
@_check("--rtol", type=FromZero, default_text="that of the export", help="Relative tolerance of a logit.")
@shared.cuda
def check(
    model: Path, provider: "Provider", threads: int | None, atol: float | None, rtol: float | None, **cuda: Any
) -> None:
    """Compare a model with PyTorch's logits on this machine.

    MODEL holds images and the logits that PyTorch gave for them. They are computed again, by the provider that would
    classify. If one differs by more than the tolerances, the exit code is 1.
    """
    from rnn_runtime.checks.self_check import describe_self_check, self_check

    classifier = _open(model, provider, threads, shared.cuda_options(**cuda))
    difference = self_check(classifier, atol=atol, rtol=rtol)
    click.echo(describe_self_check(classifier, difference))


@_model_command("benchmark", imports=("onnxruntime", "rnn_runtime.checks.speed"))
@_model_file
@shared.provider
@shared.threads
@_batch_size
@_format
@shared.cuda
def benchmark(
    model: Path,
    provider: "Provider",
    threads: int | None,
    batch_size: int | None,
    format: "Format | None",
    **cuda: Any,
) -> None:
    """Time a model on random images in memory.

    It runs at several batch sizes, or at --batch-size. Reading and decoding image files isn't included.
    """
    from rnn_runtime.checks.speed import BATCH_SIZES, measure_speed, write_timings

    classifier = _open(model, provider, threads, shared.cuda_options(**cuda))
    timings = measure_speed(classifier, batch_sizes=[batch_size] if batch_size else BATCH_SIZES)
    write_timings(timings, sys.stdout, _choose_format(format))


@_model_command("compare", imports=("onnxruntime", "rnn_runtime.checks.speed"))
@_model_file
@shared.threads
@_batch_size
@_format
@shared.device_id
@shared.gpu_memory_limit
def compare(model: Path, threads: int | None, batch_size: int | None, format: "Format | None", **cuda: Any) -> None:
    """Time the CPU, CUDA and TF32 side by side.

    Each is first compared with PyTorch's logits. The command lines to use are named at the end. Reading and decoding
    image files isn't included.
    """
    from rnn_runtime.checks.speed import BATCH_SIZES, compare, describe_comparison, write_timings

    sizes = [batch_size] if batch_size else BATCH_SIZES
    comparison = compare(model, batch_sizes=sizes, threads=threads, cuda=shared.cuda_options(**cuda), watch=_bar)
    shown = _choose_format(format)
    write_timings(comparison.timings, sys.stdout, shown)
    lines = describe_comparison(comparison)
    smallest = comparison.smallest_batch
    least = "one image" if smallest == 1 else f"batches of {smallest:,}"
    # in this order, so that one timing that is the best for both is named by the second
    for best, use in {comparison.best(): "many images", comparison.best(smallest): least}.items():
        variant = comparison.variant(best)
        line = command_line(model, variant.provider, best.batch_size, variant.cuda, threads)
        speed = f"{best.images_per_second:,.0f} images/s, {best.p50_ms:,.3f} ms per batch"
        lines.append(f"For {use} ({speed}): {line} IMAGES")
    click.echo("\n".join(lines), err=shown != "table")


def _check_merge(ctx: click.Context) -> None:
    if ctx.params["output"] is not None:
        shared.check_results_name(ctx.params["output"])


@main.command(
    "merge",
    cls=Command,
    check=_check_merge,
    imports=("rnn_runtime.results.shards",),
)
@click.argument("parts", type=PathOrStorage(file_okay=False))
@_output(
    "-o",
    "--output",
    type=PathOrStorage(dir_okay=False),
    default_text="standard output",
    help="Write the results to this file.",
)
@_output("-q", "--quiet", is_flag=True, help="Print results and errors only.")
def merge(parts: str | Path, output: Path | None, quiet: bool) -> None:
    """Make one file of the results of shards.

    PARTS is the folder into which rnn-infer --shard or rnn-onnx ray wrote them, which may be in object storage.

    \b
    rnn-infer --shard 1/2 -o parts images/
    rnn-infer --shard 2/2 -o parts images/
    rnn-onnx merge parts -o results.csv
    """
    from rnn_runtime.results.shards import merge_parts

    summary = merge_parts(parts, output)
    if not quiet:
        say(str(summary))


@main.command(
    "ray", cls=Command, check=shared.check_paths, requires=("ray",), imports=("onnxruntime", "rnn_runtime.ray")
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(readable=False))
@shared.recursive
@shared.null
@shared.invert
@_input(
    "--shards",
    type=_Shards,
    default_text="one per 10,000 images",
    help="Number of parts to write.",
)
@shared.model
@_model(
    "-p",
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    help="Execution provider. cuda takes one GPU per task; auto is cuda if the cluster has GPUs.",
)
@_model(
    "-j",
    "--threads",
    type=Threads,
    default_text="1; with a GPU, its share of the cores",
    help="Number of CPU threads per task.",
)
@shared.batch_size
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
@shared.top_k
@shared.min_probability
@shared.checkpoint_column
@shared.csv_safe
@shared.unlike
@_output("-q", "--quiet", is_flag=True, help="Print errors only.")
def ray(
    paths: tuple[str, ...],
    model: Path,
    output: str | Path,
    recursive: bool,
    null: bool,
    invert: bool,
    quiet: bool,
    provider: "Provider",
    threads: int | None,
    shards: int | None,
    **columns: Any,
) -> None:
    """Classify images on a Ray cluster, in shards.

    It runs on the cluster that the variable RAY_ADDRESS names, or on one that it starts on this machine, and stops
    again. Start the same line again to continue: finished parts are kept.

    \b
    rnn-onnx ray -m model.onnx -o parts -r images/
    rnn-onnx merge parts -o results.csv
    """
    from rnn_runtime.images.find import find_images, read_names
    from rnn_runtime.ray import classify_on_ray
    from rnn_runtime.results.run import RunOptions

    names = list(read_names(sys.stdin, null=null)) if "-" in paths else []
    images = find_images([path for path in paths if path != "-"], recursive=recursive, literal=names)
    options = RunOptions(**columns)
    summary = classify_on_ray(
        model, images, output, options, provider=provider, threads=threads, shards=shards, invert=invert
    )
    rejected = summary.unlike if options.unlike == "error" else 0
    failed = summary.unreadable or rejected
    if failed or not quiet:
        say(str(summary))
    if rejected:
        say(f"{count_of(rejected, 'image')} unlike the training images got no label")
    if failed:
        raise click.exceptions.Exit(1)


def _open(model: Path, provider: "Provider", threads: int | None, cuda: "CudaOptions") -> "Classifier":
    """The model. What isn't as it was asked for is said first."""
    from rnn_runtime.classifier import Classifier

    classifier = Classifier(model, provider, threads=threads, cuda=cuda)
    if classifier.notice:
        say(classifier.notice)
    return classifier


def _choose_format(given: "Format | None") -> "Format":
    return given or ("table" if sys.stdout.isatty() else "csv")


def _bar(batch_sizes: Sequence[int]) -> Iterable[int]:
    if not sys.stderr.isatty():
        return batch_sizes
    from rich.console import Console
    from rich.progress import track

    return track(batch_sizes, "Comparing", console=Console(stderr=True), transient=True)


def command_line(model: Path, provider: str, batch_size: int, cuda: "CudaOptions", threads: int | None) -> str:
    """The command line of `rnn-infer` that runs a model in this way; images go at its end."""
    words: list[object] = ["rnn-infer", "--model", model, "--provider", provider, "--batch-size", batch_size]
    words += ["--threads", threads] if threads is not None else []
    words += ["--device-id", cuda.device_id] if cuda.device_id else []
    words += ["--gpu-memory-limit", cuda.memory_limit >> 20] if cuda.memory_limit is not None else []
    words += ["--tf32"] if cuda.tf32 else []
    return shlex.join(map(str, words))
