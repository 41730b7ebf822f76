"""The bar that a person at a terminal sees while images are classified."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnn_runtime.classifier import Prediction
from rnn_runtime.errors import RnnOnnxError
from rnn_runtime.results.run import Watch


@contextmanager
def progress_bar(find: Callable[[], Iterable[str]]) -> Iterator[Watch]:
    """Show on stderr how many results there are, of how many images, and the time left.

    Args:
        find: Gives the images once more, for a thread that counts them meanwhile: classifying starts while a large
            tree of folders is still being searched.

    Returns:
        In the `with` block, a function that passes results on and counts them. The bar is there until they end, and at
        the latest until the block does.
    """
    columns = (
        TextColumn("Classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    # By default, rich would send what is written to stdout, the results, through this console to stderr.
    progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = progress.add_task("", total=None)

    def count() -> None:
        with contextlib.suppress(RnnOnnxError, OSError):  # who classifies them meets it, too, and says so
            progress.update(task, total=sum(1 for _ in find()))

    def watch(results: Iterator[Prediction]) -> Iterator[Prediction]:
        progress.start()
        for result in results:
            progress.advance(task)
            yield result
        progress.stop()

    threading.Thread(target=count, daemon=True).start()
    try:
        yield watch
    finally:
        progress.stop()
