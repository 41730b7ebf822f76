"""The standard streams of a command: closed ones, readers that have gone, messages of libraries, the progress bar."""

import contextlib
import ctypes
import logging
import os
import queue
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import click

from rnn_runtime.interruption import POLL_SECONDS, signals_noted, stop_if_signaled

_END = object()


def prepare_streams() -> None:
    """Reopen closed streams, and pass file names through that aren't UTF-8."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next opened file would take its place
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # stays open until the process ends
    # File names that aren't UTF-8 are printed as the same bytes.
    cast(Any, sys.stdout).reconfigure(errors="surrogateescape")


def say(text: str) -> None:
    """Print a line for people on stderr. Once its reader has gone, output there is discarded."""
    try:
        click.echo(text, err=True)
    except OSError:
        _discard(sys.stderr.fileno())


def print_line(text: str) -> None:
    """Print a line on stdout that isn't a result. Write errors don't stop the command."""
    try:
        click.echo(text)
    except OSError as error:
        leave_stdout()
        if not isinstance(error, BrokenPipeError):
            say(f"Standard output can't be written, so nothing more is printed: {error.strerror}")


def leave_stdout() -> None:
    """Discard further output to stdout. Otherwise Python reports an error when it flushes at exit."""
    _discard(sys.stdout.fileno())


def _discard(descriptor: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def quiet_pillow() -> None:
    """Silence warnings and logs of Pillow and libtiff, in the whole process, as only a command may.

    Pillow warns about damaged EXIF and very large images, and logs what it can't read, without the name of the file. We
    raise our own errors for images that can't be used; for the rest a warning is noise.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    log = logging.getLogger("PIL")
    log.addHandler(logging.NullHandler())  # without any handler, Python prints errors on stderr
    log.propagate = False
    # libtiff writes to stderr itself, without the name of the file, and Pillow offers no way to it. It is found only
    # where Pillow is a wheel, which brings its own libtiff.
    import PIL

    for library in Path(PIL.__file__).parent.with_name("pillow.libs").glob("libtiff-*"):
        libtiff = ctypes.CDLL(str(library))
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


def import_onnxruntime_quietly() -> None:
    """Import onnxruntime and silence its log, in the whole process, as only a command may.

    If it can't be imported, nothing happens. The code that needs it reports the error.
    """
    # While it is imported, onnxruntime looks for GPUs and writes warnings to the file descriptor of stderr, before any
    # setting has an effect (github.com/microsoft/onnxruntime/issues/27092).
    with _silent_stderr(), contextlib.suppress(Exception):
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing to silence
        yield
        return
    with signals_noted():  # only afterwards can their message reach stderr
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class ImageBar:
    """A bar on stderr: the number of results and of images, and the time left.

    Use it in a `with` block, at the end of which the bar disappears.

    Args:
        most: The bar disappears after this many results, because more scroll by on its terminal; None for no such end.
    """

    def __init__(self, most: int | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

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

        Classifying starts at once. Memory holds the paths that are found but not yet classified. The thread starts
        behind the first paths, when processes are forked already, or none will be.
        """
        from rnn_runtime.images.ahead import PEEKED

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
