"""The command `rnn-infer`."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

import rnn_runtime
from rnn_runtime.command import shared_options
from rnn_runtime.command.command import Command
from rnn_runtime.command.options import PathOrStorage, Rule, check_rules, option_group
from rnn_runtime.command.streams import say
from rnn_runtime.files.atomic import CHECKPOINT_SUFFIXES, MODEL_SUFFIXES, check_output
from rnn_runtime.text import count_of, printable

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine import Provider
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.place import ImagePlacer
    from rnn_runtime.results.run import RunOptions, RunSummary, Watch
    from rnn_runtime.results.write import Format

_input, _output = map(option_group, ("Input", "Output"))

_RULES = (
    Rule(("shard",), lambda given: given["output"] is not None, "needs a folder for the results. Add --output"),
    Rule(
        ("resume",),
        lambda given: given["shard"] is None,
        "is what --shard does in any case. Leave it out",
    ),
    Rule(
        ("format",),
        lambda given: given["shard"] is None or given["format"] != "table",
        "of --shard is csv, tsv, jsonl or parquet. Choose one of these",
    ),
    *shared_options.A_FILE_FOR_RESULTS,
    Rule(
        ("summary",),
        lambda given: given["summary"].suffix not in (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES),
        "is named like a checkpoint or model. Choose a name for JSON, such as summary.json",
    ),
    Rule(("resume",), lambda given: bool(given["output"]), "continues the results in a file. Add --output"),
    Rule(
        ("resume",),
        lambda given: given["format"] not in ("table", "parquet"),
        "can't continue a table or Parquet. Choose another --format",
    ),
    Rule(
        ("checkpoint_column",),
        lambda given: given["format"] != "table",
        "has no room in a table. Choose another --format",
    ),
    Rule(("link_to",), lambda given: given["copy_to"] is None, "and --copy-to do the same. Choose one"),
    Rule(
        ("summary",),
        lambda given: given["output"] is None or given["summary"].resolve() != given["output"].resolve(),
        "and --output are the same file. Choose another name for one",
    ),
    Rule(("null",), lambda given: "-" in given["paths"], "is for names on standard input. Add -, or leave it out"),
    shared_options.NOT_ON_THE_CPU,
)
# Options of other tools, and what they are called here.
_OTHER_NAMES = {
    "--gpu": "--provider cuda",
    "--cuda": "--provider cuda",
    "--cpu": "--provider cpu",
    "--device": "--provider, or --device-id",
    "--batch": "--batch-size",
    "--topk": "--top-k",
    "--workers": "--threads",
    "--num-workers": "--threads",
    "--weights": "--model",
    "--out": "--output",
    "--json": "--format jsonl",
    "--csv": "--format csv",
    "--verbose": "RNN_DEBUG=1 in the environment",
    "--doctor": "rnn-onnx doctor",
    "--self-check": "rnn-onnx check model.onnx",
    "--benchmark": "rnn-onnx benchmark model.onnx",
    "--compare": "rnn-onnx compare model.onnx",
    "--merge": "rnn-onnx merge PARTS",
}


def _check(ctx: click.Context) -> None:
    if not ctx.params["paths"]:
        raise click.UsageError("Name an image, a folder, a pattern, or - for standard input.")
    for path in ctx.params["paths"]:
        if path.endswith(MODEL_SUFFIXES) and not Path(path).is_dir():
            raise click.UsageError(f"{path} is a model, not an image. Did you mean --model {path}?")
        if path.endswith(CHECKPOINT_SUFFIXES) and not Path(path).is_dir():
            raise click.UsageError(
                f"{path} is a checkpoint, not an image. Export it with: rnn-export {path} model.onnx, and then use "
                "--model model.onnx"
            )
    check_rules(ctx, _RULES)


@click.command(
    cls=Command,
    check=_check,
    other_names=_OTHER_NAMES,
    imports=("onnxruntime", "rnn_runtime.results.run"),
)
@click.argument("paths", nargs=-1, type=click.Path(readable=False))  # who may read it is asked when it is read
@shared_options.recursive
@shared_options.null
@_input(
    "--labels-from-folders",
    is_flag=True,
    help="Take the name of an image's folder as its true class, and evaluate the predictions.",
)
@_input(
    "--shard",
    metavar="K/N",
    help="Classify the K-th of N equal parts of the images, and write its results into the folder --output.",
)
@shared_options.model
@shared_options.provider
@shared_options.batch_size
@shared_options.threads
@_output(
    "-o",
    "--output",
    type=PathOrStorage(),
    default_text="standard output",
    help="Write the results to this file; with --shard, into this folder, which may be in object storage.",
)
@_output(
    "-f",
    "--format",
    type=click.Choice(["table", "csv", "tsv", "jsonl", "parquet"]),
    default_text="by the ending of --output; else table on a terminal and csv elsewhere",
    help="Format of the results.",
)
@shared_options.top_k
@shared_options.min_probability
@shared_options.checkpoint_column
@_output(
    "--copy-to",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also copy each image into a folder per predicted class; no file is replaced.",
)
@_output(
    "--link-to",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The same with symbolic links.",
)
@_output("--resume", is_flag=True, help="Continue the results in --output, also after a crash.")
@_output(
    "--summary",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write counts, speed, model and execution provider to this file, as JSON.",
)
@_output("-q", "--quiet", is_flag=True, help="Print results and errors only: no progress, no summary.")
@shared_options.device_id
@shared_options.gpu_memory_limit
@shared_options.tf32
@click.version_option(rnn_runtime.__version__, prog_name="rnn-infer")
def main(
    paths: tuple[str, ...],
    model: Path,
    provider: "Provider",
    device_id: int,
    gpu_memory_limit: int | None,
    tf32: bool,
    quiet: bool,
    threads: int | None,
    **options: Any,
) -> None:
    """Classify image files with an exported model.

    PATHS are image files, folders, quoted glob patterns, or - for a list of names on standard input, one
    per line. Results come in sorted order of the paths. The exit code is 1 if an image couldn't be read.

    \b
    rnn-infer images/
    rnn-infer -m digits.onnx -p cuda -k 3 -o results.jsonl 'scans/**/*.png'
    rnn-infer --shard 3/8 -o parts images/
    """
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine import CudaOptions

    memory_limit = None if gpu_memory_limit is None else gpu_memory_limit << 20
    cuda = CudaOptions(device_id, memory_limit, tf32)
    classifier = Classifier(model, provider, threads=threads, cuda=cuda)
    if classifier.notice and not quiet:
        say(classifier.notice)
    _classify(classifier, paths, quiet=quiet, **options)


def _classify(
    classifier: "Classifier",
    paths: tuple[str, ...],
    *,
    quiet: bool,
    recursive: bool,
    null: bool,
    shard: str | None,
    format: "Format | None",
    output: Path | None,
    resume: bool,
    summary: Path | None,
    labels_from_folders: bool,
    copy_to: Path | None,
    link_to: Path | None,
    **columns: Any,
) -> None:
    from rnn_runtime.images.ahead import usable_cores
    from rnn_runtime.images.find import find_images, read_names
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.place import ImagePlacer
    from rnn_runtime.results.run import RunOptions, classify_files, write_summary
    from rnn_runtime.results.write import choose_format

    for file in filter(None, (output if shard is None else None, summary)):
        check_output(file, [classifier.path, *paths])
    format = format or ("csv" if shard else choose_format(output, terminal=sys.stdout.isatty()))
    options = RunOptions(format=format, processes=min(classifier.threads, usable_cores()), **columns)
    folder = copy_to or link_to
    placer = ImagePlacer(folder, classifier.class_names, link=link_to is not None) if folder else None
    if placer:
        placer.check_inputs(path for path in paths if path != "-")
    evaluation = FolderEvaluation(classifier.class_names) if labels_from_folders else None
    names = list(read_names(sys.stdin, null=null)) if "-" in paths else []

    def find() -> Iterator[str]:
        return find_images([path for path in paths if path != "-"], recursive=recursive, literal=names)

    with contextlib.nullcontext() if quiet else _progress(output, format) as bar:
        watch = bar.watch if bar else int
        if shard is not None and output is not None:
            result = _classify_shard(classifier, find, shard, output, options, evaluation, placer, watch)
        else:
            images = bar.count(find()) if bar else find()
            result = classify_files(
                classifier, images, output, options, evaluation=evaluation, placer=placer, resume=resume, watch=watch
            )
    if result is None:
        return
    if summary is not None:
        write_summary(summary, result, evaluation)
    if evaluation:
        _print_evaluation(evaluation, options.min_probability, err=output is None and format != "table")
    if result.first_in_color is not None and not quiet:
        say(_describe_colors(result, classifier.path))
    failed = result.unreadable or (evaluation and evaluation.unknown)
    if failed or not quiet:
        say(str(result))
    if failed:
        raise click.exceptions.Exit(1)


def _classify_shard(
    classifier: "Classifier",
    find: Callable[[], Iterator[str]],
    shard: str,
    folder: str | Path,
    options: "RunOptions",
    evaluation: "FolderEvaluation | None",
    placer: "ImagePlacer | None",
    watch: "Watch",
) -> "RunSummary | None":
    """What came out; None if the shard's results are there already."""
    from rnn_runtime.results.shards import Shard, classify_shard

    path, summary = classify_shard(
        classifier, find, Shard.parse(shard), folder, options, evaluation=evaluation, placer=placer, watch=watch
    )
    say(f"{path}: {'there already' if summary is None else 'written'}")
    return summary


def _describe_colors(result: "RunSummary", model: str) -> str:
    images = f"{count_of(result.in_color, 'image')} stored in color, such as {result.first_in_color}"
    return printable(f"{images}: {model} takes gray images, so their colors are ignored")


def _progress(output: Path | None, format: "Format") -> "contextlib.AbstractContextManager[Any]":
    # Results that scroll by on the same terminal would break up the bar.
    scrolling = output is None and sys.stdout.isatty()
    if (scrolling and format != "table") or not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rnn_runtime.command.streams import ImageBar
    from rnn_runtime.results.write import MEASURED_ROWS

    return ImageBar(MEASURED_ROWS if scrolling else None)


def _print_evaluation(evaluation: "FolderEvaluation", min_probability: float | None, *, err: bool) -> None:
    from rnn_runtime.metrics.describe import print_evaluation

    with _report(err=err) as file:
        if evaluation.figures.total:
            print_evaluation(evaluation.figures, file)
            if min_probability is not None:
                file.write(evaluation.describe_labeled(min_probability) + "\n")
        else:
            file.write("Accuracy: none, since no readable image is in a folder that has the name of a class\n")
    if evaluation.unknown:
        say(
            printable(
                f"Not evaluated: {evaluation.unknown:,} images in folders that aren't named after a class, such as "
                f"{evaluation.first_unknown}. The model's classes: {', '.join(evaluation.class_names)}"
            )
        )


@contextlib.contextmanager
def _report(*, err: bool) -> Iterator[TextIO]:
    """The file to print a report to: standard output, or one that is printed on stderr at the end."""
    if not err:
        yield sys.stdout
        return
    file = io.StringIO()
    yield file
    say(file.getvalue().rstrip("\n"))
