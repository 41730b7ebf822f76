"""Files that are complete or absent: written under a temporary name, and renamed at the end.

A file that takes long grows under a name that is known, so that a run that is stopped or killed can be continued:

- It grows as `NAME.part`, and gets its name when it is whole.
- Beside it, `NAME.part.json` records what it is made with and how far it is: bytes, and what the writer adds. A SHA-256
  of these and of the bytes shows whether either file was changed since.
- The record is replaced every few seconds and when the run ends, always after the bytes that it counts.
- To continue, the record must be of the same making. The file is cut to the recorded bytes, and goes on from there.
- A lock on the `.part` keeps others away. It ends with its process, however that ends.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from rnn_runtime.errors import Argument, InputError

# What the suffix of a file's name says about its content.
CHECKPOINT_SUFFIXES, MODEL_SUFFIXES = (".pt", ".pth"), (".onnx",)
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".pgm", ".ppm"}
)
HEIF_SUFFIXES = frozenset({".heic", ".heif"})  # read by a package of its own
INSTALL_HEIF = "pip install pillow-heif"
REMOTE = ("s3://", "gs://")  # what the name of a file in object storage begins with

_SECONDS = 2  # between two records
_READ_BYTES = 1 << 20  # at a time, of what is hashed
_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # EACCES on network file systems
_MOST_LINKS = 40  # that lead from one to the next, as Linux allows


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "w", *, sync: bool = True, follow_link: bool = True, **options: Any
) -> Iterator[IO[Any]]:
    """Write a file that appears under its name only once it is complete.

    Args:
        path: The final name. A temporary file in the same folder is renamed at the end of the `with` block, or removed
            if the block raises.
        mode: `w` for text or `wb` for bytes.
        sync: Wait until the file is on the disk, so that it survives a power failure.
        follow_link: Where the name is a link, replace its target, and not the link (`followed`).
        options: Passed to `open`.

    Raises:
        OSError: the folder is missing or can't be written, or the name is another user's link.
    """
    target = Path(followed(path) if follow_link else path)
    # Named before it is created, so that it can be removed after an interruption at any moment.
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open(mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # an error of a full disk names no file, and nobody knows the temporary one
        raise


def followed(path: str | Path) -> str:
    """The file that a name leads to: that of a link, if the link is one's own or the administrator's.

    In a folder of several users, somebody else's link could lead to any of one's own files. (Linux has such a rule for
    opening files, `fs.protected_symlinks`, which is off in places, and doesn't hold for renaming.)

    Raises:
        PermissionError: it leads through another user's link.
    """
    name = os.fspath(path)
    for _ in range(_MOST_LINKS):
        try:
            status = os.lstat(name)
        except FileNotFoundError:
            break
        if not stat.S_ISLNK(status.st_mode):
            break
        if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
            raise PermissionError(errno.EPERM, "it is another user's link, which isn't followed", str(path))
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    folder, base = os.path.split(name)
    return os.path.join(os.path.realpath(folder), base)


def check_output(output: Path, inputs: Iterable[str | Path]) -> None:
    """Check that a file can be written, and isn't one of the inputs or somebody's image.

    Raises:
        InputError: the folder is missing or can't be written, `output` is one of `inputs`, or a device, pipe or folder,
            or another user's link, or it is named like an image: it might be one of a folder of inputs.
    """
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{output}: named like an image, and none is written here. Choose another name")
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist. Create it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: the folder {output.parent} can't be written to. Choose another one")
    try:
        followed(output)
    except PermissionError as error:
        raise InputError(f"{output}: {error.strerror}. Choose another name") from None
    if os.path.exists(output) and not output.is_file():
        raise InputError(f"{output}: not a regular file. Choose another name")
    if any(os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output) for path in inputs):
        raise InputError(f"{output}: an input of this run, which must not be overwritten. Choose another name")


def part_of(path: str | Path) -> str:
    """The path under which a file grows: its name with `.part` added. For a link, that of its target."""
    return f"{followed(path)}.part"


class GrowingFile:
    """A file under its temporary name, and the record of how far it is.

    Attributes:
        part: The temporary name.
        file: Open for reading and for appending.
        earlier: What the writer recorded in the run that is continued; empty at the beginning.
        target: The name that the file gets. May be changed as long as it grows.
        size: The bytes that a later run could go on from.
    """

    def __init__(self, file: BinaryIO, part: str, target: str, made_with: Mapping[str, Any]) -> None:
        self.file, self.target = file, target
        self.earlier: dict[str, Any] = {}
        self.part, self._record, self._made_with = part, Path(f"{part}.json"), made_with
        self._noted: dict[str, Any] = {"bytes": 0}
        self._saved = time.monotonic()
        self._hashed, self._content = 0, hashlib.sha256()

    @property
    def size(self) -> int:
        return int(self._noted["bytes"])

    def note(self, progress: Mapping[str, Any]) -> None:
        """Note how far the content is that was written so far. The record follows at intervals."""
        self.file.flush()
        self._noted = {**progress, "bytes": os.fstat(self.file.fileno()).st_size}
        if time.monotonic() - self._saved > _SECONDS:
            self._save()

    def _continue(self) -> None:
        """Go on behind the recorded bytes.

        Raises:
            InputError: there is no record that fits.
        """
        try:
            record = json.loads(_read_regular(self._record))
            sha256 = record.pop("sha256")
            made_with, progress = dict(record["made_with"]), dict(record["progress"])
            size = progress.pop("bytes")
            if type(size) is not int or size < 0:
                raise ValueError(size)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(
                f"{self.part}: can't be continued, since its record {self._record.name} is missing or damaged. Delete "
                "it, and begin again"
            ) from None
        for key, value in self._made_with.items():
            if made_with.get(key) != value:
                raise InputError(
                    f"{self.part}: made with {key} {made_with.get(key)}, not {value}. Continue it with the same {key}, "
                    "or delete the file"
                )
        if os.fstat(self.file.fileno()).st_size < size:
            raise InputError(f"{self.part}: shorter than its record says. Delete it, and begin again")
        self._noted = {**progress, "bytes": size}
        if self._sha256(record) != sha256:
            raise InputError(
                f"{self.part}: can't be continued, since it or its record {self._record.name} was changed or damaged. "
                "Delete it, and begin again"
            )
        self.file.truncate(size)
        self.earlier = progress

    def _sha256(self, record: Mapping[str, Any]) -> str:
        """The SHA-256 of the content up to the noted bytes, of which only what is new is read, and of a record."""
        with Path(self.part).open("rb", buffering=0) as part:
            part.seek(self._hashed)
            while content := part.read(min(self._noted["bytes"] - self._hashed, _READ_BYTES)):
                self._content.update(content)
                self._hashed += len(content)
        both = self._content.copy()
        both.update(json.dumps(record).encode())
        return both.hexdigest()

    def _save(self) -> None:
        os.fsync(self.file.fileno())
        record = {"made_with": self._made_with, "progress": self._noted}
        with atomic_write(self._record, follow_link=False) as text:
            json.dump({**record, "sha256": self._sha256(record)}, text)
        self._saved = time.monotonic()

    def _finish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.part, self.target)
        self._record.unlink(missing_ok=True)

    def _keep(self) -> None:
        """At the end of a run that was stopped: keep what was noted, or leave nothing behind if that is nothing."""
        if self._noted["bytes"]:
            with contextlib.suppress(OSError):  # a full disk is reported already, and the record before still holds
                self._save()
        else:
            self._record.unlink(missing_ok=True)
            os.unlink(self.part)


@contextmanager
def growing_file(path: str | Path, made_with: Mapping[str, Any], *, resume: bool = False) -> Iterator[GrowingFile]:
    """Open `path` + `.part` for appending, and rename it to `path` at the end of the `with` block.

    If the block raises, or the process is killed, the `.part` file stays, unless nothing was noted of it.

    Args:
        path: The final name. An existing file is replaced.
        made_with: What the content is made with, such as `{"model": "8293cfb3694d"}`; plain values.
        resume: Continue the `.part` file of an earlier run, if there is one.

    Raises:
        InputError: an earlier run left a `.part` file and `resume` is False, or it was made with something else, or
            its record is missing, or either was changed since; another process is writing it; it isn't a regular file.
        OSError: the folder is missing or can't be written.
    """
    part = part_of(path)
    with _open_part(part) as file:
        growing = GrowingFile(file, part, part.removesuffix(".part"), made_with)
        if not os.fstat(file.fileno()).st_size:
            growing._save()  # before the first byte of content, so that none is without a record
        elif resume:
            growing._continue()
        else:
            raise InputError(
                f"{part}: left by an unfinished run. Continue it with ",
                Argument("resume", True),
                ", or delete the file",
            )
        try:
            yield growing
        except BaseException:
            growing._keep()
            raise
        growing._finish()


def _open_part(part: str) -> BinaryIO:
    with contextlib.suppress(FileNotFoundError):  # or it gets its name from another process at this moment
        if not stat.S_ISREG(os.lstat(part).st_mode):
            raise InputError(f"{part}: not a regular file, and results are to be written there. Delete it")
    try:
        return open_locked(part)
    except BlockingIOError:
        raise InputError(
            f"{part}: another process is writing it. Wait for it to end, or choose another ", Argument("output")
        ) from None


def _read_regular(path: Path) -> bytes:
    """The content of a file that isn't a link, a pipe or a device."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def open_locked(path: str | Path) -> BinaryIO:
    """Open a file for reading and appending, and hold its lock until it is closed. A missing file is created.

    A link isn't followed. On file systems without locks, such as some network shares, the file is opened without one.

    Raises:
        BlockingIOError: the file is already locked, by another process or by this one.
        OSError: the file can't be opened, is a link, a pipe or a device, or has another name: it may be somebody's.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666), "a+b")
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                what = "it has a second name" if stat.S_ISREG(status.st_mode) else "it isn't a regular file"
                raise OSError(errno.EPERM, f"{what}, so it isn't a file of this program's. Delete it", str(path))
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
