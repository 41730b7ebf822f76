"""Image files put into a folder per predicted class."""

import filecmp
import os
import re
import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path

from rnn_runtime.errors import OutputError

_UNSAFE = re.compile(r"[/\\%\x00-\x1f\x7f]|^\.+$|^$")


class ImagePlacer:
    """Copies or links image files into `folder/class/`, and never replaces a file.

    An image whose name is taken by another one gets a number: `x-2.png`. One that is there already, from an earlier
    run, is left alone.

    Args:
        folder: The folder that gets a folder per class. It is made when the first image is placed.
        link: Make symbolic links to the absolute paths of the images, instead of copies.
    """

    def __init__(self, folder: str | Path, *, link: bool = False) -> None:
        self.folder, self._link = Path(folder), link
        self._root = os.path.join(os.path.realpath(folder), "")
        self._taken: Counter[Path] = Counter()  # the numbers of a name, from 1, that other images of this run have

    def contains(self, path: str) -> bool:
        """Whether an image is in the folder already, and so is a result and no input."""
        return os.path.join(_real_folder(os.path.dirname(path)), "").startswith(self._root)

    def place(self, path: str, label: str) -> None:
        """Put an image into the folder of its class.

        Raises:
            OutputError: it can't be copied or linked.
        """
        target = self.folder / class_folder(label) / os.path.basename(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            number = self._taken[target] + 1
            while not self._put(path, numbered := _numbered(target, number)):
                if self._is_same(path, numbered):
                    return
                number += 1
            if number > 1 and number == self._taken[target] + 1:
                self._taken[target] = number
        except OSError as error:
            raise OutputError(f"{target}: can't be written: {error.strerror or error}") from None

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


def class_folder(label: str) -> str:
    """The name of the folder of a class: its own, with what a file system doesn't take as `%2F`."""
    return _UNSAFE.sub(lambda found: "".join(f"%{ord(letter):02X}" for letter in found[0]) or "%", label)


def _numbered(target: Path, number: int) -> Path:
    return target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")


def _copy(path: str, target: Path) -> None:
    temporary = target.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        shutil.copy2(path, temporary)
        try:
            os.link(temporary, target)  # unlike a renaming, it doesn't replace what has the name
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder or ".")
