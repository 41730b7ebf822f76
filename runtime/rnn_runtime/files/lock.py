"""Files that only one process at a time may open. A lock ends with its process, however that ends."""

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO

_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # EACCES on network file systems


def open_locked(path: str | Path) -> BinaryIO:
    """Open a file for reading and appending, and hold its lock until it is closed. A missing file is created.

    On file systems without locks, such as some network shares, the file is opened without one.

    Raises:
        BlockingIOError: the file is already locked, by another process or by this one.
        OSError: the file can't be opened.
    """
    while True:
        file = Path(path).open("a+b")  # noqa: SIM115  # left open for the caller
        try:
            _lock(file)
            # The last holder may have renamed or removed the file meanwhile. Then the path names another file, or none.
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
