"""The click class of the commands: requirements are checked first, and errors are one line."""

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from rnn_runtime.command.options import Option, format_value, long_name
from rnn_runtime.command.streams import (
    import_onnxruntime_quietly,
    leave_stdout,
    prepare_streams,
    quiet_pillow,
    say,
)
from rnn_runtime.errors import Argument, MissingPackageError, RnnOnnxError
from rnn_runtime.interruption import describe_interrupt, end_process_at_signals, exit_code_of, kept_handlers
from rnn_runtime.text import one_line

# Where a module isn't named like its package.
_PACKAGES = {"prometheus_client": "prometheus-client", "sklearn": "scikit-learn"}
_LONGEST_SUMMARY = 60  # characters
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
        end_process_at_signals()
        try:
            return super().__call__(*arguments, **options)
        except SystemExit as exit_:
            end_process_at_signals(exit_.code if isinstance(exit_.code, int) else 0)
            raise

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command."""
        with kept_handlers():
            end_process_at_signals()
            prepare_streams()
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
            self._import()
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result

    def _import(self) -> None:
        if self._imports:
            quiet_pillow()
        for module in self._imports:
            if module == "onnxruntime":
                import_onnxruntime_quietly()
            else:
                import_module(module)

    @contextmanager
    def _errors_in_one_line(self, name: str | None) -> Iterator[None]:
        try:
            yield
        except (click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader of the results, such as `head`, has gone
            leave_stdout()
            raise click.exceptions.Exit(0) from None
        except (click.UsageError, RnnOnnxError, KeyboardInterrupt, OSError, MemoryError, RuntimeError) as error:
            failure = self._failure(error, name)
            if failure is None:
                raise
            if os.environ.get("RNN_DEBUG") == "1":
                say(_traceback(error))
            if self._reported_elsewhere and self._reported_elsewhere(error):
                raise click.exceptions.Exit(failure.exit_code) from None
            raise failure from None

    def _failure(self, error: BaseException, name: str | None) -> "_Failure | None":
        """The message for an error; None if the error is a bug."""
        match error:
            case click.NoSuchOption() if error.option_name in self._other_names:
                here = self._other_names[error.option_name]
                return _Failure(f"No such option: {error.option_name}. Use {here}; all options: {name} --help", 2)
            case click.UsageError():
                text = error.format_message().rstrip(".")
                more = f"all {'commands' if isinstance(self, Group) else 'options'}: {name} --help"
                return _Failure(f"{text} {more.capitalize()}" if text.endswith("?") else f"{text}; {more}", 2)
            case RnnOnnxError():
                return _Failure(error.worded(self._option), error.exit_code)
            case KeyboardInterrupt():
                return _Failure(describe_interrupt(error), exit_code_of(error))
            case OSError():
                # Errors of files name the file. A full disk without a name is that of standard output.
                full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
                place = error.filename or ("standard output" if full else "")
                return _Failure(f"{place}: {error.strerror or error}".removeprefix(": "), 2)
            case MemoryError():
                return self._out_of_memory()
            # torch has no class for it. Its allocator names the memory, and C++ says "std::bad_alloc".
            case RuntimeError() if "memory" in str(error) or "bad_alloc" in str(error):
                return self._out_of_memory()
        return None

    def _out_of_memory(self) -> "_Failure":
        smaller = "a smaller --batch-size, or " if any(param.name == "batch_size" for param in self.params) else ""
        return _Failure(f"out of memory. Try {smaller}smaller images", 2)

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


class Group(Command, click.Group):
    """A group of commands, in the order in which they are defined.

    Args:
        arguments: Passed to `click.Group`.
        elsewhere: Commands of other packages by name: the module, whose `main` it is, and what the help says about it.
            The module is imported when the command is used.
        options: Passed to `click.Group`.
    """

    def __init__(self, *arguments: Any, elsewhere: Mapping[str, tuple[str, str]] | None = None, **options: Any) -> None:
        super().__init__(*arguments, no_args_is_help=False, subcommand_metavar="COMMAND ...", **options)
        self._elsewhere = elsewhere or {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """The names of all commands."""
        return [*self.commands, *self._elsewhere]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None if there is none."""
        if cmd_name in self._elsewhere:
            return import_module(self._elsewhere[cmd_name][0]).main  # type: ignore[no-any-return]
        return super().get_command(ctx, cmd_name)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, then the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """List the commands, without importing those of other packages."""
        rows = [(name, command.get_short_help_str(_LONGEST_SUMMARY)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*rows, *((name, summary) for name, (_, summary) in self._elsewhere.items())])


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


class _Failure(click.ClickException):
    """An error as click prints it: one line on stderr, then the exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(one_line(text))
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: Any = None) -> None:  # noqa: ARG002  # always stderr
        say(f"Error: {self.message}")


def _traceback(error: BaseException) -> str:
    """The traceback of an error, including those of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__
    return "".join(traceback.format_exception(error)).rstrip()
