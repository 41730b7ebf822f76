"""A file that grows under a temporary name, so that a stopped or killed run can be continued."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rnn_runtime.errors import InputError
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.files.lock import open_locked


def part_of(path: str | Path) -> str:
    """The path under which a file grows: its name with `.part` added. For a link, that of its target."""
    return f"{os.path.realpath(path)}.part"


@contextmanager
def growing_file(
    path: str | Path, *, resume: bool = False, made_with: Mapping[str, str] | None = None
) -> Iterator[BinaryIO]:
    """Open `path` + `.part` for appending, and rename it to `path` at the end of the `with` block.

    If the block raises, or the process is killed, the `.part` file stays, unless it is empty.

    Args:
        path: The final name. An existing file is replaced.
        resume: Continue the `.part` file of an earlier run; if there is none, a copy of `path`.
        made_with: What the content is made with, such as `{"checkpoint": "8293cfb3694d"}`. It is kept in `path` +
            `.part.json` until the file is complete. A `.part` file that was made with something else isn't continued.

    Raises:
        InputError: an earlier run left a `.part` file and `resume` is False, or it was made with something else;
            another process is writing it; it isn't a regular file.
        OSError: the folder is missing or can't be written.
    """
    target, part = os.path.realpath(path), part_of(path)
    record = Path(f"{part}.json")
    if os.path.lexists(part) and (os.path.islink(part) or not os.path.isfile(part)):
        raise InputError(f"{part}: not a regular file, and results are to be written there. Delete it")
    with _open_part(part) as file:
        copied = 0
        try:
            if os.path.getsize(part):
                if not resume:
                    raise InputError(
                        f"{part}: left by an unfinished run. Continue it with `resume=True`, or delete the file"
                    )
                _check_record(record, part, made_with or {})
            else:
                # Before the first byte of content, so that none is without it.
                with atomic_write(record) as text:
                    json.dump(made_with or {}, text)
                if resume and os.path.exists(target):
                    with Path(target).open("rb") as finished:
                        shutil.copyfileobj(finished, file)
                    copied = file.tell()
            file.flush()
            file.seek(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Earlier than the renaming: from then on another process may have a record of its own there.
            record.unlink(missing_ok=True)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk is already reported
                file.flush()
            if os.path.getsize(part) <= copied:  # it holds no more than `path`
                record.unlink(missing_ok=True)
                os.unlink(part)
            raise


def _check_record(record: Path, part: str, made_with: Mapping[str, str]) -> None:
    try:
        earlier = json.loads(record.read_bytes())
    except (OSError, ValueError):  # somebody removed it: there is nothing to compare with
        return
    for key, value in made_with.items():
        if isinstance(earlier, dict) and earlier.get(key, value) != value:
            raise InputError(
                f"{part}: made with {key} {earlier[key]}, not with {value}. Continue it with the same {key}, or delete "
                "the file"
            )


def _open_part(part: str) -> BinaryIO:
    try:
        return open_locked(part)
    except BlockingIOError:
        raise InputError(
            f"{part}: another process is writing it. Wait for it to end, or choose another `output`"
        ) from None
