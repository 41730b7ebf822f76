"""The folder that a training run writes to: tried before the first step, and kept to one run at a time."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rnn_runtime.errors import OutputError
from rnn_runtime.files.atomic import check_output
from rnn_runtime.files.lock import open_locked

_LOCK = ".rnn-train.lock"


@contextmanager
def reserve(output: Path) -> Iterator[None]:
    """Make the folder of `output`, and keep other runs out of it until the end of the `with` block.

    The lock is on the whole folder, since the reports beside a checkpoint have the same names for every run. It ends
    with the process, even if it is killed. Folders that were made and stay empty are removed.

    Raises:
        OutputError: the folder can't be made or written to, or another run is writing to it.
    """
    folder = output.parent
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _lock_folder(output) as lock:
            os.ftruncate(lock.fileno(), 0)
            with contextlib.suppress(OSError):  # it is only for messages; a full disk is found by `check_output_space`
                os.write(lock.fileno(), f"{os.getpid()} {output.name}".encode(errors="surrogateescape"))
            try:
                yield
            finally:
                (folder / _LOCK).unlink(missing_ok=True)
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def check_output_space(output: Path, size: int) -> None:
    """Check that a file of `size` bytes can be written in place of `output`.

    Raises:
        InputError: `output` is a folder, a device or the like.
        OutputError: such a file can't be written; the text says why.
    """
    check_output(output, ())
    folder = Path(os.path.realpath(output)).parent  # of a link, where the file that it leads to is replaced
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise OutputError(
            f"{output}: no room for a checkpoint of {size / 1e6:,.1f} MB: {error.strerror or error}. "
            "Free some space, or choose another `output`"
        ) from None


def _lock_folder(output: Path) -> BinaryIO:
    folder = output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open_locked(folder / _LOCK)
    except BlockingIOError:
        raise OutputError(_describe_other_run(output)) from None
    except OSError as error:
        raise OutputError(
            f"{folder}: {output.name} can't be written to this folder: {error.strerror or error}. "
            "Choose another `output`"
        ) from None


def _describe_other_run(output: Path) -> str:
    """What is known of the run that holds the lock."""
    try:
        pid, _, name = (output.parent / _LOCK).read_bytes().decode(errors="surrogateescape").partition(" ")
    except OSError:
        pid = name = ""
    process, writes = (f" (process {pid})", f"{name} and its reports") if pid.isdigit() else ("", "its files")
    return (
        f"{output}: another training run{process} is writing {writes} to this folder. "
        "Wait for it to end, or choose another folder with `output`"
    )
