"""The command `rnn-infer`: its options, and which function each mode calls."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

import rnn_runtime
from rnn_runtime.command import shared_options
from rnn_runtime.command.command import Command, as_options
from rnn_runtime.command.options import PathOrStorage, Rule, check_rules, is_given, option_group
from rnn_runtime.command.streams import say
from rnn_runtime.files.atomic import check_output
from rnn_runtime.files.kinds import CHECKPOINT_SUFFIXES, MODEL_SUFFIXES
from rnn_runtime.text import printable

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine.cuda import CudaOptions
    from rnn_runtime.engine.session import Provider
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.run import RunSummary
    from rnn_runtime.results.write import Format

_input, _model, _output, _cuda, _instead = map(
    option_group, ("Input", "Model and provider", "Output", "CUDA", "Instead of classifying")
)

_COLOR_LOOKS = 3  # of a run's images; each takes the time to decode it once more
_MODES = ("paths", "self_check", "benchmark", "merge", "doctor")
_RESULTS = ("min_probability", "checkpoint_column", "copy_to", "link_to")
_RULES = (
    Rule(
        ("doctor",),
        lambda given: not any(given[name] for name in ("paths", "self_check", "benchmark", "merge")),
        "classifies no images and measures nothing. Run it alone",
    ),
    Rule(
        ("merge",),
        lambda given: not any(given[name] for name in ("paths", "self_check", "benchmark")),
        "classifies no images and measures nothing. Run it without them",
    ),
    Rule(
        ("recursive", "null", "labels_from_folders", "shard", "summary", "resume", "top_k", *_RESULTS),
        lambda given: bool(given["paths"]),
        "is for classifying images. Name some, or leave it out",
    ),
    Rule(
        ("output", "quiet"),
        lambda given: bool(given["paths"] or given["merge"]),
        "is for classifying images. Name some, or leave it out",
    ),
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
    Rule(("format",), lambda given: given["merge"] is None, "of --merge is that of the parts. Leave it out"),
    Rule(
        ("format", "batch_size"),
        lambda given: bool(given["paths"] or given["benchmark"]),
        "is for classifying images and for --benchmark. Name images, or leave it out",
    ),
    Rule(("compare",), lambda given: given["benchmark"], "compares timings. Add --benchmark"),
    Rule(
        ("provider", "tf32", "cuda_graph", "self_check"),
        lambda given: not given["compare"],
        "has no use with --compare, which tries all variants and checks each. Leave it out",
    ),
    Rule(("compare",), lambda given: not given["paths"], "classifies no images. Leave out one of the two"),
    Rule(("threads",), lambda given: not given["doctor"], "does nothing with --doctor. Leave it out"),
    Rule(
        ("model", "provider", "threads", "device_id", "gpu_memory_limit", "tf32", "cuda_graph"),
        lambda given: given["merge"] is None,
        "does nothing with --merge. Leave it out",
    ),
    Rule(
        ("output",),
        lambda given: str(given["output"]) != "-",
        "takes a file name. For standard output, leave it out",
    ),
    Rule(
        ("output",),
        lambda given: given["shard"] is not None or isinstance(given["output"], Path),
        "is in object storage, which only gets the parts of --shard. Choose a file on a disk, or add --shard 1/1",
    ),
    Rule(
        ("output",),
        lambda given: Path(given["output"]).suffix not in (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES),
        "is named like a checkpoint or model. Choose a name for results, such as results.csv",
    ),
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
        ("format",),
        lambda given: bool(given["paths"]) or given["format"] not in ("tsv", "parquet"),
        "of --benchmark is table, csv or jsonl. Choose one of these",
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
    Rule(("atol", "rtol"), lambda given: given["self_check"], "is a tolerance of --self-check. Add --self-check"),
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
}


def _check(ctx: click.Context) -> None:
    if not any(ctx.params[mode] for mode in (*_MODES, "compare")):
        raise click.UsageError(
            "Name an image, a folder, a pattern, or - for standard input. Or --self-check, --benchmark or --doctor."
        )
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
@_cuda("--device-id", type=click.IntRange(0, 2**31 - 1), default=0, help="Number of the GPU, as in --doctor.")
@shared_options.gpu_memory_limit
@shared_options.tf32
@shared_options.cuda_graph
@_instead("--self-check", is_flag=True, help="Compare the model with PyTorch's logits, which are stored in it.")
@_instead("--atol", type=click.FloatRange(0), default_text="that of the export", help="Tolerance of --self-check.")
@_instead("--rtol", type=click.FloatRange(0), default_text="that of the export", help="Tolerance of --self-check.")
@_instead("--benchmark", is_flag=True, help="Time the model on random images, at several batch sizes or --batch-size.")
@_instead(
    "--compare",
    is_flag=True,
    help="With --benchmark: time the CPU, CUDA, CUDA graphs and TF32 side by side, and print the command line to use.",
)
@_instead(
    "--merge",
    type=PathOrStorage(file_okay=False),
    metavar="DIR",
    help="Make one file of the results that --shard wrote into this folder.",
)
@_instead("--doctor", is_flag=True, help="Print versions, execution providers and what is missing, for bug reports.")
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
    quiet: bool,
    threads: int | None,
    self_check: bool,
    benchmark: bool,
    compare: bool,
    merge: str | Path | None,
    doctor: bool,
    atol: float | None,
    rtol: float | None,
    **options: Any,
) -> None:
    """Classify image files with an exported model.

    PATHS are image files, folders, quoted glob patterns, or - for a list of names on standard input, one
    per line. Results come in sorted order of the paths. The exit code is 1 if an image couldn't be read.

    \b
    rnn-infer images/
    rnn-infer -m digits.onnx -p cuda -k 3 -o results.jsonl 'scans/**/*.png'
    rnn-infer --shard 3/8 -o parts images/
    rnn-infer --merge parts -o results.csv
    rnn-infer --self-check --benchmark
    """
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.engine.cuda import CudaOptions

    memory_limit = None if gpu_memory_limit is None else gpu_memory_limit << 20
    cuda = CudaOptions(device_id, memory_limit, tf32, cuda_graph)
    if doctor:
        _diagnose(model, provider, cuda)
        return
    if merge is not None:
        _merge(merge, options["output"], quiet=quiet)
        return
    if compare:
        sizes = [options["batch_size"]] if is_given(ctx, "batch_size") else None
        _compare(model, cuda, threads, options["format"], sizes)
        return
    classifier = Classifier(model, provider, threads=threads, cuda=cuda)
    notice = classifier.notice
    if notice and not quiet:
        say(as_options(notice))
    # Standard output is for the images' results alone. Other reports then go to stderr.
    err = bool(paths) and options["output"] is None
    if self_check:
        _check_model(classifier, atol, rtol, err=err)
    if benchmark:
        sizes = [options["batch_size"]] if is_given(ctx, "batch_size") else None
        _measure(classifier, options["format"], sizes, err=err)
    if paths:
        _classify(classifier, paths, quiet=quiet, **options)
    if classifier.notice != notice and not quiet:  # a later capture of a CUDA graph failed
        say(as_options(str(classifier.notice)))


def _diagnose(model: Path, provider: "Provider", cuda: "CudaOptions") -> None:
    from dataclasses import replace

    from rnn_runtime.checks.doctor import examine, print_diagnosis

    diagnosis = examine(model, provider, cuda=cuda)
    diagnosis = replace(diagnosis, next_step=as_options(diagnosis.next_step))
    print_diagnosis(diagnosis, sys.stdout)
    if not diagnosis.providers or provider not in ("auto", *diagnosis.providers):
        raise click.exceptions.Exit(3)


def _merge(folder: str | Path, output: Path | None, *, quiet: bool) -> None:
    from rnn_runtime.results.merge import merge_parts

    summary = merge_parts(folder, output)
    if not quiet:
        say(str(summary))


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
        shown = format if format in ("table", "csv", "jsonl") else choose_format(None, terminal=terminal)
        write_speeds(speeds, file, shown)


def _compare(
    model: Path, cuda: "CudaOptions", threads: int | None, format: "Format | None", batch_sizes: list[int] | None
) -> None:
    from rnn_runtime.checks.compare import BATCH_SIZES, compare
    from rnn_runtime.checks.comparison import describe_comparison, with_options, write_timings
    from rnn_runtime.command.recommendation import command_line
    from rnn_runtime.results.write import choose_format

    comparison = compare(
        model, variants=with_options(cuda), batch_sizes=batch_sizes or BATCH_SIZES, threads=threads, watch=_bar
    )
    shown = format if format in ("table", "csv", "jsonl") else choose_format(None, terminal=sys.stdout.isatty())
    write_timings(comparison, sys.stdout, shown)
    with _report(err=shown != "table") as file:
        for line in describe_comparison(comparison):
            file.write(as_options(line) + "\n")
        smallest = comparison.smallest_batch
        least = "one image" if smallest == 1 else f"batches of {smallest:,}"
        # in this order, so that one timing that is the best for both is named by the second
        for best, use in {comparison.best(): "many images", comparison.best(smallest): least}.items():
            variant = comparison.variant(best)
            line = command_line(model, variant.provider, best.batch_size, cuda=variant.cuda, threads=threads)
            speed = f"{best.images_per_second:,.0f} images/s, {best.ms_per_run:,.3f} ms per batch"
            file.write(f"For {use} ({speed}): {line} IMAGES\n")


def _bar(batch_sizes: Sequence[int]) -> Iterable[int]:
    if not sys.stderr.isatty():
        return batch_sizes
    from rich.console import Console
    from rich.progress import track

    return track(batch_sizes, "Comparing", console=Console(stderr=True), transient=True)


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
    summary: Path | None,
    labels_from_folders: bool,
    copy_to: Path | None,
    link_to: Path | None,
    **options: Any,
) -> None:
    from rnn_runtime.images.find import find_images, read_names
    from rnn_runtime.images.pool import usable_cores
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.place import ImagePlacer
    from rnn_runtime.results.run import classify_files, write_summary
    from rnn_runtime.results.write import choose_format

    for file in filter(None, (output if shard is None else None, summary)):
        check_output(file, [classifier.path, *paths])
    format = format or ("csv" if shard else choose_format(output, terminal=sys.stdout.isatty()))
    folder = copy_to or link_to
    placer = ImagePlacer(folder, classifier.class_names, link=link_to is not None) if folder else None
    if placer:
        placer.check_inputs(path for path in paths if path != "-")
    evaluation = FolderEvaluation(classifier.class_names) if labels_from_folders else None
    names = list(read_names(sys.stdin, null=null)) if "-" in paths else []

    def find() -> Iterator[str]:
        return find_images([path for path in paths if path != "-"], recursive=recursive, literal=names)

    with contextlib.nullcontext() if quiet else _progress(output, format) as bar:
        options |= {"format": format, "evaluation": evaluation, "placer": placer, "watch": bar.watch if bar else iter}
        options["processes"] = min(classifier.threads, usable_cores())
        if shard is not None and output is not None:
            result = _classify_shard(classifier, find, shard, output, **options)
            if result is None:
                return
        else:
            images = find() if quiet else _warn_of_color(find(), classifier)
            result = classify_files(classifier, bar.count(images) if bar else images, output, **options)
    if summary is not None:
        write_summary(summary, result, evaluation)
    if evaluation:
        _print_evaluation(evaluation, options["min_probability"], err=output is None and format != "table")
    failed = result.unreadable or (evaluation and evaluation.unknown)
    if failed or not quiet:
        say(str(result))
    if failed:
        raise click.exceptions.Exit(1)


def _classify_shard(
    classifier: "Classifier", find: Callable[[], Iterator[str]], shard: str, folder: str | Path, **options: Any
) -> "RunSummary | None":
    """What came out; None if the shard's results are there already."""
    from rnn_runtime.results.shards import Shard, classify_shard

    del options["resume"]
    path, summary = classify_shard(classifier, find, Shard.parse(shard), folder, **options)
    say(f"{path}: {'there already' if summary is None else 'written'}")
    return summary


def _warn_of_color(images: Iterator[str], classifier: "Classifier") -> Iterator[str]:
    """Pass images on. If the model takes gray ones and one of the first is in color, say so once."""
    from rnn_runtime.images.decode import is_in_color

    spec = classifier.metadata.spec.image_spec
    looks = _COLOR_LOOKS if spec.channels == 1 else 0
    for image in images:
        if looks:
            looks -= 1
            if is_in_color(image, spec):
                looks = 0
                say(printable(f"{image} is in color, and {classifier.path} takes gray images: its colors are ignored"))
        yield image


def _progress(output: Path | None, format: "Format") -> "contextlib.AbstractContextManager[Any]":
    # Results that scroll by on the same terminal would break up the bar.
    scrolling = output is None and sys.stdout.isatty()
    if (scrolling and format != "table") or not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rnn_runtime.command.progress import ImageBar
    from rnn_runtime.results.table import MEASURED_ROWS

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
