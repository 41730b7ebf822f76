"""The commands, run by tests: in this process, where torch is imported already, or as processes of their own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from unittest import mock

# The module in which each command is `main`.
COMMANDS = {
    "rnn-train": "rnn_train.cli",
    "rnn-export": "rnn_export.cli",
    "rnn-infer": "rnn_runtime.cli",
    "rnn-serve": "rnn_runtime.serve.cli",
    "rnn-onnx": "rnn_runtime.toolbox",
}

# For processes whose files may not grow: coverage would write one at their end, and complain. And for those that get
# signals: coverage locks its data in Python code, and an exception from a signal handler there leaves them locked, so
# that each thread that comes to new code waits for ever.
UNMEASURED: dict[str, str | None] = {"COVERAGE_PROCESS_CONFIG": None, "COVERAGE_PROCESS_START": None}

# What auto says where onnxruntime's build for CUDA is installed without a driver. It isn't what tests are about.
_NOTICE = (
    "Running on the CPU: no NVIDIA driver was found (libcuda.so.1). Install the driver and check it with: nvidia-smi\n"
)

Result = subprocess.CompletedProcess[str]


class Run(Protocol):
    """The fixture `run`."""

    def __call__(
        self, command: str, *arguments: object, input: str | bytes = "", env: Mapping[str, str | None] | None = None
    ) -> Result:
        """Run one of `COMMANDS` in this process, as `run_in_process` does."""


class RunProcess(Protocol):
    """The fixture `run_process`."""

    def __call__(
        self,
        command: str,
        *arguments: object,
        input: str | bytes = "",
        env: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> Result:
        """Run a command as a process, as the function `run_process` does."""


def run_in_process(
    command: str,
    *arguments: object,
    folder: Path,
    input: str | bytes = "",
    env: Mapping[str, str | None] | None = None,
    terminal: BinaryIO | None = None,
) -> Result:
    """What a command's process would print and return, without starting one.

    Working folder, environment, streams, signal handlers and warning filters are afterwards what they were.

    Args:
        command: One of `COMMANDS`.
        arguments: Its arguments.
        folder: Where it runs.
        input: What it finds on its standard input.
        env: Variables beside those of this process; None takes one away.
        terminal: Gets what is printed on both streams, instead of the result.
    """
    main = import_module(COMMANDS[command]).main
    line = [str(argument) for argument in arguments]
    stdin, stdout, stderr = io.BytesIO(_bytes(input)), io.BytesIO(), io.BytesIO()
    streams = _own_streams(stdin, terminal or stdout, terminal or stderr)
    with contextlib.chdir(folder), _environment(env or {}), streams, _own_settings():
        try:
            main.main(args=line, prog_name=command)
            code: object = 0
        except SystemExit as exit_:
            code = exit_.code
        except Exception:
            traceback.print_exc()
            code = 1
    assert code is None or isinstance(code, int), f"an exit code, not {code!r}"
    return Result([command, *line], code or 0, _text(stdout.getvalue()), _errors(stderr.getvalue()))


def run_process(
    command: str,
    *arguments: object,
    folder: Path,
    input: str | bytes = "",
    env: Mapping[str, str | None] | None = None,
    **options: Any,
) -> Result:
    """Start a command of the environment that runs the tests, and wait until it has ended.

    Args:
        command: One of `COMMANDS`, or `python`.
        arguments: Its arguments.
        folder: Where it runs.
        input: What it finds on its standard input.
        env: Variables beside those of this process; None takes one away.
        options: For `subprocess.run`, such as `stdout` or `preexec_fn`.
    """
    program, *words = command.split()
    line = [installed(program), *words, *map(str, arguments)]
    pipe = subprocess.PIPE
    usual: dict[str, Any] = {"stdout": pipe, "stderr": pipe, "timeout": 600}
    options = usual | options
    if "stdin" not in options:
        options["input"] = _bytes(input)
    with _environment(env or {}), heeding_ctrl_c():
        # a copy of the environment: after a fork, coverage would put its variables back into the first one
        options["env"] = dict(os.environ)
        result: subprocess.CompletedProcess[Any] = subprocess.run(line, check=False, cwd=folder, **options)
    return Result(line, result.returncode, _text(result.stdout or b""), _errors(result.stderr or b""))


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """A block whose processes heed Ctrl-C, also where this one ignores it, as started by a shell in the background.

    They inherit that a signal is ignored, but no handler. `preexec_fn` could do the same, but needs a fork: from a
    process that has imported torch, this takes 20 times as long as a start without one.
    """
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if is_ignored:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        if is_ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def installed(command: str) -> str:
    """The path of a command, or of `python`, in the environment that runs the tests."""
    return str(Path(sys.executable).with_name(command))


def modules_from(folder: Path) -> dict[str, str]:
    """The variable for a process that finds modules in this folder before all others."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def _bytes(text: str | bytes) -> bytes:
    return text.encode(errors="surrogateescape") if isinstance(text, str) else text


def _errors(data: bytes) -> str:
    return _text(data).replace(_NOTICE, "", 1)


def _text(data: bytes) -> str:
    # a file's name may be bytes that are no UTF-8; line ends stay what they are
    return data.decode(errors="surrogateescape")


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    with mock.patch.dict(os.environ, {name: value for name, value in changes.items() if value is not None}):
        for name, value in changes.items():
            if value is None:
                os.environ.pop(name, None)
        yield


@contextlib.contextmanager
def _own_streams(stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO) -> Iterator[None]:
    """Streams as Python opens them, but that they lead to memory or to a terminal."""
    streams = {
        "stdin": io.TextIOWrapper(stdin, "utf-8"),
        "stdout": io.TextIOWrapper(stdout, "utf-8", line_buffering=stdout.isatty()),
        "stderr": io.TextIOWrapper(stderr, "utf-8", "backslashreplace", line_buffering=True),
    }
    with contextlib.ExitStack() as stack:
        for name, stream in streams.items():
            stack.enter_context(mock.patch.object(sys, name, stream))
        try:
            yield
        finally:
            for stream in streams.values():
                # the bytes are to be read when the stream is gone
                with contextlib.suppress(ValueError):
                    stream.detach()


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Puts back what a process takes with it when it ends: signal handlers and warning filters."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for number, handler in handlers.items():
                if on_main_thread:
                    signal.signal(number, handler)
