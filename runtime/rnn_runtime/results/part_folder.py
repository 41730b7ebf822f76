"""The folder that holds the parts of shards: on a disk, or in object storage."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rnn_runtime.errors import InputError
from rnn_runtime.files.remote import SCHEMES, download, is_remote, list_remote_folder, upload


class PartFolder:
    """Where parts are written, and read to be merged.

    In object storage, a part is written on this machine first, into the folder for temporary files, and read from
    there.

    Args:
        path: A folder, or as text, the name of one in object storage: `s3://bucket/folder` or `gs://bucket/folder`.

    Raises:
        InputError: `path` is a `Path` of object storage. It has lost one of the two slashes.
    """

    def __init__(self, path: str | Path) -> None:
        self._remote = isinstance(path, str) and is_remote(path)
        if isinstance(path, Path) and path.parts and f"{path.parts[0]}//" in SCHEMES:
            raise InputError(f"{path}: a folder in object storage is given as text, not as a Path")
        self._path = str(path).rstrip("/") if self._remote else str(path)

    def __str__(self) -> str:
        return self._path

    def locate(self, name: str) -> str:
        """The path of a part."""
        return f"{self._path}/{name}" if self._remote else os.path.join(self._path, name)

    def names(self, *, missing_ok: bool = False) -> set[str]:
        """The files in the folder.

        Args:
            missing_ok: If the folder is missing, there are none.

        Raises:
            InputError: it can't be listed.
            StorageError: the storage doesn't answer, or refuses.
        """
        try:
            if self._remote:
                return {name for name, is_folder in list_remote_folder(self._path) if not is_folder}
            return set(os.listdir(self._path))
        except OSError as error:
            if missing_ok and isinstance(error, FileNotFoundError):
                return set()
            reason = os.strerror(error.errno) if error.errno else "no such folder"
            raise InputError(f"{self}: can't list this folder: {reason}") from None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The path to write a part to. It is in the folder at the end of the block.

        Raises:
            StorageError: the storage doesn't answer, or refuses.
            OSError: the folder can't be created.
        """
        if not self._remote:
            os.makedirs(self._path, exist_ok=True)
            yield Path(self._path) / name
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / name
            upload(Path(folder) / name, self.locate(name))

    @contextmanager
    def reading(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """Paths to read parts from, until the end of the block.

        Raises:
            InputError: a part is gone.
            StorageError: the storage doesn't answer, or refuses.
            OSError: the disk is full.
        """
        if not self._remote:
            yield [Path(self._path) / name for name in names]
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                try:
                    download(self.locate(name), Path(folder) / name)
                except FileNotFoundError:
                    raise InputError(f"{self.locate(name)}: is no longer there. Run its shard again") from None
            yield [Path(folder) / name for name in names]
