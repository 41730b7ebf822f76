"""A whole run: image files in, results written as they come, and a summary."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from rnn_runtime.classifier import BATCH_SIZE, Classifier, Prediction
from rnn_runtime.errors import InputError, OutputError, RunInterruptedError
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.files.growing import growing_file, part_of
from rnn_runtime.results.earlier import CHECKED_AGAIN, check_same_model, read_results
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.write import Format, describe_run, result_columns, write_predictions

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


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    output: str | Path | None = None,
    *,
    style: Format = "csv",
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
        style: `csv`, `jsonl` or `table`.
        top_k: How many classes a result shows.
        batch_size: Images that go through the model at once.
        evaluation: Told of every result; a column with the true label is added.
        resume: Go on with what an earlier run left in `output` + `.part`, or else in `output`. Images that have a
            result there, be it an error, are passed over. Takes some 100 MB a million of them.
        watch: Passes on the results that it is given, to show how far they are; with `resume`, first the earlier ones.

    Returns:
        Counts, time, and what ran.

    Raises:
        InputError: what is to be gone on with has other columns, is another model's, or isn't results.
        OutputError: the file can't be written; the text says what is kept.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what is kept.
    """
    if resume and output is None:
        raise InputError("--resume goes on with results in a file: give it --output, too")
    if resume and style == "table":
        raise InputError(
            "--resume goes on with results as CSV or JSON Lines, and not with a table: choose another --format"
        )
    summary = RunSummary(describe_run(classifier))
    truth = evaluation.true_label if evaluation else None

    def count(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            summary.add(prediction)
            if evaluation:
                evaluation.add(prediction)
            yield prediction

    def classify(file: IO[str], earlier: Set[str] = frozenset(), *, header: bool = True) -> None:
        todo = (path for path in paths if path not in earlier) if earlier else paths
        start = time.perf_counter()
        found = count(watch(classifier.iter_predictions(todo, top_k=top_k, batch_size=batch_size)))
        write_predictions(found, file, style, top_k=top_k, truth=truth, run=summary.run, header=header)
        file.flush()
        summary.seconds = time.perf_counter() - start

    def go_on(file: BinaryIO, name: str) -> Set[str]:
        columns = result_columns(top_k, truth)
        first: list[Prediction] = []
        paths_done: set[str] = set()
        for result in count(watch(read_results(file, style, columns, classifier.class_names, name))):
            paths_done.add(result.path)
            if result.label and len(first) < CHECKED_AGAIN:
                first.append(result)
        check_same_model(classifier, first, name)
        summary.earlier = summary.images
        return paths_done

    with _telling_what_is_kept(output, style):
        if output is None:
            classify(sys.stdout)
        elif style == "table":
            with atomic_write(output, **_TEXT) as file:
                classify(file)
        else:
            read = part_of(output) if os.path.exists(part_of(output)) else str(output)
            with growing_file(output, resume=resume) as binary:
                earlier = go_on(binary, read) if resume else frozenset()
                empty = binary.seek(0, os.SEEK_END) == 0  # else it has a header, if nothing more
                try:
                    # a descriptor of its own: wherever an interruption comes, closing this leaves `binary` open
                    with os.fdopen(os.dup(binary.fileno()), "a", **_TEXT) as file:
                        classify(file, earlier, header=empty)
                except BaseException:
                    if not summary.images:
                        binary.truncate(0)  # a header alone is nothing to go on with
                    raise
    return summary


@contextmanager
def _telling_what_is_kept(output: str | Path | None, style: Format) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(f"interrupted{_kept(output, style)}", interrupt) from None
    except OSError as error:
        if output is None:
            raise
        reason = error.strerror or str(error)
        raise OutputError(f"{output}: can't be written: {reason}{_kept(output, style)}") from None


def _kept(output: str | Path | None, style: Format) -> str:
    if output is None or style == "table" or not os.path.exists(part_of(output)):
        return ""
    return f"; {part_of(output)} holds the results so far; go on with: --resume"
