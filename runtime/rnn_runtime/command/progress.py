"""The progress bar of `rnn-infer`. Imported only where it is shown, since rich takes some time."""

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnn_runtime.command.command import Screen
from rnn_runtime.images.ahead import PEEKED
from rnn_runtime.interruption import POLL_SECONDS, stop_if_signaled

_END = object()


class ImageBar:
    """A bar on stderr: the number of results and of images, and the time left.

    Use it in a `with` block, at the end of which the bar disappears.

    Args:
        most: The bar disappears after this many results, because more scroll by on its terminal; None for no such end.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        columns = (
            TextColumn("Classifying"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        # By default, rich redirects stdout, and thus the results, to this console on stderr.
        console = Console(file=cast(IO[str], Screen(sys.stderr)))
        self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def count(self, paths: Iterable[str]) -> Iterator[str]:
        """Pass paths on, while a thread reads ahead to count them for the bar.

        Classifying starts at once. Memory holds the paths that are found but not yet classified. The thread starts
        behind the first paths, when processes are forked already, or none will be.
        """
        remaining = iter(paths)
        first = list(islice(remaining, PEEKED))
        yield from first
        ahead: queue.SimpleQueue[object] = queue.SimpleQueue()

        def find() -> None:
            total = len(first)
            try:
                for total, path in enumerate(remaining, len(first) + 1):  # noqa: B007  # the last one is the total
                    ahead.put(path)
                self._progress.update(self._task, total=total)
                ahead.put(_END)
            except BaseException as error:  # raised where the paths are read
                ahead.put(error)

        threading.Thread(target=find, daemon=True).start()
        while True:
            try:
                found = ahead.get(timeout=POLL_SECONDS)
            except queue.Empty:
                stop_if_signaled()
                continue
            if found is _END:
                return
            if isinstance(found, BaseException):
                raise found
            yield str(found)

    def watch(self, results: int) -> None:
        """Count some more results. The bar disappears at the end, which 0 is, and at the most results."""
        self._progress.advance(self._task, results)
        if results and (self._most is None or self._progress.tasks[self._task].completed <= self._most):
            self._progress.start()
        else:
            self._progress.stop()
