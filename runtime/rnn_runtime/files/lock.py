"""Files that one process at a time has open: a lock ends with the process that holds it, however it ends."""

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO

_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # the second on network file systems


def open_locked(path: str | Path) -> BinaryIO:
    """Open a file to read and append to, and hold its lock until it is closed. It is made if it doesn't exist.

    Where a file system, such as some network shares, knows no locks, the file is opened without one.

    Raises:
        BlockingIOError: it is locked already, by another process or by this one.
        OSError: it can't be opened.
    """
    while True:
        file = Path(path).open("a+b")  # noqa: SIM115  # left open for the caller
        try:
            _lock(file)
            # Meanwhile, whoever held it may have renamed or removed it. Then this is no longer the file of that name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: BinaryIO) -> None:
    with contextlib.suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise BlockingIOError(error.errno, error.strerror, file.name) from None
