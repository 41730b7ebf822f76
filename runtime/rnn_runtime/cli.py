"""The command `rnn-infer`: its options, and which function each mode calls."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

import rnn_runtime
from rnn_runtime.command.command import Command, as_options
from rnn_runtime.command.options import Rule, check_rules, is_given
from rnn_runtime.command.streams import say
from rnn_runtime.files.atomic import check_output
from rnn_runtime.text import printable

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine.cuda import CudaOptions
    from rnn_runtime.engine.session import Provider
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.write import Format

_MODES = ("paths", "self_check", "benchmark", "doctor")
_RULES = (
    Rule(
        ("doctor",),
        lambda given: not any(given[name] for name in ("paths", "self_check", "benchmark", "output", "summary")),
        "reads no images and measures nothing. Leave the others out",
    ),
    Rule(
        ("output", "summary", "resume"),
        lambda given: bool(given["paths"]),
        "is for the results of images. Name some, or leave it out",
    ),
    Rule(("resume",), lambda given: bool(given["output"]), "continues the results in a file. Add --output"),
    Rule(
        ("resume",),
        lambda given: given["format"] != "table",
        "continues CSV or JSON Lines, and not a table. Choose another --format",
    ),
    Rule(
        ("summary",),
        lambda given: given["output"] is None or given["summary"].resolve() != given["output"].resolve(),
        "and --output are the same file. Choose another name for one",
    ),
    Rule(("null",), lambda given: "-" in given["paths"], "is for names on standard input. Add -, or leave it out"),
    Rule(("atol", "rtol"), lambda given: given["self_check"], "is for --self-check. Add it, or leave this out"),
    Rule(
        ("device_id", "gpu_memory_limit", "tf32", "cuda_graph"),
        lambda given: given["provider"] != "cpu",
        "does nothing on the CPU. Leave it out, or choose --provider cuda or auto",
    ),
)


def _check(ctx: click.Context) -> None:
    if not any(ctx.params[mode] for mode in _MODES):
        raise click.UsageError(
            "Name an image, a folder, a pattern, or - for standard input. Or --self-check, --benchmark or --doctor."
        )
    check_rules(ctx, _RULES)


@click.command(
    cls=Command,
    check=_check,
    imports=("onnxruntime", "rnn_runtime.results.run"),
)
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
    help="Execution provider. cuda fails where CUDA can't run; auto uses the CPU then, and says so.",
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
@click.option("--recursive", is_flag=True, help="Search subfolders too.")
@click.option(
    "-0", "--null", is_flag=True, help="Names on standard input end with a null character, as find -print0 writes them."
)
@click.option(
    "--format",
    type=click.Choice(["table", "csv", "jsonl"]),
    help="Default: table on a terminal, jsonl for an --output that ends so, else csv. csv and jsonl stream.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write results to this file.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the results in --output, or what a stopped run left of them in the .part beside it.",
)
@click.option(
    "--summary",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write counts, speed, model and execution provider to this file, as JSON.",
)
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Classes to show per image.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1 << 24),
    default=256,
    show_default=True,
    help="Images per run of the model.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: one per core.")
@click.option(
    "--labels-from-folders",
    is_flag=True,
    help="Use the folder that holds an image as its true class: print accuracy, precision, recall, confusion matrix.",
)
@click.option("--self-check", is_flag=True, help="Compare the model with PyTorch's logits stored in it.")
@click.option("--benchmark", is_flag=True, help="Time the model on random images, by batch size or at --batch-size.")
@click.option("--doctor", is_flag=True, help="Print what a bug report needs, and the next thing to do; no images.")
@click.option("--atol", type=click.FloatRange(0), help="For --self-check.  [default: that of rnn-export]")
@click.option("--rtol", type=click.FloatRange(0), help="For --self-check.  [default: that of rnn-export]")
@click.version_option(rnn_runtime.__version__, prog_name="rnn-infer")
@click.pass_context
def main(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    model: Path,
    provider: "Provider",
    device_id: int,
    gpu_memory_limit: int | None,
    tf32: bool,
    cuda_graph: bool,
    threads: int | None,
    self_check: bool,
    benchmark: bool,
    doctor: bool,
    atol: float | None,
    rtol: float | None,
    **options: Any,
) -> None:
    """Classify image files with an exported model.

    PATHS are image files, folders, quoted glob patterns, or - for a list of names on standard input, one
    per line. Results come in sorted order of the paths. The exit code is 1 if an image couldn't be read.

    \b
    rnn-infer --provider cpu images/
    rnn-infer --model digits.onnx --format jsonl --top-k 3 'scans/**/*.png'
    rnn-infer --self-check --benchmark
    """
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine.cuda import CudaOptions

    memory_limit = None if gpu_memory_limit is None else gpu_memory_limit << 20
    cuda = CudaOptions(device_id, memory_limit, tf32, cuda_graph)
    if doctor:
        _diagnose(model, provider, cuda)
        return
    classifier = Classifier(model, provider, threads=threads, cuda=cuda)
    if classifier.notice:
        say(f"Running on the CPU: {classifier.notice}")
    # Results of images on standard output come alone: what else is printed gives way to them.
    err = bool(paths) and options["output"] is None
    if self_check:
        _check_model(classifier, atol, rtol, err=err)
    if benchmark:
        sizes = [options["batch_size"]] if is_given(ctx, "batch_size") else None
        _measure(classifier, options["format"], sizes, err=err)
    if paths:
        _classify(classifier, paths, **options)


def _diagnose(model: Path, provider: "Provider", cuda: "CudaOptions") -> None:
    from dataclasses import replace

    from rnn_runtime.checks.doctor import examine, print_diagnosis

    diagnosis = examine(model, provider, cuda=cuda)
    diagnosis = replace(diagnosis, next_step=as_options(diagnosis.next_step))
    print_diagnosis(diagnosis, sys.stdout)
    if not diagnosis.providers or provider not in ("auto", *diagnosis.providers):
        raise click.exceptions.Exit(3)


def _check_model(classifier: "Classifier", atol: float | None, rtol: float | None, *, err: bool) -> None:
    from rnn_runtime.checks.self_check import describe_self_check, self_check

    difference = self_check(classifier, atol=atol, rtol=rtol)
    with _report(err=err) as file:
        file.write(describe_self_check(classifier, difference) + "\n")


def _measure(classifier: "Classifier", format: "Format | None", batch_sizes: list[int] | None, *, err: bool) -> None:
    from rnn_runtime.checks.benchmark import BATCH_SIZES, measure_speed, write_speeds
    from rnn_runtime.results.write import choose_format

    speeds = measure_speed(classifier, batch_sizes=batch_sizes or BATCH_SIZES)
    terminal = (sys.stderr if err else sys.stdout).isatty()
    with _report(err=err) as file:
        write_speeds(speeds, file, format or choose_format(None, terminal=terminal))


def _classify(
    classifier: "Classifier",
    paths: tuple[str, ...],
    *,
    recursive: bool,
    null: bool,
    format: "Format | None",
    output: Path | None,
    summary: Path | None,
    labels_from_folders: bool,
    **options: Any,
) -> None:
    from rnn_runtime.images.find import find_images, read_names
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.run import classify_files, write_summary
    from rnn_runtime.results.write import choose_format

    for file in filter(None, (output, summary)):
        check_output(file, [classifier.path, *paths])
    format = format or choose_format(output, terminal=sys.stdout.isatty())
    evaluation = FolderEvaluation(classifier.class_names) if labels_from_folders else None
    names = list(read_names(sys.stdin, null=null)) if "-" in paths else []
    images = find_images([path for path in paths if path != "-"], recursive=recursive, literal=names)
    with _progress(output, format) as bar:
        result = classify_files(
            classifier,
            bar.count(images) if bar else images,
            output,
            format=format,
            evaluation=evaluation,
            watch=bar.watch if bar else iter,
            **options,
        )
    if summary is not None:
        write_summary(summary, result, evaluation)
    if evaluation:
        _print_evaluation(evaluation, err=output is None and format != "table")
    say(str(result))
    if result.unreadable or (evaluation and evaluation.unknown):
        raise click.exceptions.Exit(1)


def _progress(output: Path | None, format: "Format") -> "contextlib.AbstractContextManager[Any]":
    # A bar below results that scroll by on the same terminal would only be torn apart.
    scrolling = output is None and format != "table" and sys.stdout.isatty()
    if scrolling or not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rnn_runtime.command.progress import ImageBar

    return ImageBar()


def _print_evaluation(evaluation: "FolderEvaluation", *, err: bool) -> None:
    from rnn_runtime.results.write import print_evaluation

    with _report(err=err) as file:
        print_evaluation(evaluation, file)
    if evaluation.unknown:
        say(
            printable(
                f"Not evaluated: {evaluation.unknown:,} images in folders that name no class of this model, the first: "
                f"{evaluation.first_unknown} (it knows {', '.join(evaluation.class_names)})"
            )
        )


@contextlib.contextmanager
def _report(*, err: bool) -> Iterator[TextIO]:
    """The file to print a report to: standard output, or one whose text is a message on stderr."""
    if not err:
        yield sys.stdout
        return
    file = io.StringIO()
    yield file
    say(file.getvalue().rstrip("\n"))
