"""A file that grows beside its final name, so that a run that is stopped or killed can be continued."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rnn_runtime.errors import InputError
from rnn_runtime.files.lock import open_locked


def part_of(path: str | Path) -> str:
    """Where a file grows: its name and `.part`; of a link, beside the file that it leads to."""
    return f"{os.path.realpath(path)}.part"


@contextmanager
def growing_file(path: str | Path, *, resume: bool = False) -> Iterator[BinaryIO]:
    """Open `path` + `.part` to append to; it becomes `path` at the end of the `with` block.

    If the block raises, or the process is killed, it stays as it is, unless nothing is in it.

    Args:
        path: The final name. What is there is replaced.
        resume: Continue what an earlier run left in `path` + `.part`; if there is none, what `path` holds.

    Raises:
        InputError: an earlier run left something there and `resume` is False, another process is writing it, or it
            isn't a regular file.
        OSError: the folder is missing or can't be written.
    """
    target, part = os.path.realpath(path), part_of(path)
    if os.path.lexists(part) and (os.path.islink(part) or not os.path.isfile(part)):
        raise InputError(f"{part}: not a regular file, and in the way of results that grow there. Delete it")
    with _open_part(part) as file:
        copied = 0
        try:
            if os.path.getsize(part):
                if not resume:
                    raise InputError(
                        f"{part}: left by an unfinished run. Continue it with `resume=True`, or delete the file"
                    )
            elif resume and os.path.exists(target):
                with Path(target).open("rb") as finished:
                    shutil.copyfileobj(finished, file)
                copied = file.tell()
            file.flush()
            file.seek(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk has been reported by then
                file.flush()
            if os.path.getsize(part) <= copied:  # nothing that isn't in `path`
                os.unlink(part)
            raise


def _open_part(part: str) -> BinaryIO:
    try:
        return open_locked(part)
    except BlockingIOError:
        raise InputError(
            f"{part}: another process is writing it. Wait for it to end, or choose another `output`"
        ) from None
