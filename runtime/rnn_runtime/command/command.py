"""The process of a command: packages are checked first, errors are one line, and streams are ready for both."""

import codecs
import contextlib
import ctypes
import errno
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO, cast

import click

from rnn_runtime.command.options import Option, format_value, long_name
from rnn_runtime.cores import limit_threads, reachable_cores, startable_threads, usable_cores
from rnn_runtime.errors import Argument, MissingPackageError, RnnOnnxError, RnnOnnxWarning
from rnn_runtime.interruption import (
    describe_interrupt,
    end_process_at_signals,
    exit_code_of,
    last_line,
    signals_noted,
)
from rnn_runtime.text import count_of, one_line

# Where a module isn't named like its package.
_PACKAGES = {"prometheus_client": "prometheus-client", "sklearn": "scikit-learn"}
_THREADS_PER_CORE, _MORE_THREADS = 3, 2  # the most that a run starts
_NO_THREAD = "can't start new thread"  # how Python and torch say it
_WIDEST_NAMES = 28  # columns of the help; the text of wider ones begins on the next line


class Command(click.Command):
    """A click command whose errors are one line on stderr and an exit code.

    Exit codes: 1 for a run that finished with failures, 2 for bad input, 3 where something isn't
    installed or the execution provider can't run, 130 after Ctrl-C, 143 after SIGTERM.
    With RNN_DEBUG=1 in the environment, the traceback behind an error comes before its line.

    Args:
        check: Checks the options before anything is imported, and raises `click.UsageError`.
        requires: Modules of optional packages that the command needs.
        imports: Modules to import before the function runs. A signal during this time ends the command with one line.
        other_names: Options of other tools, and what to use here, for the hint after an unknown option.
        reported_elsewhere: Whether another process prints an error that ends this one as well. It returns once that
            process has had its time.
        arguments: Passed to `click.Command`.
    """

    def __init__(
        self,
        *arguments: Any,
        check: Callable[[click.Context], None] | None = None,
        requires: Sequence[str] = (),
        imports: Sequence[str] = (),
        other_names: Mapping[str, str] | None = None,
        reported_elsewhere: Callable[[BaseException], bool] | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("context_settings", {}).setdefault("help_option_names", ["-h", "--help"])
        super().__init__(*arguments, **options)
        self._check, self._requires, self._imports = check, requires, imports
        self._other_names = other_names or {}
        self._reported_elsewhere = reported_elsewhere

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the command as the program that this process is."""
        _use_utf_8()
        end_process_at_signals()
        try:
            return super().__call__(*arguments, **options)
        except SystemExit as exit_:
            end_process_at_signals(exit_.code if isinstance(exit_.code, int) else 0)
            raise

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command."""
        _prepare_streams()
        _print_warnings()
        return super().main(*arguments, **options)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the command line."""
        with self._errors_in_one_line(f"{parent.command_path} {info_name}" if parent else info_name):
            return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options by group, in the order in which the command declares them."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: not isinstance(param, Option)):  # help comes last
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                groups.setdefault(param.group if isinstance(param, Option) else "Help", []).append(record)
        width = max(min(len(names), _WIDEST_NAMES) for records in groups.values() for names, _ in records)
        for name, records in groups.items():
            with formatter.section(name):
                # One width for all groups, so that their texts form one column.
                formatter.write_dl([(names.ljust(width), text) for names, text in records], col_max=_WIDEST_NAMES)

    def invoke(self, ctx: click.Context) -> Any:
        """Check the options, import the modules, and call the function."""
        with self._errors_in_one_line(ctx.command_path):
            if self._check:
                self._check(ctx)
            require_packages(self._requires)
            if self._imports:
                _spare_threads(ctx.params.get("threads"), quiet=bool(ctx.params.get("quiet")))
                _quiet_pillow()
            for module in self._imports:
                if module == "onnxruntime":
                    _import_onnxruntime_quietly()
                else:
                    import_module(module)
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result

    @contextlib.contextmanager
    def _errors_in_one_line(self, name: str | None) -> Iterator[None]:
        try:
            yield
        except (click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader of the results, such as `head`, has gone
            _discard(sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None
        except (click.UsageError, RnnOnnxError, KeyboardInterrupt, OSError, MemoryError, RuntimeError) as error:
            found = self._describe(error, name)
            if found is None:
                raise
            text, exit_code = found
            if os.environ.get("RNN_DEBUG") == "1":
                say(_traceback(error))
            if not (self._reported_elsewhere and self._reported_elsewhere(error)):
                with last_line(exit_code):
                    say(f"Error: {one_line(text)}")
            raise click.exceptions.Exit(exit_code) from None

    def _describe(self, error: BaseException, name: str | None) -> tuple[str, int] | None:
        """The message and the exit code for an error; None if it is a bug."""
        match error:
            case click.NoSuchOption() if error.option_name in self._other_names:
                here = self._other_names[error.option_name]
                return f"No such option: {error.option_name}. Use {here}; all options: {name} --help", 2
            case click.UsageError():
                text = error.format_message().rstrip(".")
                more = f"all {'commands' if isinstance(self, click.Group) else 'options'}: {name} --help"
                return f"{text} {more.capitalize()}" if text.endswith("?") else f"{text}; {more}", 2
            case RnnOnnxError():
                return error.worded(self._option), error.exit_code
            case KeyboardInterrupt():
                return describe_interrupt(error), exit_code_of(error)
            case OSError():
                # Errors of files name the file. A full disk without a name is that of standard output.
                full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
                place = error.filename or ("standard output" if full else "")
                return f"{place}: {error.strerror or error}".removeprefix(": "), 2
        if _NO_THREAD in str(error):
            return f"{_NO_THREAD}: the limit on processes and threads (ulimit -u, or the container's) is too low", 2
        # torch has no class for it. Its allocator names the memory, and C++ says "std::bad_alloc".
        if isinstance(error, MemoryError) or "memory" in str(error) or "bad_alloc" in str(error):
            smaller = "a smaller --batch-size, or " if any(param.name == "batch_size" for param in self.params) else ""
            return f"out of memory. Try {smaller}smaller images", 2
        return None

    def _option(self, argument: Argument) -> str:
        """The option that stands for a Python argument: `--batch-size`, `--provider cpu`, `--no-tf32`."""
        option = next((param for param in self.params if param.name == argument.name), None)
        if not isinstance(option, click.Option):
            return str(argument)
        if argument.value is False:
            return option.secondary_opts[0] if option.secondary_opts else f"no {long_name(option)}"
        if argument.value is None or argument.value is True:
            return long_name(option)
        return f"{long_name(option)} {shlex.quote(format_value(argument.value))}"


def _spare_threads(wanted: int | None, *, quiet: bool) -> None:
    """Work with fewer threads where only few can be started, and say so.

    OpenBLAS, which NumPy brings, starts a thread per core when it is imported, and none is of use here. Where it can't,
    it interrupts the process.

    Args:
        wanted: The threads that were asked for; None for one per core.
        quiet: Whether to say nothing.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if usable_cores() < reachable_cores():  # torch knows no quota of processor time
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    needed = _THREADS_PER_CORE * (wanted or usable_cores()) + _MORE_THREADS
    free = startable_threads(needed)
    if free < needed:
        most = max(1, (free - _MORE_THREADS) // _THREADS_PER_CORE)
        limit_threads(most)
        os.environ["OMP_NUM_THREADS"] = str(most)  # torch's
        found = count_of(free, "more thread")
        if not quiet:
            say(f"Only {found} can be started (ulimit -u, or the container's limit), so fewer are used")


def require_packages(modules: Sequence[str]) -> None:
    """Check that optional packages are installed, before anything is done.

    Args:
        modules: Names of modules.

    Raises:
        MissingPackageError: some aren't installed; the text names all of them and the command that installs them.
    """
    missing = [_PACKAGES.get(module, module) for module in modules if not _is_installed(module)]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise MissingPackageError(f"{names} {are} not installed. Install {them} with: pip install {' '.join(missing)}")


def _is_installed(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.origin is not None  # no origin: a folder that an uninstalled package left behind


def _traceback(error: BaseException) -> str:
    """The traceback of an error, including those of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__
    return "".join(traceback.format_exception(error)).rstrip()


def _use_utf_8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has file names in another encoding.

    The names of classes are those of folders, and must be the same wherever a model is used.
    """
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        if sys.stdout is not None:  # its encoding is that of the terminal
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _prepare_streams() -> None:
    """Reopen closed streams. Files and pipes get UTF-8, and terminals of another encoding escapes for what it lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next opened file would take its place
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # stays open until the process ends
    # File names that aren't UTF-8 are printed as the same bytes where they are results.
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if stream.isatty() and codecs.lookup(stream.encoding).name != "utf-8":
            cast(Any, stream).reconfigure(errors="backslashreplace")
        else:
            cast(Any, stream).reconfigure(encoding="utf-8", errors=errors)


def _print_warnings() -> None:
    """Print our own warnings as one line, as only a command may."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, RnnOnnxWarning):
            say(one_line(str(message)))
        else:
            usual(message, category, *place, **more)

    cast(Any, warnings).showwarning = show


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
        _discard(sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"Standard output can't be written, so nothing more is printed: {error.strerror}")


class Screen:
    """A stream that a bar is drawn on. Once it can't be written, as after its terminal is closed, nothing more is.

    Args:
        stream: Standard output or standard error; what isn't written comes from it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or discard what can't be written."""
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream.fileno())
            return len(text)

    def flush(self) -> None:
        """The same for what was written before."""
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(descriptor: int) -> None:
    """Discard further output to stdout or stderr. Otherwise Python reports an error when it flushes at exit."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def _quiet_pillow() -> None:
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


def _import_onnxruntime_quietly() -> None:
    """Import onnxruntime and silence its log, in the whole process, as only a command may.

    If it can't be imported, nothing happens. The code that needs it reports the error.
    """
    # While it is imported, onnxruntime looks for GPUs and writes warnings to the file descriptor of stderr, before any
    # setting has an effect (github.com/microsoft/onnxruntime/issues/27092). Signals are noted, since their message
    # can reach stderr only afterwards.
    with signals_noted(), contextlib.suppress(Exception):
        kept = os.dup(2)
        try:
            _discard(2)
            import onnxruntime

            onnxruntime.set_default_logger_severity(4)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
