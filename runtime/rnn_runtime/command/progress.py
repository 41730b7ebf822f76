"""The progress bar of `rnn-infer` on a terminal."""

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
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
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def count(self, paths: Iterable[str]) -> Iterator[str]:
        """Pass paths on, while a thread reads ahead to count them for the bar.

        Classifying starts at once. Memory holds the paths that are found but not yet classified.
        """
        ahead: queue.SimpleQueue[object] = queue.SimpleQueue()

        def find() -> None:
            total = 0
            try:
                for total, path in enumerate(paths, 1):  # noqa: B007  # the last one is the total
                    ahead.put(path)
                self._progress.update(self._task, total=total)
                ahead.put(_END)
            except BaseException as error:  # raised where the paths are read
                ahead.put(error)

        threading.Thread(target=find, daemon=True).start()
        while (found := ahead.get()) is not _END:
            if isinstance(found, BaseException):
                raise found
            yield str(found)

    def watch(self, results: Iterable[Item]) -> Iterator[Item]:
        """Pass results on, and count them."""
        self._progress.start()
        for i, result in enumerate(results):
            if i == self._most:
                self._progress.stop()
            self._progress.advance(self._task)
            yield result
        self._progress.stop()
