"""Image files put into a folder per predicted class."""

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rnn_runtime.errors import InputError, OutputError
from rnn_runtime.files.atomic import REMOTE, followed
from rnn_runtime.images.find import class_folders
from rnn_runtime.text import shorten

_LONGEST_NAME = 255  # bytes of a file's name
_SHOWN = 60  # characters of a class name in an error
_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")  # a terminal would act on them
_DIGITS = 16  # of the SHA-256 in the name of a second image


class ImagePlacer:
    """Copies or links image files into `folder/class/`, and never replaces a file.

    An image whose name is taken by another one gets a part of its SHA-256: `x-61b30d08661f3c9e.png`. One that is there
    already, from an earlier run, is left alone.

    Args:
        folder: The folder that gets a folder per class, named as `FolderEvaluation` reads them (`class_folders`).
            They are made when the first image of a class is placed.
        class_names: The classes.
        link: Make symbolic links to the absolute paths of the images, instead of copies.

    Raises:
        InputError: two classes would share a folder, or a class's name can't be that of a folder.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str], *, link: bool = False) -> None:
        self.folder, self._link = Path(folder), link
        self._class_folders = dict(zip(class_names, class_folders(class_names), strict=True))
        for name, of_class in self._class_folders.items():
            if _CONTROL.search(of_class) or len(os.fsencode(of_class)) > _LONGEST_NAME:
                what = (
                    "has control characters" if _CONTROL.search(of_class) else f"is longer than {_LONGEST_NAME} bytes"
                )
                raise InputError(f"the class {shorten(repr(name), _SHOWN)} {what}, so no folder can have its name")
        self._root = os.path.join(os.path.realpath(folder), "")
        self._asked: str | None = None
        self._inside = False

    def contains(self, path: str) -> bool:
        """Whether an image is in the folder already, and so is a result and no input."""
        folder = os.path.dirname(path)
        if folder != self._asked:  # images of one folder come one after another
            self._asked, self._inside = folder, os.path.join(os.path.realpath(folder), "").startswith(self._root)
        return self._inside

    def check_inputs(self, paths: Iterable[str]) -> None:
        """Check that no image or folder to classify is the folder itself or inside it.

        Raises:
            InputError: one is.
        """
        for path in paths:
            if self.contains(os.path.join(path, "") if os.path.isdir(path) else path):
                raise InputError(
                    f"{path}: inside {self.folder}, where images are put, so it isn't classified. Choose another folder"
                )

    def place(self, path: str, label: str) -> None:
        """Put an image into the folder of its class.

        Raises:
            OutputError: it can't be copied or linked.
        """
        if path.startswith(REMOTE):
            raise OutputError(f"{path}: in object storage, and only files of this machine can be copied or linked")
        target = self.folder / self._class_folders[label] / os.path.basename(path)
        try:
            followed(target.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not self._put(path, target) and not self._is_same(path, target):
                self._put(path, target.with_name(f"{target.stem}-{self._digest(path)}{target.suffix}"))
        except OSError as error:
            raise OutputError(f"{target}: can't be written: {error.strerror or error}") from None

    def _digest(self, path: str) -> str:
        """What a second image of a name is called by, so that a run that is repeated finds it there."""
        if self._link:
            return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:_DIGITS]
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]

    def _put(self, path: str, target: Path) -> bool:
        """Whether the name was free, and the image has it now."""
        if os.path.lexists(target):
            return False
        try:
            if self._link:
                target.symlink_to(os.path.abspath(path))
            else:
                _copy(path, target)
        except FileExistsError:  # another process was quicker
            return False
        return True

    def _is_same(self, path: str, target: Path) -> bool:
        if self._link:
            return target.is_symlink() and os.readlink(target) == os.path.abspath(path)
        return target.is_file() and not target.is_symlink() and filecmp.cmp(path, target, shallow=False)


def _copy(path: str, target: Path) -> None:
    temporary = target.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        shutil.copyfile(path, temporary)
        with suppress(OSError):  # modes and times, which some network shares refuse
            shutil.copystat(path, temporary)
        try:
            os.link(temporary, target)  # unlike a renaming, it doesn't replace what has the name
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
