"""The standard streams of a command: closed streams, readers that have gone, and messages of libraries."""

import contextlib
import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click

from rnn_runtime.interruption import StopRequest


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
    with StopRequest() as stop:
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    stop.resend()  # only now can its message reach stderr
