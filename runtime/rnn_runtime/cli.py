"""The command `rnn-infer`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import rnn_runtime
from rnn_runtime.command import options as shared
from rnn_runtime.command.command import Command, say
from rnn_runtime.cores import threads_are_scarce, usable_cores
from rnn_runtime.files.atomic import CHECKPOINT_SUFFIXES, MODEL_SUFFIXES, REMOTE, check_output
from rnn_runtime.text import count_of, printable

if TYPE_CHECKING:
    from rnn_runtime.engine import Provider
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.write import Format

_input, _output = map(shared.option_group, ("Input", "Output"))
# Options of other tools, and what they are called here.
_OTHER_NAMES = {
    "--gpu": "--provider cuda",
    "--cuda": "--provider cuda",
    "--cpu": "--provider cpu",
    "--device": "--provider, or --device-id",
    "--workers": "--threads",
    "--weights": "--model",
    "--json": "--format jsonl",
    "--csv": "--format csv",
    "--doctor": "rnn-onnx doctor",
    "--self-check": "rnn-onnx check model.onnx",
    "--benchmark": "rnn-onnx benchmark model.onnx",
    "--compare": "rnn-onnx compare model.onnx",
    "--merge": "rnn-onnx merge PARTS",
}


def _check(ctx: click.Context) -> None:
    given = ctx.params
    paths, output, format, shard, summary = (given[name] for name in ("paths", "output", "format", "shard", "summary"))
    if not paths:
        raise click.UsageError("Name an image, a folder, a pattern, or - for standard input.")
    shared.check_paths(ctx)
    if output is not None:
        shared.check_results_name(output, remote=shard is not None)
    if shard is not None:
        if output is None:
            raise click.UsageError("--shard needs a folder for the results. Add --output")
        if given["resume"]:
            raise click.UsageError("--resume is what --shard does in any case. Leave it out")
        if format == "table":
            raise click.UsageError("--format of --shard is csv, tsv, jsonl or parquet. Choose one of these")
    if given["resume"]:
        if output is None:
            raise click.UsageError("--resume continues the results in a file. Add --output")
        if format in ("table", "parquet"):
            raise click.UsageError("--resume can't continue a table or Parquet. Choose another --format")
    if given["checkpoint_column"] and format == "table":
        raise click.UsageError("--checkpoint-column has no room in a table. Choose another --format")
    if given["labels"] is not None:
        if given["labels_from_folders"]:
            raise click.UsageError("--labels and --labels-from-folders both give the true classes. Choose one")
        if any(path.startswith(REMOTE) for path in paths):
            raise click.UsageError("--labels is for images on a disk, not in object storage. Leave it out")
    if given["link_to"] is not None and given["copy_to"] is not None:
        raise click.UsageError("--link-to and --copy-to do the same. Choose one")
    if summary is not None:
        if str(summary) == "-":
            raise click.UsageError("--summary takes a file name, such as summary.json")
        if summary.suffix in (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES):
            raise click.UsageError(
                "--summary is named like a checkpoint or model. Choose a name for JSON, such as summary.json"
            )
        if output is not None and summary.resolve() == Path(output).resolve():
            raise click.UsageError("--summary and --output are the same file. Choose another name for one")
    shared.check_cuda(ctx)


@click.command(
    cls=Command,
    check=_check,
    other_names=_OTHER_NAMES,
    imports=("onnxruntime", "rnn_runtime.results.run"),
)
@click.argument("paths", nargs=-1, type=click.Path(readable=False))  # who may read it is asked when it is read
@shared.recursive
@shared.null
@shared.invert
@_input(
    "--labels-from-folders",
    is_flag=True,
    help="Take the name of an image's folder as its true class, and evaluate the predictions.",
)
@_input(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A CSV with the columns path and label: take them as the true classes, and evaluate the predictions.",
)
@_input(
    "--shard",
    metavar="K/N",
    help="Classify the K-th of N equal parts of the images, and write its results into the folder --output.",
)
@shared.model
@shared.provider
@shared.batch_size
@shared.threads
@_output(
    "-o",
    "--output",
    type=shared.PathOrStorage(),
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
@shared.top_k
@shared.min_probability
@shared.checkpoint_column
@shared.csv_safe
@shared.unlike
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
@shared.cuda
@click.version_option(rnn_runtime.__version__, prog_name="rnn-infer")
def main(
    paths: tuple[str, ...],
    recursive: bool,
    null: bool,
    invert: bool,
    labels_from_folders: bool,
    labels: Path | None,
    shard: str | None,
    model: Path,
    provider: "Provider",
    threads: int | None,
    output: Path | None,
    format: "Format | None",
    copy_to: Path | None,
    link_to: Path | None,
    resume: bool,
    summary: Path | None,
    quiet: bool,
    device_id: int,
    gpu_memory_limit: int | None,
    tf32: bool,
    **columns: Any,
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
    from rnn_runtime.images.find import IgnoredFiles, find_images, read_names
    from rnn_runtime.results.run import RunOptions, classify_files, write_summary

    if output is None and format is None:
        format = "table" if sys.stdout.isatty() else "csv"
    progress = contextlib.nullcontext() if quiet else _progress(output, format)
    cuda = shared.cuda_options(device_id, gpu_memory_limit, tf32)
    classifier = Classifier(model, provider, threads=threads, cuda=cuda, invert=invert)
    if classifier.notice and not quiet:
        say(classifier.notice)
    for file in filter(None, (output if shard is None else None, summary)):
        check_output(file, [classifier.path, *paths])
    options = RunOptions(format=format, processes=min(classifier.threads, usable_cores()), **columns)
    placer = evaluation = None
    if folder := copy_to or link_to:
        from rnn_runtime.results.place import ImagePlacer

        placer = ImagePlacer(folder, classifier.class_names, link=link_to is not None)
        placer.check_inputs(path for path in paths if path != "-")
    if labels_from_folders:
        from rnn_runtime.results.evaluation import FolderEvaluation

        evaluation = FolderEvaluation(classifier.class_names, paths)
    elif labels is not None:
        from rnn_runtime.images.find import without_pattern
        from rnn_runtime.images.labels import read_labels
        from rnn_runtime.results.evaluation import FolderEvaluation

        above = [without_pattern(path) if path != "-" else "" for path in paths]
        folders = list(dict.fromkeys(path if os.path.isdir(path) else os.path.dirname(path) for path in above))
        rows = read_labels(labels, folders, classifier.class_names)
        evaluation = FolderEvaluation(classifier.class_names, labels={row.path: row.label for row in rows})
    names = list(read_names(sys.stdin, null=null)) if "-" in paths else []

    ignored = IgnoredFiles()

    def find() -> Iterator[str]:
        ignored.clear()
        given = [path for path in paths if path != "-"]
        return find_images(given, recursive=recursive or evaluation is not None, literal=names, ignored=ignored)

    with progress as bar:
        watch = bar.watch if bar else None
        if shard is not None and output is not None:
            from rnn_runtime.results.shards import Shard, classify_shard

            path, result = classify_shard(
                classifier, find, Shard.parse(shard), output, options, evaluation=evaluation, placer=placer, watch=watch
            )
            say(f"{path}: {'there already' if result is None else 'written'}")
            if result is None:
                return
        else:
            images = bar.count(find()) if bar else find()
            result = classify_files(
                classifier, images, output, options, evaluation=evaluation, placer=placer, resume=resume, watch=watch
            )
    result.ignored = dict(ignored)
    if summary is not None:
        write_summary(summary, result, evaluation)
    if evaluation:
        _print_evaluation(evaluation, options.min_probability, err=output is None and format != "table")
    missing = list(_not_evaluated(evaluation, labels, whole=shard is None)) if evaluation else []
    for text in missing:
        say(printable(text))
    failed = result.unreadable or result.rejected or missing
    if failed or not quiet:
        say(str(result))
    for warning in () if quiet else result.warnings():
        say(warning)
    if failed:
        raise click.exceptions.Exit(1)


def _progress(output: Path | None, format: "Format | None") -> "contextlib.AbstractContextManager[Any]":
    # Results that scroll by on the same terminal would break up the bar.
    scrolling = output is None and sys.stdout.isatty()
    if (scrolling and format != "table") or not sys.stderr.isatty() or threads_are_scarce():
        return contextlib.nullcontext()
    from rnn_runtime.command.progress import ImageBar
    from rnn_runtime.results.write import MEASURED_ROWS

    return ImageBar(MEASURED_ROWS if scrolling else None)


def _print_evaluation(evaluation: "FolderEvaluation", min_probability: float | None, *, err: bool) -> None:
    from rnn_runtime.metrics.describe import print_evaluation

    file = sys.stderr if err else sys.stdout
    if evaluation.figures.total:
        print_evaluation(evaluation.figures, file)
        if min_probability is not None:
            file.write(evaluation.describe_labeled(min_probability) + "\n")
    else:
        file.write("Accuracy: none, since no image with a label has a true class\n")


def _not_evaluated(evaluation: "FolderEvaluation", table: Path | None, *, whole: bool) -> Iterator[str]:
    """For people: which images have no true class, and which rows of a table no image, if `whole`."""
    if evaluation.rejected:
        yield f"Not evaluated: {count_of(evaluation.rejected, 'image')} unlike the training images"
    if evaluation.unknown and table is not None:
        images = count_of(evaluation.unknown, "image")
        yield f"Not evaluated: {images} that {table} doesn't name, such as {evaluation.first_unknown}"
    elif evaluation.unknown:
        yield (
            f"Not evaluated: {count_of(evaluation.unknown, 'image')} in folders that aren't named after a class, "
            f"such as {evaluation.first_unknown}. The model's classes: {', '.join(evaluation.class_names)}"
        )
    if whole and (left := evaluation.without_result):
        yield f"Not evaluated: {count_of(len(left), 'row')} of {table}, whose files aren't among the images: {left[0]}"
