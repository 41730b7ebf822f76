"""Files in object storage: `s3://bucket/name` and `gs://bucket/name`.

Credentials, region and address come from the environment and the files that the provider's own tools use.
"""

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from rnn_runtime.errors import MissingPackageError, StorageError
from rnn_runtime.files.atomic import REMOTE

_CONNECT_SECONDS, _REQUEST_SECONDS = 10, 30
# With growing pauses in between, some 6 seconds in all. The standard strategy of AWS would give up on all files once a
# hundred requests have failed.
_ATTEMPTS = 8
_COPY_BYTES = 8 << 20


def import_arrow(module: str) -> Any:
    """Import a module of pyarrow, such as `fs`, which reads object storage, or `parquet`.

    Raises:
        MissingPackageError: pyarrow isn't installed, or can't be imported.
    """
    try:
        return import_module(f"pyarrow.{module}")
    except ModuleNotFoundError:
        raise MissingPackageError("pyarrow is not installed. Install it with: pip install pyarrow") from None
    except ImportError as error:  # such as one that needs a newer NumPy
        raise MissingPackageError(
            f"pyarrow can't be imported: {error}. Repair it with: pip install --upgrade pyarrow numpy"
        ) from None


def is_remote_folder(path: str) -> bool:
    """Whether there are files below this name.

    Raises:
        StorageError: the storage doesn't answer, or refuses.
        MissingPackageError: pyarrow isn't installed.
    """
    system, name = _locate(path)
    with _failures(path):
        return bool(system.get_file_info(name).type == import_arrow("fs").FileType.Directory)


def list_remote_folder(path: str) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: the storage doesn't answer, or refuses.
    """
    system, name = _locate(path)
    fs = import_arrow("fs")
    with _failures(path):
        return [
            (entry.base_name, entry.type == fs.FileType.Directory)
            for entry in system.get_file_info(fs.FileSelector(name))
        ]


def read_remote(path: str, limit: int) -> bytes | None:
    """Read a whole file; None if it has more than `limit` bytes.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage doesn't answer, or refuses, after several attempts. For an image, a row of the results
            would look like an error of the image.
    """
    system, name = _locate(path)
    with _failures(path), system.open_input_file(name) as file:
        return None if file.size() > limit else bytes(file.read())


def download(path: str, target: Path) -> None:
    """Copy a file of any size to a disk.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage doesn't answer, or refuses, after several attempts.
        OSError: `target` can't be written.
    """
    system, name = _locate(path)
    with target.open("wb") as file, _failures(path), system.open_input_file(name) as source:
        shutil.copyfileobj(source, file, _COPY_BYTES)


def upload(source: Path, path: str) -> None:
    """Copy a file from a disk. It appears in the storage once it is complete, or not at all.

    Raises:
        StorageError: the storage doesn't answer, or refuses, after several attempts.
    """
    system, name = _locate(path)

    # Whatever ends the inner block completes the file there. Signals don't: callers only note them meanwhile.
    with source.open("rb") as file, _map(file) as content, _failures(path, "written to"):
        try:
            with system.open_output_stream(name) as target:
                target.write(content)
        except FileNotFoundError as error:
            raise OSError(error) from None


@contextmanager
def _map(file: IO[bytes]) -> Iterator[Any]:
    """A file's content, read when it is used."""
    if size := os.fstat(file.fileno()).st_size:
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
            yield content
    else:
        yield b""


@contextmanager
def _failures(path: str, done: str = "read from") -> Iterator[None]:
    """Turn errors of a storage into one line, except for missing files."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).partition("; Details:")[0]
        raise StorageError(f"{path}: can't be {done} the storage: {reason}") from None


def _locate(path: str) -> tuple[Any, str]:
    """The file system of a path, and the name there."""
    scheme = next(scheme for scheme in REMOTE if path.startswith(scheme))
    return _open(scheme), path.removeprefix(scheme).rstrip("/")


@cache
def _open(scheme: str) -> Any:
    fs = import_arrow("fs")
    if scheme == "gs://":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_REQUEST_SECONDS))
    return fs.S3FileSystem(
        # The variables of Amazon's own tools, which Arrow doesn't read here.
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
