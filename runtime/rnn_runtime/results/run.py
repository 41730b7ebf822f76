"""A whole run: image files in, results written as they come, and a summary."""

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
from rnn_runtime.engine.installation import import_onnxruntime
from rnn_runtime.errors import OutputError, SettingsError
from rnn_runtime.files.atomic import atomic_write, check_output
from rnn_runtime.files.part_file import growing_file, part_of
from rnn_runtime.interruption import RunInterruptedError, describe_interrupt
from rnn_runtime.results.earlier import EarlierResults
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.write import FORMATS, Columns, Format, write_results

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
        seconds: From the first image to the last result.
    """

    run: dict[str, Any]
    images: int = 0
    unreadable: int = 0
    earlier: int = 0
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
        speed = f"{self.seconds:.2f} s, {self.images_per_second:,.0f} images/s"
        checkpoint = f"checkpoint {self.run['checkpoint_sha256'][:12]}"
        return f"{images}{earlier}{failed}, {speed}, {checkpoint}, on {self.run['provider']}"


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
    format: Format = "csv",
    top_k: int = 1,
    batch_size: int = BATCH_SIZE,
    evaluation: FolderEvaluation | None = None,
    resume: bool = False,
    watch: Watch = iter,
) -> RunSummary:
    """Classify image files, and write the results as they come.

    Args:
        classifier: The model.
        paths: Image files, as `find_images` gives them.
        output: The file to write; None for standard output. CSV and JSON Lines grow in `output` + `.part`, which
            gets its name when it is whole, and stays if the run is stopped or killed.
        format: `csv`, `jsonl` or `table`.
        top_k: How many classes a result shows; at most all.
        batch_size: Images per run of the model.
        evaluation: Counts every result; a column with the true label is added.
        resume: Continue what an earlier run left in `output` + `.part`, or else in `output`. Images that have a
            result there, be it an error, are passed over. Takes some 100 MB per million of them.
        watch: Passes on the results that it is given, to show how far they are; with `resume`, first the earlier ones.

    Returns:
        Counts, time, and what ran.

    Raises:
        SettingsError: `resume` without `output`, or with a table; an unknown format.
        InputError: `output` is the model, a folder or a device, or its folder is missing. Or what is to be continued
            has other columns, is another model's, or isn't results.
        OutputError: the file can't be written; the text says what is kept.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what is kept.
    """
    if resume and (output is None or format == "table"):
        raise SettingsError("`resume` continues results in a file of CSV or JSON Lines. Set `output` and `format`")
    if format not in FORMATS:
        raise SettingsError(f"`format` must be one of {', '.join(FORMATS)}, not {format!r}")
    if output is not None:
        check_output(Path(output), [classifier.path])
    columns = Columns(min(top_k, len(classifier.class_names)), evaluation is not None)
    run = _Run(classifier, columns, format, batch_size, evaluation, watch)
    with _telling_what_is_kept(output, format):
        if output is None:
            run.classify(paths, sys.stdout)
        elif format == "table":
            with atomic_write(output, **_TEXT) as file:
                run.classify(paths, file)
        else:
            _append_results(run, paths, output, resume)
    return run.summary


def write_summary(path: str | Path, summary: RunSummary, evaluation: FolderEvaluation | None = None) -> None:
    """Write a summary as JSON, with the counts of an evaluation.

    Raises:
        OSError: the file can't be written.
    """
    values = summary.to_dict()
    if evaluation:
        values |= {"evaluated": evaluation.total, "correct": evaluation.correct, "not_evaluated": evaluation.unknown}
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
    summary: RunSummary = field(init=False)

    def __post_init__(self) -> None:
        self.summary = RunSummary(describe_run(self.classifier))

    def read_earlier(self, file: BinaryIO, name: str) -> Set[str]:
        """Count the results of an earlier run, and give the paths that have one."""
        earlier = EarlierResults(file, self.format, self.columns.names, self.classifier.class_names, name)
        paths = {prediction.path for prediction, _ in self._count(self.watch(iter(earlier)))}
        earlier.check_model(self.classifier)
        self.summary.earlier = self.summary.images
        return paths

    def classify(
        self, paths: Iterable[str], file: IO[str], earlier: Set[str] = frozenset(), *, header: bool = True
    ) -> None:
        """Classify all images but those that have a result, and write theirs."""
        missing = (path for path in paths if path not in earlier) if earlier else paths
        start = time.perf_counter()
        predictions = self.classifier.iter_predictions(missing, top_k=self.columns.top_k, batch_size=self.batch_size)
        # Closed here, not when it happens to be collected: that may be in one of the threads that it waits for.
        with closing(predictions):
            results = self._count(self.watch(predictions))
            write_results(results, file, self.format, self.columns, run=self.summary.run, header=header)
        file.flush()
        self.summary.seconds = time.perf_counter() - start

    def _count(self, predictions: Iterable[Prediction]) -> Iterator[tuple[Prediction, str | None]]:
        for prediction in predictions:
            self.summary.add(prediction)
            yield prediction, self.evaluation.add(prediction) if self.evaluation else None


def _append_results(run: _Run, paths: Iterable[str], output: str | Path, resume: bool) -> None:
    name = part_of(output) if os.path.exists(part_of(output)) else str(output)
    with growing_file(output, resume=resume) as binary:
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
def _telling_what_is_kept(output: str | Path | None, format: Format) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(f"{describe_interrupt(interrupt)}{_kept(output, format)}", interrupt) from None
    except OSError as error:
        if output is None:
            raise
        reason = error.strerror or str(error)
        raise OutputError(f"{output}: can't be written: {reason}{_kept(output, format)}") from None


def _kept(output: str | Path | None, format: Format) -> str:
    if output is None or format == "table" or not os.path.exists(part_of(output)):
        return ""
    return f"; {part_of(output)} holds the results so far. Continue with `resume=True`"
