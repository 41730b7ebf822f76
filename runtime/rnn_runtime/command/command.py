"""What the three commands share: errors in one line, quiet pipes, atomic files."""

import atexit
import errno
import importlib.util
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import click

from rnn_runtime.errors import MissingPackageError, RnnOnnxError, TerminatedError, signal_of
from rnn_runtime.text import one_line

_SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_LONGEST_MESSAGE = 2000  # characters
_OUT_OF_MEMORY = "out of memory; try a smaller --batch-size, or smaller images"


class Command(click.Command):
    """A click command whose errors are one line on stderr and an exit code.

    Exit codes: 1 for a run that finished with failures, 2 for bad input, 3 where something isn't
    installed or the execution provider can't run, 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the command as the program that this process is: signals are told in a line until it has ended."""
        if threading.current_thread() is threading.main_thread():
            _end_at_signals()  # also once `main` has put back what was before: at its end, Python waits for threads
            atexit.register(_ignore_signals)
        return super().__call__(*args, **options)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command."""
        with _handled_signals():
            _prepare_streams()
            return super().main(*args, **options)

    def make_context(self, info_name: str | None, *args: Any, **options: Any) -> click.Context:
        """Parse the command line; a mistake in it is one line, too."""
        try:
            return super().make_context(info_name, *args, **options)
        except click.UsageError as error:
            raise _usage_failure(error, info_name) from None
        except BrokenPipeError:
            raise
        except OSError as error:  # --help, to a disk that is full
            raise _failure(f"standard output: {error.strerror or error}", 2) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, turning the errors that this project raises into click's."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except click.UsageError as error:
            raise _usage_failure(error, ctx.info_name) from None
        except RnnOnnxError as error:
            raise _failure(str(error), error.exit_code) from None
        except BrokenPipeError:
            # The reader of the results, `head` say, has gone.
            leave_stdout()
            ctx.exit(0)
        except KeyboardInterrupt as interrupt:
            number = signal_of(interrupt)
            raise _failure(_SIGNALS[number], 128 + number) from None
        except OSError as error:
            # a file that can't be written is named by who writes it; what is left is where results are printed
            full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
            place = error.filename or ("standard output" if full else "")
            raise _failure(f"{place}: {error.strerror or error}".removeprefix(": "), 2) from None
        except MemoryError:
            raise _failure(_OUT_OF_MEMORY, 2) from None
        except RuntimeError as error:
            if "memory" not in str(error):  # torch has no class of its own for what its CPU allocator says
                raise
            raise _failure(_OUT_OF_MEMORY, 2) from None


def leave_stdout() -> None:
    """Point stdout elsewhere, once its reader has gone, or Python would complain when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interruptible() -> None:
    """From here on, Ctrl-C and SIGTERM are exceptions, so that what is begun is cleaned up.

    Before, while packages are imported, they end the process at once: an exception within an import may be swallowed,
    or come out as another one. Does nothing but in a command.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _end_at_once:
            signal.signal(number, _interrupt)


@contextmanager
def _handled_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _end_at_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell wants it of what runs in the background
            signal.signal(number, _end_at_once)


def _ignore_signals() -> None:
    # The last thing a process does: then Python puts the system's handlers back, which would change its exit code.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"Error: {_SIGNALS[number]}\n".encode())
    os._exit(128 + number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _end_at_signals()  # a second one doesn't wait for what the first has begun to clean up
    raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt


class _Messages(io.RawIOBase):
    """The process's stderr, of which nobody may read: what is said there is no reason to stop."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def write(self, content: Any) -> int:
        with suppress(OSError):
            os.write(2, content)
        return len(content)


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, and the next file that is opened would take its place
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # as long as the process lives
    # A file's name may be bytes that are no UTF-8; they come out as they went in.
    cast(Any, sys.stdout).reconfigure(errors="surrogateescape")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        messages = io.BufferedWriter(_Messages())
        sys.stderr = io.TextIOWrapper(messages, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _usage_failure(error: click.UsageError, command: str | None) -> click.ClickException:
    return _failure(f"{error.format_message().rstrip('.')}; all options: {command} --help", 2)


def _failure(message: str, exit_code: int) -> click.ClickException:
    error = click.ClickException(one_line(message))
    error.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance
    return error


def require_packages(modules: Sequence[str], extra: str) -> None:
    """Check that optional packages are there, before anything is done.

    Raises:
        MissingPackageError: one isn't installed; the text names the extra that brings it.
    """
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:  # no origin: a folder that an uninstalled package left behind
            raise MissingPackageError(f"{module} is not installed. Install it with: pip install 'rnn-onnx[{extra}]'")
