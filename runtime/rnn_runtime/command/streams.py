"""The standard streams of a command: closed ones, readers that have gone, and the noise of libraries."""

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click

from rnn_runtime.interruption import StopRequest


def prepare_streams() -> None:
    """Open streams that are closed, and let file names through that aren't UTF-8."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, and the next file that is opened would take its place
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # as long as the process lives
    # A file's name may be bytes that are no UTF-8; they come out as they went in.
    cast(Any, sys.stdout).reconfigure(errors="surrogateescape")


def say(text: str) -> None:
    """Print a line for people on stderr; nothing more is printed there once its reader has gone."""
    try:
        click.echo(text, err=True)
    except OSError:
        _discard(sys.stderr.fileno())


def print_line(text: str) -> None:
    """Print a line on stdout that is not a result: a reader that has gone, or a full disk, stops nothing."""
    try:
        click.echo(text)
    except OSError as error:
        leave_stdout()
        if not isinstance(error, BrokenPipeError):
            say(f"Nothing more is printed, because standard output can't be written: {error.strerror}")


def leave_stdout() -> None:
    """Write no more to stdout, or Python would complain when it flushes at its end."""
    _discard(sys.stdout.fileno())


def _discard(descriptor: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def quiet_pillow() -> None:
    """Keep what Pillow and libtiff say of images off stderr, in the whole process, as only a command may.

    They warn about damaged EXIF data and large images. An image that can't be used is an error of ours.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # libtiff writes to stderr itself, without the name of the file, and Pillow offers no way to it. It is found only
    # where Pillow is a wheel, which brings its own libtiff.
    import PIL

    for library in Path(PIL.__file__).parent.with_name("pillow.libs").glob("libtiff-*"):
        libtiff = ctypes.CDLL(str(library))
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


def import_onnxruntime_quietly() -> None:
    """Import onnxruntime, and keep what it says off stderr, in the whole process, as only a command may.

    If it can't be imported, nothing happens: whoever needs it says so.
    """
    # Releases up to the newest look for GPUs while they are imported, and warn past sys.stderr of whatever isn't one,
    # before any setting counts (github.com/microsoft/onnxruntime/issues/27092).
    with _silent_stderr(), contextlib.suppress(Exception):
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed: there is nothing to keep quiet
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
    stop.resend()  # now that what is said of it gets to stderr
