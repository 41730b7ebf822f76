"""A whole run: image files in, results written as they come, and a summary."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import rnn_runtime
from rnn_runtime.classifier import BATCH_SIZE, Classifier, Prediction
from rnn_runtime.errors import Argument, InputError, OutputError, ProcessLostError, SettingsError, StorageError
from rnn_runtime.files.atomic import GrowingFile, atomic_write, check_output, growing_file, part_of
from rnn_runtime.files.remote import import_arrow
from rnn_runtime.images.find import IgnoredFiles
from rnn_runtime.images.outliers import CERTAIN, DARK, LIGHT
from rnn_runtime.interruption import RunInterruptedError, describe_interrupt, signals_noted, stop_if_signaled
from rnn_runtime.model.values import BatchSize, Count, PlainFields, Probability, check_argument
from rnn_runtime.results.write import (
    DELIMITERS,
    RESUMABLE,
    TEXT,
    Columns,
    Format,
    Unlike,
    Write,
    choose_format,
    open_writer,
    read_predictions,
)
from rnn_runtime.text import count_of, printable

if TYPE_CHECKING:
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.place import ImagePlacer

DIGITS = 12  # of a model's SHA-256 in records and names
_RECORDED = (
    "images",
    "unreadable",
    "below_min_probability",
    "placed",
    "unlike",
    "differences",
    "rejected",
)  # counts of a run, to go on from
USUALLY_UNLIKE = 0.01  # of a run's images; so few are no reason for a warning
_DIFFERENCES_SHOWN = 3
_MOST = 0.5  # of a run's images, beyond which a remedy is for the whole run

Watch = Callable[[int], object]
Kept = tuple[str | Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(PlainFields):
    """How files are classified, and what a row of the results shows.

    Attributes:
        format: `csv`, `tsv`, `jsonl`, `parquet` or `table`; None for the one that the name of the output says, and for
            CSV on standard output and in shards.
        top_k: How many classes a result shows; at most all.
        min_probability: Leave the label empty where the probability is lower. The likeliest class has a column
            `guess` then.
        checkpoint_column: Repeat the SHA-256 of the model's checkpoint in every row.
        csv_safe: In CSV and TSV, put an apostrophe before paths and classes that a spreadsheet would run as a formula.
        unlike: What becomes of images that are unlike the training images: `warn` counts them, `column` also adds a
            column that names the difference, and `error` gives them that as an error instead of a label.
        batch_size: Images per run of the model.
        processes: The most processes that read and classify many small files, such as one per core. They are forked
            from this one: choose more than 1 only where no other thread of the program holds a lock that they might
            need. On CUDA, they decode.

    Raises:
        SettingsError: a value is out of range or of a wrong type.
    """

    format: Format | None = None
    top_k: Count = 1
    min_probability: Probability | None = None
    checkpoint_column: bool = False
    csv_safe: bool = False
    unlike: Unlike = "warn"
    batch_size: BatchSize = BATCH_SIZE
    processes: Count = 1

    def columns(self, classifier: Classifier, *, true_label: bool) -> Columns:
        """What a row shows of a model's results.

        Raises:
            InputError: `unlike` asks for differences, and the model doesn't know what its training images look like.
        """
        if self.unlike != "warn" and classifier.metadata.spec.profile is None:
            raise InputError(
                f"{classifier.path}: trained on fewer than 20 images, so it can't tell which images are unlike them. "
                "Leave out ",
                Argument("unlike", self.unlike),
            )
        checkpoint = classifier.metadata.checkpoint_sha256 if self.checkpoint_column else None
        top_k = min(self.top_k, len(classifier.class_names))
        return Columns(top_k, true_label, self.min_probability, checkpoint, self.unlike, self.csv_safe)


DEFAULTS = RunOptions()


@dataclass(slots=True)
class RunSummary:
    """What came out of a run.

    Attributes:
        run: What ran: model, checkpoint, execution provider, versions; as `describe_run` gives it.
        images: Images that have a result, be it a label or an error.
        unreadable: Those of them that couldn't be read, or decoded.
        earlier: Those of them whose result was there already.
        below_min_probability: Those of them too uncertain for a label; None without `min_probability`.
        placed: Images put into the folder of their class; None where that wasn't asked for.
        in_color: Images of this run that are in color where the model takes gray ones, so that colors are ignored.
        first_in_color: The first of them.
        unlike: Images that are unlike the training images.
        differences: How many of them there are of each difference, the greatest of an image.
        rejected: Those of them that have this as an error, instead of a label.
        one_input: How many images were classified in this run, if there are several, and all became the same input of
            the model; else 0.
        ignored: Files of folders that have no image's suffix, by suffix.
        seconds: From the first image to the last result.
    """

    run: dict[str, Any]
    images: int = 0
    unreadable: int = 0
    earlier: int = 0
    below_min_probability: int | None = None
    placed: int | None = None
    in_color: int = 0
    first_in_color: str | None = None
    unlike: int = 0
    differences: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    one_input: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Not counting results that were there already."""
        return (self.images - self.earlier) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"images_per_second": self.images_per_second}

    def warnings(self) -> Iterator[str]:
        """For people: sentences about images whose labels may mean nothing, and what to do."""
        if described := IgnoredFiles(self.ignored).describe():
            yield described[0].upper() + described[1:]
        if self.first_in_color is not None:
            images = f"{count_of(self.in_color, 'image')} stored in color, such as {printable(self.first_in_color)}"
            yield f"{images}: {self.run['model']} takes gray images, so their colors are ignored"
        if self.one_input:
            yield (
                f"All {self.one_input:,} images became the same input of the model, pixel by pixel, so they have the "
                "same result. The page of rnn-serve shows images as the model sees them"
            )
        # Half a percent of images like those in training count as unlike them, but not by such differences.
        if self.unlike > USUALLY_UNLIKE * self.images or CERTAIN & self.differences.keys():
            yield self._describe_unlike()

    def _describe_unlike(self) -> str:
        ordered = sorted(self.differences.items(), key=lambda pair: -pair[1])
        largest, count = ordered[0][0], self.unlike
        named = largest
        if len(ordered) > 1:
            named = ", ".join(f"{name} ({number:,})" for name, number in ordered[:_DIFFERENCES_SHOWN])
            named += ", ..." if len(ordered) > _DIFFERENCES_SHOWN else ""
        which = f"{count:,} of {self.images:,} images {'is' if count == 1 else 'are'}"
        if self.images == 1:
            which = "The image is"
        if largest in (LIGHT, DARK):
            invert = self.run["invert"]
            remedy = f"{'Leave out' if invert else 'Try'} --invert"
            if ordered[0][1] <= _MOST * self.images:  # else the others would be the wrong way round
                remedy = f"Classify {'it' if count == 1 else 'them'} apart, {'without' if invert else 'with'} --invert"
        else:
            remedy = f"Don't trust {'its label' if count == 1 else 'their labels'}"
            if self.rejected:
                remedy = f"{'It has' if count == 1 else 'They have'} no label"
            if self.run["fit"] != "glyph":
                remedy += ". If each shows one sign, a model trained with --fit glyph may read them"
        return f"{which} unlike the training images: {named}. {remedy}"

    def __str__(self) -> str:
        images = f"{self.images:,} image" + ("s" if self.images != 1 else "")
        earlier = f" ({self.earlier:,} from before)" if self.earlier else ""
        failed = f", {self.unreadable:,} unreadable" if self.unreadable else ""
        failed += f", {self.rejected:,} unlike the training images" if self.rejected else ""
        below = f", {self.below_min_probability:,} without a label" if self.below_min_probability else ""
        if self.images and self.earlier == self.images:  # a complete file doesn't say which model it is of
            return f"{images}{earlier}{failed}{below}; none was classified now"
        speed = f"{self.seconds:.2f} s, {self.images_per_second:,.0f} images/s"
        checkpoint = f"checkpoint {self.run['checkpoint_sha256'][:12]}"
        return f"{images}{earlier}{failed}{below}, {speed}, {checkpoint}, on {self.run['provider']}"


def describe_run(classifier: Classifier) -> dict[str, Any]:
    """What makes results: the model, its checkpoint, the execution provider that really runs, versions."""
    import onnxruntime  # the classifier has imported it

    return {
        "rnn_onnx": rnn_runtime.__version__,
        "onnxruntime": onnxruntime.__version__,
        "model": classifier.path,
        "checkpoint_sha256": classifier.metadata.checkpoint_sha256,
        "provider": classifier.provider,
        "threads": classifier.threads,
        "fit": classifier.image_spec.fit,
        "invert": classifier.image_spec.invert,
    }


class ImageList:
    """The hash of a list of paths, which grows with them.

    Attributes:
        count: How many there are.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.count, self._digest = 0, hashlib.sha256()
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """Add the next path."""
        self.count += 1
        # A null character ends each, since no path holds one.
        self._digest.update(path.encode(errors="surrogateescape") + b"\0")

    @property
    def sha256(self) -> str:
        """The hash of the paths so far."""
        return self._digest.hexdigest()


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    output: str | Path | None = None,
    options: RunOptions = DEFAULTS,
    *,
    evaluation: "FolderEvaluation | None" = None,
    placer: "ImagePlacer | None" = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> RunSummary:
    """Classify image files, and write the results as they come.

    While it runs in the main thread, Ctrl-C and SIGTERM end it after the batch under way; a second signal ends the
    process at once.

    Args:
        classifier: The model.
        paths: Image files, as `find_images` gives them.
        output: The file to write; None for standard output. CSV, TSV and JSON Lines grow in `output` + `.part`, which
            gets its name when it is whole, and stays if the run is stopped or killed.
        options: How files are classified, and what a row shows.
        evaluation: Counts every result; a column with the true label is added.
        placer: Puts each image that has a label into the folder of its class. Images that are there already aren't
            classified.
        resume: Continue what an earlier run over the same list left in `output` + `.part`. Without one, an `output`
            that is complete is left as it is.
        watch: Called with the number of results of each batch before they are written, and with 0 at the end, to show
            how far the run is; with `resume`, first with the number of earlier ones.

    Returns:
        Counts, time, and what ran.

    Raises:
        SettingsError: `resume` without `output`, or with a format that can't be continued; Parquet on standard output.
        MissingPackageError: Parquet without pyarrow.
        InputError: `output` is the model, a folder or a device, or its folder is missing. Or what is to be continued
            was made by another model, of other images or with other options.
        OutputError: the file can't be written; the text says what is kept.
        StorageError: object storage can't be read; the text says what is kept.
        ProcessLostError: one of the processes has ended; the text says what is kept.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what is kept.
    """
    check_argument("output", output, Path | None)
    if output is not None:
        check_output(Path(output), [classifier.path])
    format = options.format or choose_format(output, terminal=False)
    if resume and (output is None or format not in RESUMABLE):
        raise SettingsError(
            Argument("resume"),
            f" continues results in a file of {', '.join(RESUMABLE)}. Set ",
            Argument("output"),
            " and one of these formats",
        )
    if format == "parquet":
        if output is None:
            raise SettingsError(Argument("format", "parquet"), " needs a file. Set ", Argument("output"))
        import_arrow("parquet")
    run = Run(classifier, options, format, evaluation, placer, watch)
    paths = run.inputs(paths)
    with telling(lambda: _kept_in(run.growing), output):
        if output is None:
            run.write(paths, sys.stdout)
        elif format not in RESUMABLE:
            binary = format == "parquet"
            with atomic_write(output, "wb" if binary else "w", **({} if binary else TEXT)) as file:
                run.write(paths, file)
        elif resume and os.path.exists(output) and not os.path.exists(part_of(output)):
            run.check_complete(paths, output)
        else:
            with growing_file(output, run.made_with, resume=resume) as growing:
                run.grow(paths, growing)
    return run.summary


def write_summary(path: str | Path, summary: RunSummary, evaluation: "FolderEvaluation | None" = None) -> None:
    """Write a summary as JSON, with all figures of an evaluation.

    Raises:
        OSError: the file can't be written.
    """
    values = summary.to_dict()
    if evaluation:
        values |= {"not_evaluated": evaluation.unknown} | evaluation.figures.to_dict()
        if summary.below_min_probability is not None:
            values |= {"labeled": evaluation.labeled, "labeled_correct": evaluation.labeled_correct}
    with atomic_write(path) as file:
        json.dump(values, file, indent=2)
        file.write("\n")


@dataclass(slots=True)
class Run:
    """A run under way: each result is placed, counted, evaluated and written.

    Attributes:
        summary: What came out so far.
        settings: The settings that rows depend on.
        made_with: The model, these settings, and where images are put.
        listed: The images that have a result so far.
        growing: The file that results grow in, if they do.
    """

    classifier: Classifier
    options: RunOptions
    format: Format
    evaluation: "FolderEvaluation | None" = None
    placer: "ImagePlacer | None" = None
    watch: Watch | None = None
    columns: Columns = field(init=False)
    summary: RunSummary = field(init=False)
    settings: dict[str, Any] = field(init=False)
    made_with: dict[str, Any] = field(init=False)
    listed: ImageList = field(init=False, default_factory=ImageList)
    growing: GrowingFile | None = field(init=False, default=None)
    _versions: Any = field(init=False, default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        if self.options.csv_safe and self.format not in DELIMITERS:
            raise SettingsError(Argument("csv_safe"), f" does nothing for {self.format}. Leave it out")
        self.columns = self.options.columns(self.classifier, true_label=self.evaluation is not None)
        self.summary = RunSummary(describe_run(self.classifier))
        if self.columns.min_probability is not None:
            self.summary.below_min_probability = 0
        if self.placer:
            self.summary.placed = 0
        self.settings = {**asdict(self.columns), "invert": self.classifier.image_spec.invert}
        self.made_with = {
            "model": self.classifier.sha256[:DIGITS],
            "format": self.format,
            **self.settings,
            "copies": str(self.placer.folder) if self.placer else None,
        }

    def inputs(self, paths: Iterable[str]) -> Iterable[str]:
        """The paths without images that were put into the folder of a class."""
        return itertools.filterfalse(self.placer.contains, paths) if self.placer else paths

    def write(self, paths: Iterable[str], file: IO[Any]) -> None:
        """Classify all images, and write their results into a file."""
        with open_writer(file, self.format, self.columns) as write:
            self._classify(paths, write)
        file.flush()

    def grow(self, paths: Iterable[str], growing: GrowingFile) -> None:
        """Classify all images, or those that an earlier run didn't come to, and write their results.

        Raises:
            InputError: the earlier run was given other images.
        """
        remaining, self.growing = iter(paths), growing
        if growing.earlier:
            self._skip(remaining, growing)
        file = io.TextIOWrapper(growing.file, **TEXT)
        try:
            with open_writer(file, self.format, self.columns, header=not growing.earlier) as write:

                def note() -> None:
                    file.flush()
                    counts = {name: getattr(self.summary, name) for name in _RECORDED}
                    growing.note({"list": self.listed.sha256, "versions": self._versions.hexdigest(), **counts})

                self._classify(remaining, write, note)
            file.flush()
        finally:
            with contextlib.suppress(OSError):  # a full disk is reported already
                file.detach()

    def check_complete(self, paths: Iterable[str], output: str | Path) -> None:
        """Count the results in a file that is complete, instead of classifying anything.

        Raises:
            InputError: it holds the results of other images, or something else.
        """
        with Path(output).open("rb") as file:
            for prediction in read_predictions(file, self.format, self.columns, str(output)):
                self._count(prediction)
        given = ImageList(paths)
        if given.sha256 != self.listed.sha256:
            raise InputError(
                f"{output}: complete, with the results of {self.listed.count:,} images, and {given.count:,} others are "
                "given now. Choose another ",
                Argument("output"),
                " for these, or begin again without ",
                Argument("resume", True),
            )
        self.summary.earlier = self.summary.images
        self._tell(self.summary.earlier)

    def _skip(self, paths: Iterator[str], growing: GrowingFile) -> None:
        """Pass over the images that have a result."""
        earlier = growing.earlier
        for path in itertools.islice(paths, earlier["images"]):
            self._list(path)
        if self.listed.sha256 != earlier["list"]:
            raise InputError(
                f"{growing.part}: holds the results of {earlier['images']:,} images, and these aren't the first of "
                "those given now. Restore the images that were added, removed or renamed since, or delete the file"
            )
        if self._versions.hexdigest() != earlier["versions"]:
            raise InputError(
                f"{growing.part}: holds the results of {earlier['images']:,} images, some of which were changed since. "
                "Delete the file, and begin again"
            )
        if self.evaluation:
            growing.file.seek(0)
            for prediction in read_predictions(growing.file, self.format, self.columns, growing.part):
                self.evaluation.add(prediction, labeled=not self.columns.is_below(prediction))
        for name in _RECORDED:
            setattr(self.summary, name, earlier[name])
        self.summary.earlier = self.summary.images
        self._tell(self.summary.earlier)

    def _classify(self, paths: Iterable[str], write: Write, note: Callable[[], None] = lambda: None) -> None:
        start = time.perf_counter()
        classified = self.classifier.classify_batches(
            paths, self.columns.top_k, self.options.batch_size, processes=self.options.processes
        )
        with classified as batches:
            inputs: set[int | None] = set()
            classified_now = 0
            for found, readable, only_input in batches:
                predictions = list(map(self.columns.judge, found)) if self.columns.unlike == "error" else found
                # Placed before their rows are written: a run that is killed in between and resumed finds them there.
                self._place(predictions)
                if readable:
                    inputs.add(only_input)
                    classified_now += readable
                rows = [self.columns.row(prediction, self._count(prediction)) for prediction in predictions]
                self._tell(len(predictions))
                write(rows)
                note()
                stop_if_signaled()
        if classified_now > 1 and len(inputs) == 1 and None not in inputs:
            self.summary.one_input = classified_now
        self._tell(0)
        self.summary.seconds = time.perf_counter() - start

    def _tell(self, results: int) -> None:
        if self.watch:
            self.watch(results)

    def _place(self, predictions: Iterable[Prediction]) -> None:
        if self.placer is None:
            return
        for prediction in predictions:
            if prediction.label is not None and not self.columns.is_below(prediction):
                self.placer.place(prediction.path, prediction.label)
                self.summary.placed = (self.summary.placed or 0) + 1

    def _list(self, path: str) -> None:
        """Note that an image has a result."""
        self.listed.add(path)
        if self.growing:
            self._versions.update(_version(path))

    def _count(self, prediction: Prediction) -> str | None:
        """Count a result, and give the true label; None without evaluation."""
        self._list(prediction.path)
        below = self.columns.is_below(prediction)
        self.summary.images += 1
        if prediction.unlike is not None:
            self.summary.unlike += 1
            counts = self.summary.differences
            counts[prediction.unlike] = counts.get(prediction.unlike, 0) + 1
            self.summary.rejected += prediction.error is not None
        elif prediction.error is not None:
            self.summary.unreadable += 1
        if prediction.colors_ignored:
            self.summary.in_color += 1
            self.summary.first_in_color = self.summary.first_in_color or prediction.path
        if self.summary.below_min_probability is not None:
            self.summary.below_min_probability += below
        return self.evaluation.add(prediction, labeled=not below) if self.evaluation else None


def _kept_in(growing: GrowingFile | None) -> Kept:
    """What is left of the results in a file, and how to continue."""
    if growing is None or not growing.size:
        return ()
    return (f"; {growing.part} holds the results so far. Continue with ", Argument("resume", True))


def _version(path: str) -> bytes:
    """What tells whether a file was changed since: its size, and when it was modified; nothing of object storage."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b"-"
    return b"%d %d," % (status.st_size, status.st_mtime_ns)


@contextmanager
def telling(kept: Callable[[], Kept], output: str | Path | None) -> Iterator[None]:
    """Note signals, and add what is kept to the error that ends a run.

    Args:
        kept: The end of the error's text.
        output: The file that is written.
    """
    try:
        with signals_noted():
            yield
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(describe_interrupt(interrupt), *kept(), interrupt=interrupt) from None
    except (OutputError, ProcessLostError, StorageError) as error:
        raise type(error)(*error.args, *kept()) from None
    except OSError as error:
        if output is None:
            raise
        raise OutputError(f"{output}: can't be written: {error.strerror or error}", *kept()) from None
