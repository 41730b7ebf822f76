"""Image files in object storage: `s3://bucket/name` and `gs://bucket/name`.

Credentials, region and address come from the environment and the files that the provider's own tools use.
"""

import os
from datetime import timedelta
from functools import cache
from typing import Any

from rnn_runtime.errors import ImageError, StorageError
from rnn_runtime.files.arrow import import_arrow
from rnn_runtime.images.limits import MAX_FILE_BYTES

SCHEMES = ("s3://", "gs://")
_CONNECT_SECONDS, _REQUEST_SECONDS = 10, 30
# With growing pauses in between, some 6 seconds in all. The standard strategy of AWS would give up on all files once a
# hundred requests have failed.
_ATTEMPTS = 8


def is_remote(path: str) -> bool:
    """Whether a path names a file in object storage."""
    return path.startswith(SCHEMES)


def is_remote_folder(path: str) -> bool:
    """Whether there are files below this name.

    Raises:
        StorageError: the storage doesn't answer, or refuses.
        MissingPackageError: pyarrow isn't installed.
    """
    system, name = _locate(path)
    with _Failures(path):
        return bool(system.get_file_info(name).type == import_arrow("fs").FileType.Directory)


def list_remote_folder(path: str) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: the storage doesn't answer, or refuses.
    """
    system, name = _locate(path)
    fs = import_arrow("fs")
    with _Failures(path):
        return [
            (entry.base_name, entry.type == fs.FileType.Directory)
            for entry in system.get_file_info(fs.FileSelector(name))
        ]


def read_remote_bytes(path: str) -> bytes:
    """Read a whole file.

    Raises:
        ImageError: it is missing, or has more than `MAX_FILE_BYTES`.
        StorageError: the storage doesn't answer, or refuses, after several attempts. In the results, that would look
            like an error of the image.
    """
    system, name = _locate(path)
    try:
        with _Failures(path), system.open_input_file(name) as file:
            if file.size() > MAX_FILE_BYTES:
                raise ImageError(f"the file has more than {MAX_FILE_BYTES} bytes, the limit")
            return bytes(file.read())
    except FileNotFoundError:
        raise ImageError("no such file or directory") from None


class _Failures:
    """Turns errors of a storage, but for missing files, into one line."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError | ValueError) and not isinstance(error, FileNotFoundError):
            reason = str(error).partition("; Details:")[0]
            raise StorageError(f"{self._path}: can't be read from the storage: {reason}") from None


def _locate(path: str) -> tuple[Any, str]:
    """The file system of a path, and the name there."""
    scheme = next(scheme for scheme in SCHEMES if path.startswith(scheme))
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
