"""The command `rnn-infer`."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from rnn_runtime.command.command import Command, interruptible
from rnn_runtime.errors import InputError, SettingsError
from rnn_runtime.files.atomic import atomic_write, check_output
from rnn_runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine.session import CudaOptions, Provider
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.run import RunSummary, Watch
    from rnn_runtime.results.write import Format


@click.command(cls=Command)
@click.argument("paths", nargs=-1, type=click.Path(readable=False))  # who may read it is asked when it is read
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default="model.onnx",
    envvar="RNN_MODEL",
    show_default=True,
    show_envvar=True,
    help="The model file that rnn-export wrote.",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Execution provider. cuda fails where CUDA can't run; auto takes the CPU then, and says so.",
)
@click.option(
    "--device-id",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="On CUDA: which GPU, as --doctor counts them.",
)
@click.option(
    "--gpu-memory-limit",
    type=click.IntRange(1),
    metavar="MIB",
    help="On CUDA: MiB for weights and intermediate results.  [default: no limit]",
)
@click.option(
    "--tf32/--no-tf32",
    default=False,
    show_default=True,
    help="On CUDA: round the factors of float32 products to 10 bits; faster, and further from PyTorch.",
)
@click.option("--cuda-graph", is_flag=True, help="On CUDA: capture the runs of each batch size, and replay them.")
@click.option("--recursive", is_flag=True, help="Search the folders in folders too.")
@click.option(
    "-0", "--null", is_flag=True, help="Names on standard input end with a null character, as find -print0 writes them."
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "jsonl"]),
    help="Default: table on a terminal, jsonl for an --output that ends so, else csv. csv and jsonl stream.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write results to this file.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the results in --output, or what a stopped run left of them in the .part beside it.",
)
@click.option(
    "--summary",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write counts, speed, model and execution provider to this file, as JSON.",
)
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Classes to show an image.")
@click.option(
    "--batch-size", type=click.IntRange(1, 1 << 24), default=256, show_default=True, help="Images a run of the model."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: one a core.")
@click.option(
    "--labels-from-folders",
    is_flag=True,
    help="Take the folder that holds an image as its true class: print accuracy, precision, recall, confusion matrix.",
)
@click.option("--self-check", "check", is_flag=True, help="Compare the model with PyTorch's logits stored in it.")
@click.option("--benchmark", is_flag=True, help="Time the model on random images, by batch size or at --batch-size.")
@click.option("--doctor", is_flag=True, help="Print what a bug report needs, and the next thing to do; no images.")
@click.option("--atol", type=click.FloatRange(0), help="For --self-check.  [default: that of rnn-export]")
@click.option("--rtol", type=click.FloatRange(0), help="For --self-check.  [default: that of rnn-export]")
@click.version_option(package_name="rnn-onnx", prog_name="rnn-infer")
@click.pass_context
def main(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    model: Path,
    provider: Any,
    device_id: int,
    gpu_memory_limit: int | None,
    tf32: bool,
    cuda_graph: bool,
    recursive: bool,
    null: bool,
    style: "Format | None",
    output: Path | None,
    resume: bool,
    summary: Path | None,
    top_k: int,
    batch_size: int,
    threads: int | None,
    labels_from_folders: bool,
    check: bool,
    benchmark: bool,
    doctor: bool,
    atol: float | None,
    rtol: float | None,
) -> None:
    """Classify image files with an exported model.

    PATHS are image files, folders, quoted glob patterns, or - for a list of names on standard input, one
    a line. Results come in sorted order of the paths. The exit code is 1 if an image couldn't be read.

    \b
    rnn-infer --provider cpu images/
    rnn-infer --model digits.onnx --format jsonl --top-k 3 'scans/**/*.png'
    rnn-infer --self-check --benchmark
    """
    if doctor and (paths or check or benchmark or output or summary):
        raise click.UsageError("--doctor reads no images and measures nothing: leave the others out.")
    if not (paths or check or benchmark or doctor):
        raise click.UsageError(
            "Name an image, a folder, a pattern, or - for standard input. Or --self-check, --benchmark or --doctor."
        )
    for name, given in (("--output", output), ("--summary", summary), ("--resume", resume)):
        if given and not paths:
            raise click.UsageError(f"{name} is for the results of images: name some, or leave it out.")
    if null and "-" not in paths:
        raise click.UsageError("--null is for names on standard input: add -, or leave it out.")
    if provider == "cpu":
        _refuse_cuda_options(ctx)
    # Only now: --help and a typing mistake need none of it.
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine.session import CudaOptions
    from rnn_runtime.images.find import find_images
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.run import classify_files

    memory_limit = None if gpu_memory_limit is None else gpu_memory_limit << 20
    cuda = CudaOptions(device_id, memory_limit, tf32, cuda_graph)
    if doctor:
        _print_diagnosis(model, provider, cuda)
        return
    classifier = Classifier(model, provider, threads=threads, cuda=cuda)
    interruptible()
    if classifier.notice:
        click.echo(f"Running on the CPU: {classifier.notice}", err=True)
    if check:
        _print_self_check(classifier, atol, rtol, err=bool(paths))
    if benchmark:
        chosen = ctx.get_parameter_source("batch_size") is ParameterSource.COMMANDLINE
        _print_benchmark(classifier, style, [batch_size] if chosen else None)
    if not paths:
        return
    style = style or _choose_format(output)
    evaluation = FolderEvaluation(classifier.class_names) if labels_from_folders else None
    for file in filter(None, (output, summary)):
        check_output(file, [model, *paths])
    if output and summary and output.resolve() == summary.resolve():
        raise click.UsageError("--output and --summary are the same file: choose another name for one.")
    names = list(_read_names("\0" if null else "\n")) if "-" in paths else []

    def find() -> Iterator[str]:
        return find_images([path for path in paths if path != "-"], recursive=recursive, literal=names)

    with _progress(find, output, style) as watch:
        result = classify_files(
            classifier,
            find(),
            output,
            style=style,
            top_k=min(top_k, len(classifier.class_names)),
            batch_size=batch_size,
            evaluation=evaluation,
            resume=resume,
            watch=watch,
        )
    if summary is not None:
        _write_summary(summary, result, evaluation)
    if evaluation:
        # beside a table or a file of results it goes to stdout; after CSV or JSON on stdout it would spoil them
        _print_evaluation(evaluation, err=output is None and style != "table")
    click.echo(result, err=True)
    if result.unreadable or (evaluation and evaluation.unknown):
        raise click.exceptions.Exit(1)


def _refuse_cuda_options(ctx: click.Context) -> None:
    for name in ("device_id", "gpu_memory_limit", "tf32", "cuda_graph"):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise SettingsError(f"{option} does nothing on the CPU: leave it out, or choose --provider cuda or auto")


def _choose_format(output: Path | None) -> "Format":
    if output is not None:
        return "jsonl" if output.suffix in (".jsonl", ".ndjson") else "csv"
    return "table" if sys.stdout.isatty() else "csv"


def _progress(
    find: "Callable[[], Iterator[str]]", output: Path | None, style: "Format"
) -> "contextlib.AbstractContextManager[Watch]":
    # A bar below results that scroll by on the same terminal would only be torn apart.
    scrolling = output is None and style != "table" and sys.stdout.isatty()
    if scrolling or not sys.stderr.isatty():
        return contextlib.nullcontext(iter)
    from rnn_runtime.command.progress import progress_bar

    return progress_bar(find)


def _read_names(end: str) -> Iterator[str]:
    if sys.stdin is None:
        raise InputError("-: there is no standard input, it is closed")
    # bytes that are no UTF-8 may stand in a name, and a carriage return too
    cast(Any, sys.stdin).reconfigure(errors="surrogateescape", newline="\n")
    rest = ""
    while part := sys.stdin.read(1 << 16):
        if end != "\0" and "\0" in part:
            raise InputError("-: the names end with null characters, as find -print0 writes them: add --null")
        *names, rest = (rest + part).split(end)
        yield from filter(None, (name.removesuffix("\r") if end == "\n" else name for name in names))
    yield from filter(None, [rest])


def _print_evaluation(evaluation: "FolderEvaluation", *, err: bool) -> None:
    from rnn_runtime.results.write import print_evaluation

    print_evaluation(evaluation, sys.stderr if err else sys.stdout)
    if evaluation.unknown:
        known = ", ".join(evaluation.class_names)
        text = (
            f"Not evaluated: {evaluation.unknown:,} images in folders that name no class of this model, the first: "
            f"{evaluation.first_unknown} (it knows {known})"
        )
        click.echo(printable(text), err=True)


def _write_summary(path: Path, result: "RunSummary", evaluation: "FolderEvaluation | None") -> None:
    values = result.to_dict()
    if evaluation:
        values |= {"evaluated": evaluation.total, "correct": evaluation.correct, "not_evaluated": evaluation.unknown}
    with atomic_write(path) as file:
        json.dump(values, file, indent=2)
        file.write("\n")


def _print_self_check(classifier: "Classifier", atol: float | None, rtol: float | None, *, err: bool) -> None:
    from rnn_runtime.checks.self_check import self_check

    difference = self_check(classifier, atol=atol, rtol=rtol)
    count = len(classifier.metadata.golden.images)
    click.echo(
        f"{classifier.path}: on {classifier.provider}, {count} golden samples agree with PyTorch: largest "
        f"difference of logits {difference.max_absolute:.1e} (relative {difference.max_relative:.1e}), "
        f"labels equal {100 * difference.equal_labels:.1f} %; checkpoint {classifier.metadata.checkpoint_sha256}",
        err=err,  # CSV or JSON of images that follow isn't to begin with it
    )


def _print_benchmark(classifier: "Classifier", style: "Format | None", batch_sizes: list[int] | None) -> None:
    from rnn_runtime.checks.benchmark import BATCH_SIZES, measure_speed
    from rnn_runtime.results.write import write_speeds

    speeds = measure_speed(classifier, batch_sizes=batch_sizes or BATCH_SIZES)
    write_speeds(speeds, sys.stdout, style or ("table" if sys.stdout.isatty() else "csv"))


def _print_diagnosis(model: Path, provider: "Provider", cuda: "CudaOptions") -> None:
    from rnn_runtime.checks.doctor import examine, print_diagnosis

    diagnosis = examine(model, provider, cuda=cuda)
    print_diagnosis(diagnosis, sys.stdout)
    if not diagnosis.providers or provider not in ("auto", *diagnosis.providers):
        raise click.exceptions.Exit(3)
