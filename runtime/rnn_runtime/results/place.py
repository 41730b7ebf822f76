"""Image files put into a folder per predicted class."""

import filecmp
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rnn_runtime.errors import InputError, OutputError
from rnn_runtime.files.remote import is_remote
from rnn_runtime.images.find import class_folders

_MOST_NAMES = 1 << 16  # whose numbers are remembered; without, they are looked for again


class ImagePlacer:
    """Copies or links image files into `folder/class/`, and never replaces a file.

    An image whose name is taken by another one gets a number: `x-2.png`. One that is there already, from an earlier
    run, is left alone.

    Args:
        folder: The folder that gets a folder per class, named as `FolderEvaluation` reads them (`class_folders`).
            They are made when the first image of a class is placed.
        class_names: The classes.
        link: Make symbolic links to the absolute paths of the images, instead of copies.

    Raises:
        InputError: two classes would share a folder.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str], *, link: bool = False) -> None:
        self.folder, self._link = Path(folder), link
        self._class_folders = dict(zip(class_names, class_folders(class_names), strict=True))
        self._root = os.path.join(os.path.realpath(folder), "")
        self._asked: str | None = None
        self._inside = False
        self._names: dict[Path, _Numbers] = {}  # of names that several images have

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
        if is_remote(path):
            raise OutputError(f"{path}: in object storage, and only files of this machine can be copied or linked")
        target = self.folder / self._class_folders[label] / os.path.basename(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not self._put(path, target):
                self._place_numbered(path, target)
        except OSError as error:
            raise OutputError(f"{target}: can't be written: {error.strerror or error}") from None

    def _place_numbered(self, path: str, target: Path) -> None:
        """Find the image among those of its name from before this run, or give it the next number."""
        if len(self._names) == _MOST_NAMES:
            self._names.clear()
        numbers = self._names.setdefault(target, _Numbers())
        for number in numbers.candidates():
            numbered = _numbered(target, number)
            if self._is_same(path, numbered):
                numbers.found = number
                return
            if not os.path.lexists(numbered) and number != numbers.found + 1:
                break
        number = next(number for number in itertools.count(numbers.next) if self._put(path, _numbered(target, number)))
        numbers.first, numbers.next = numbers.first or number, number + 1

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


@dataclass(slots=True)
class _Numbers:
    """The numbers of images that share a name.

    A run that is repeated meets its images in the same order, so the number after the one found last is tried first.
    """

    found: int = 0  # the last one that was there before this run
    first: int = 0  # the first one that this run gave
    next: int = 2  # the next one to give

    def candidates(self) -> Iterator[int]:
        """The numbers that an image may have from before this run; the likeliest one first."""
        likeliest = self.found + 1
        if not self.first or likeliest < self.first:
            yield likeliest
        others = range(1, self.first) if self.first else itertools.count(1)
        yield from (number for number in others if number != likeliest)


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
