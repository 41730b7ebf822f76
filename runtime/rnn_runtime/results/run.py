"""A whole run: image files in, results written as they come, and a summary."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import rnn_runtime
from rnn_runtime.classifier import BATCH_SIZE, Classifier, Prediction
from rnn_runtime.engine.session import import_onnxruntime
from rnn_runtime.errors import OutputError, ProcessLostError, SettingsError, StorageError
from rnn_runtime.files.arrow import import_arrow
from rnn_runtime.files.atomic import atomic_write, check_output
from rnn_runtime.files.part_file import growing_file, part_of
from rnn_runtime.interruption import RunInterruptedError, describe_interrupt
from rnn_runtime.model.values import Count, check_argument
from rnn_runtime.results.earlier import EarlierResults
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.place import ImagePlacer
from rnn_runtime.results.predict import predict_files
from rnn_runtime.results.write import (
    FORMATS,
    RESUMABLE,
    Columns,
    Format,
    choose_format,
    write_parquet,
    write_results,
)

# A file's name may be bytes that are no UTF-8; they come out as they went in.
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}

Watch = Callable[[Iterator[Prediction]], Iterator[Prediction]]


@dataclass(slots=True)
class RunSummary:
    """What came out of a run.

    Attributes:
        run: What ran: model, checkpoint, execution provider, versions; as `describe_run` gives it.
        images: Images that have a result, be it a label or an error.
        unreadable: Those of them with an error.
        earlier: Those of them whose result was there already.
        below_min_probability: Those of them too uncertain for a label; None without `min_probability`.
        placed: Images put into the folder of their class; None where that wasn't asked for.
        seconds: From the first image to the last result.
    """

    run: dict[str, Any]
    images: int = 0
    unreadable: int = 0
    earlier: int = 0
    below_min_probability: int | None = None
    placed: int | None = None
    seconds: float = 0.0

    def add(self, prediction: Prediction) -> None:
        """Count a result."""
        self.images += 1
        self.unreadable += prediction.error is not None

    @property
    def images_per_second(self) -> float:
        """Not counting results that were there already."""
        return (self.images - self.earlier) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"images_per_second": self.images_per_second}

    def __str__(self) -> str:
        images = f"{self.images:,} image" + ("s" if self.images != 1 else "")
        earlier = f" ({self.earlier:,} from before)" if self.earlier else ""
        failed = f", {self.unreadable:,} unreadable" if self.unreadable else ""
        below = f", {self.below_min_probability:,} without a label" if self.below_min_probability else ""
        speed = f"{self.seconds:.2f} s, {self.images_per_second:,.0f} images/s"
        checkpoint = f"checkpoint {self.run['checkpoint_sha256'][:12]}"
        return f"{images}{earlier}{failed}{below}, {speed}, {checkpoint}, on {self.run['provider']}"


def describe_run(classifier: Classifier) -> dict[str, Any]:
    """What makes results: the model, its checkpoint, the execution provider that really runs, versions."""
    return {
        "rnn_onnx": rnn_runtime.__version__,
        "onnxruntime": import_onnxruntime().__version__,
        "model": classifier.path,
        "checkpoint_sha256": classifier.metadata.checkpoint_sha256,
        "provider": classifier.provider,
        "threads": classifier.threads,
    }


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    output: str | Path | None = None,
    *,
    format: Format | None = None,
    top_k: int = 1,
    min_probability: float | None = None,
    checkpoint_column: bool = False,
    batch_size: int = BATCH_SIZE,
    evaluation: FolderEvaluation | None = None,
    resume: bool = False,
    placer: ImagePlacer | None = None,
    watch: Watch = iter,
    processes: int = 1,
    remedy: str | None = None,
) -> RunSummary:
    """Classify image files, and write the results as they come.

    Args:
        classifier: The model.
        paths: Image files, as `find_images` gives them.
        output: The file to write; None for standard output. CSV, TSV and JSON Lines grow in `output` + `.part`, which
            gets its name when it is whole, and stays if the run is stopped or killed.
        format: `csv`, `tsv`, `jsonl`, `parquet` or `table`; None for the one that the ending of `output` names, and
            for CSV on standard output.
        top_k: How many classes a result shows; at most all.
        min_probability: Leave the label empty where the probability is lower. The likeliest class has a column
            `guess` then.
        checkpoint_column: Repeat the SHA-256 of the model's checkpoint in every row.
        batch_size: Images per run of the model.
        evaluation: Counts every result; a column with the true label is added.
        resume: Continue what an earlier run left in `output` + `.part`, or else in `output`. Images that have a
            result there, be it an error, are passed over. Takes some 100 MB per million of them.
        placer: Puts each image that has a label into the folder of its class. Images that are there already aren't
            classified.
        watch: Passes on the results that it is given, to show how far they are; with `resume`, first the earlier ones.
        processes: The most processes that classify many small files, such as one per core. They are forked from this
            one: choose more than 1 only where no thread of the program holds a lock that they might need. With 1, this
            process does all, and so it does on CUDA.
        remedy: What an error tells to do; None for how to continue with `resume`.

    Returns:
        Counts, time, and what ran.

    Raises:
        SettingsError: `resume` without `output`, or with a format that can't be continued; an unknown format; Parquet
            on standard output; `min_probability` is out of range.
        MissingPackageError: Parquet without pyarrow.
        InputError: `output` is the model, a folder or a device, or its folder is missing. Or what is to be continued
            has other columns, is another model's, or isn't results.
        OutputError: the file can't be written; the text says what is kept.
        StorageError: object storage can't be read; the text says what is kept.
        ProcessLostError: one of the processes has ended; the text says what is kept.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what is kept.
    """
    check_argument("output", output, Path | None)
    if output is not None:
        check_output(Path(output), [classifier.path])
    format = format or choose_format(output, terminal=False)
    _check_settings(output, format, min_probability, resume)
    columns = Columns(
        min(top_k, len(classifier.class_names)),
        evaluation is not None,
        min_probability,
        classifier.metadata.checkpoint_sha256 if checkpoint_column else None,
    )
    check_argument("processes", processes, Count)
    run = _Run(classifier, columns, format, batch_size, evaluation, watch, placer, processes)
    with _telling_what_is_kept(output, format, remedy):
        if output is None:
            run.classify(paths, sys.stdout)
        elif format in RESUMABLE:
            _append_results(run, paths, output, resume)
        elif format == "parquet":
            with atomic_write(output, "wb") as file:
                run.classify(paths, file)
        else:
            with atomic_write(output, **_TEXT) as file:
                run.classify(paths, file)
    return run.summary


def _check_settings(output: str | Path | None, format: Format, min_probability: float | None, resume: bool) -> None:
    if format not in FORMATS:
        raise SettingsError(f"`format` must be one of {', '.join(FORMATS)}, not {format!r}")
    if resume and (output is None or format not in RESUMABLE):
        raise SettingsError(
            f"`resume` continues results in a file of {', '.join(RESUMABLE)}. Set `output` and one of these formats"
        )
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise SettingsError(f"`min_probability` must be from 0 to 1, not {min_probability}")
    if format == "parquet":
        if output is None:
            raise SettingsError('`format="parquet"` needs a file. Set `output`')
        import_arrow("parquet")


def write_summary(path: str | Path, summary: RunSummary, evaluation: FolderEvaluation | None = None) -> None:
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
class _Run:
    """A run under way: each result is counted, evaluated and written."""

    classifier: Classifier
    columns: Columns
    format: Format
    batch_size: int
    evaluation: FolderEvaluation | None
    watch: Watch
    placer: ImagePlacer | None
    processes: int
    summary: RunSummary = field(init=False)

    def __post_init__(self) -> None:
        self.summary = RunSummary(describe_run(self.classifier))
        if self.columns.min_probability is not None:
            self.summary.below_min_probability = 0
        if self.placer:
            self.summary.placed = 0

    def read_earlier(self, file: BinaryIO, name: str) -> Set[str]:
        """Count the results of an earlier run, and give the paths that have one."""
        arguments = (file, self.format, self.columns, self.classifier.class_names, name)
        earlier = EarlierResults(*arguments)
        paths = {prediction.path for prediction, _ in self._count(self.watch(iter(earlier)))}
        earlier.check_model(self.classifier)
        self.summary.earlier = self.summary.images
        if self.placer:
            file.seek(0)  # read again, now that they are known to be this model's
            for prediction in EarlierResults(*arguments):
                if os.path.exists(prediction.path):  # it may be gone by now
                    self._place(prediction)
        return paths

    def classify(
        self, paths: Iterable[str], file: IO[Any], earlier: Set[str] = frozenset(), *, header: bool = True
    ) -> None:
        """Classify all images but those that have a result, and write theirs."""
        missing = (path for path in paths if path not in earlier) if earlier else paths
        if self.placer:
            missing = itertools.filterfalse(self.placer.contains, missing)
        start = time.perf_counter()
        predictions = predict_files(
            self.classifier,
            missing,
            top_k=self.columns.top_k,
            batch_size=self.batch_size,
            processes=self.processes,
        )
        # Closed here, not when it happens to be collected: that may be in one of the threads that it waits for.
        with closing(predictions):
            # Placed before its row is written: a run that is killed in between and resumed finds the image there.
            results = self._count(self._place_each(self.watch(predictions)))
            if self.format == "parquet":
                write_parquet(results, file, self.columns)
            else:
                write_results(results, file, self.format, self.columns, header=header)
        file.flush()
        self.summary.seconds = time.perf_counter() - start

    def _count(self, predictions: Iterable[Prediction]) -> Iterator[tuple[Prediction, str | None]]:
        for prediction in predictions:
            self.summary.add(prediction)
            below = self.columns.is_below(prediction)
            if self.summary.below_min_probability is not None:
                self.summary.below_min_probability += below
            yield prediction, self.evaluation.add(prediction, labeled=not below) if self.evaluation else None

    def _place_each(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            self._place(prediction)
            yield prediction

    def _place(self, prediction: Prediction) -> None:
        if self.placer and prediction.label is not None and not self.columns.is_below(prediction):
            self.placer.place(prediction.path, prediction.label)
            self.summary.placed = (self.summary.placed or 0) + 1


def _append_results(run: _Run, paths: Iterable[str], output: str | Path, resume: bool) -> None:
    name = part_of(output) if os.path.exists(part_of(output)) else str(output)
    made_with = {"checkpoint": run.classifier.metadata.checkpoint_sha256[:12]}
    with growing_file(output, resume=resume, made_with=made_with) as binary:
        earlier = run.read_earlier(binary, name) if resume else frozenset()
        empty = binary.seek(0, os.SEEK_END) == 0  # else it has a header, if nothing more
        try:
            # a descriptor of its own: wherever an interruption comes, closing this leaves `binary` open
            with os.fdopen(os.dup(binary.fileno()), "a", **_TEXT) as file:
                run.classify(paths, file, earlier, header=empty)
        except BaseException:
            if not run.summary.images:
                binary.truncate(0)  # a header alone is nothing to continue
            raise


@contextmanager
def _telling_what_is_kept(output: str | Path | None, format: Format, remedy: str | None) -> Iterator[None]:
    def end() -> str:
        return f"; {remedy}" if remedy else _kept(output, format)

    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(f"{describe_interrupt(interrupt)}{end()}", interrupt=interrupt) from None
    except (OutputError, ProcessLostError, StorageError) as error:
        raise type(error)(f"{error}{end()}") from None
    except OSError as error:
        if output is None:
            raise
        raise OutputError(f"{output}: can't be written: {error.strerror or error}{end()}") from None


def _kept(output: str | Path | None, format: Format) -> str:
    if output is None or format not in RESUMABLE or not os.path.exists(part_of(output)):
        return ""
    return f"; {part_of(output)} holds the results so far. Continue with `resume=True`"
