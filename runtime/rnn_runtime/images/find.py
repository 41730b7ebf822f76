"""Find the image files that paths, folders and patterns stand for, and the classes that folders stand for."""

import contextlib
import glob
import heapq
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, TextIO, cast

from rnn_runtime.errors import Argument, InputError
from rnn_runtime.files.atomic import HEIF_SUFFIXES, IMAGE_SUFFIXES, INSTALL_HEIF, REMOTE
from rnn_runtime.files.remote import is_remote_folder, list_remote_folder
from rnn_runtime.text import count_of

_UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")  # its marks, as they are read


# What systems put into folders: network storage, Windows, Linux, macOS, Jupyter. (Hidden names are left out anyway.)
_OF_SYSTEMS = frozenset({"@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_OF_SYSTEMS |= {"__MACOSX", "Thumbs.db", "desktop.ini"}
_SHOWN = 5  # kinds of files in a sentence


class IgnoredFiles(Counter[str]):
    """How many files of folders were left out, since they have no image's suffix, by suffix; empty for none."""

    def describe(self) -> str | None:
        """For people: `ignored 11 files: 3 .heic, 6 without an extension, 2 .psd`; None if there were none."""
        if not self:
            return None
        frequent = sorted(self.items(), key=lambda kind: (-kind[1], kind[0]))[:_SHOWN]
        kinds = [f"{count:,} {suffix or 'without an extension'}" for suffix, count in frequent]
        if more := self.total() - sum(count for _, count in frequent):
            kinds.append(f"{more:,} others")
        said = f"ignored {count_of(self.total(), 'file')}: {', '.join(kinds)}"
        heif = sorted(self.keys() & HEIF_SUFFIXES)
        return f"{said}. To read {' and '.join(heif)}: {INSTALL_HEIF}" if heif else said


def find_images(
    paths: Iterable[str],
    *,
    recursive: bool = False,
    literal: Iterable[str] = (),
    ignored: IgnoredFiles | None = None,
) -> Iterator[str]:
    """Find the image files that paths, folders and glob patterns stand for.

    Args:
        paths: Files (with any suffix, and even if they don't exist: reading them reports it), folders (their files with
            an image's suffix, except hidden ones) and glob patterns (`**` goes through subfolders; a folder that
            matches counts as a folder). `s3://bucket/name` and `gs://bucket/name` are files or folders in object
            storage, without patterns.
        recursive: Search subfolders too. A symbolic link to a folder is searched if it lies directly in one of `paths`
            and leads out of it, as the folder of a class may in training. Others are skipped.
        literal: More files and folders, whose names are never patterns. Those in object storage are files.
        ignored: Counts the files of folders that have no image's suffix, until the last path was drawn.

    Returns:
        Paths in sorted order, each once, found lazily: memory holds the names of one folder at a time, and of those
        above it. A subfolder that can't be listed is included, with a slash at its end: reading it reports why.

    Raises:
        InputError: `paths` is a single text, a folder can't be listed, or a folder or pattern has no images.
        StorageError: Object storage doesn't answer, or refuses.
        MissingPackageError: Object storage is named, and pyarrow isn't installed.
    """
    if isinstance(paths, str):  # each of its letters would be a path
        raise InputError(Argument("paths"), " is a single text. Put it into a list")
    ignored = IgnoredFiles() if ignored is None else ignored
    files, sources = set(), []
    patterns = frozenset(paths)
    for path in dict.fromkeys(itertools.chain(sorted(patterns), literal)):
        if path.startswith(REMOTE):
            if path in patterns and is_remote_folder(path):
                sources.append(_search_folder(path, recursive, ignored))
            else:
                files.add(path)
        elif os.path.isdir(path):
            sources.append(_search_folder(path, recursive, ignored))
        # a file may be named like a pattern, so an existing file wins
        elif path in patterns and glob.has_magic(path) and not os.path.lexists(path):
            sources.append(_search_pattern(path, recursive, ignored))
        else:
            files.add(path)
    return (path for path, _ in itertools.groupby(heapq.merge(sorted(files), *sources)))


def read_names(file: TextIO | None, *, null: bool = False) -> Iterator[str]:
    """Read file names from a list, such as standard input.

    Args:
        file: A text file over bytes. Names may contain bytes that aren't UTF-8, and carriage returns.
        null: Names end with a null character, as `find -print0` writes them, instead of a newline.

    Raises:
        InputError: The file is closed, it is in UTF-16, or names end with null characters and `null` is False.
    """
    if file is None:
        raise InputError("-: there is no standard input, it is closed")
    # as file names are, whatever encoding standard input has
    cast(Any, file).reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape", newline="\n")
    end, rest = "\0" if null else "\n", ""
    start = file.read(1 << 16).removeprefix("\ufeff")  # Windows writes this mark at the beginning
    if start.startswith(_UTF_16):
        raise InputError("-: the list of names is in UTF-16. Save it as UTF-8")
    while text := start or file.read(1 << 16):
        start = ""
        if not null and "\0" in text:
            problem = "-: the names end with null characters, as find -print0 writes them. Add "
            raise InputError(problem, Argument("null", True))
        *names, rest = (rest + text).split(end)
        yield from filter(None, (name if null else name.removesuffix("\r") for name in names))
    yield from filter(None, [rest])


def _search_folder(folder: str, recursive: bool, ignored: IgnoredFiles) -> Iterator[str]:
    try:
        found = _walk(_list(folder, recursive, ignored, links=True), recursive, ignored)
    except OSError as error:
        raise InputError(f"{folder}: can't list this folder: {error.strerror}") from error
    first = next(found, None)
    if first is None:
        problem = f"{folder}: no image files in this folder"
        if recursive:
            raise InputError(problem)
        raise InputError(f"{problem}. Add ", Argument("recursive", True), " to search subfolders too")
    return itertools.chain([first], found)


def _search_pattern(pattern: str, recursive: bool, ignored: IgnoredFiles) -> Iterator[str]:
    matches = sorted(set(_expand(_without_names(pattern))))
    if not matches:
        raise InputError(f"{pattern}: no file matches this pattern")
    found = (os.path.join(match, "") if os.path.isdir(match) else match for match in matches)
    return heapq.merge(*(_walk(iter([path]), recursive, ignored) for path in found))


def _without_names(pattern: str) -> str:
    """A pattern whose first folders are names, if they exist as they are typed: `photos [2024]/*.png`."""
    parts = pattern.split(os.sep)
    for i in range(len(parts) - 1, 0, -1):
        folder = os.sep.join(parts[:i])
        if os.path.isdir(folder):
            return os.sep.join([glob.escape(folder), *parts[i:]])
    return pattern


def _expand(pattern: str) -> Iterator[str]:
    """Like `glob.glob`, whose `**` follows links to folders: two links that lead back to their parents never end."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    before, behind = os.sep.join([*parts[:at], ""]), os.sep.join(parts[at + 1 :])
    for root in glob.glob(before) if before else [""]:
        for folder in _folders(root):
            if behind:
                yield from _expand(glob.escape(folder) + behind)
            else:
                yield from [folder] if folder else _list(folder, recursive=False, ignored=IgnoredFiles())


def _folders(root: str) -> Iterator[str]:
    """A folder and its subfolders without hidden ones and links, as prefixes of paths: `""` or `name/`."""
    waiting = [root]
    while waiting:
        yield (folder := waiting.pop())
        with contextlib.suppress(OSError):
            listed = _list(folder, recursive=True, ignored=IgnoredFiles())
            waiting += [path for path in listed if path.endswith(os.sep)]


def _walk(paths: Iterator[str], recursive: bool, ignored: IgnoredFiles) -> Iterator[str]:
    """The files among paths, and the files in folders among them. Folders have a slash at their end."""
    levels = [paths]
    while levels:
        path = next(levels[-1], None)
        if path is None:
            levels.pop()
        elif not path.endswith(os.sep):
            yield path
        else:
            try:
                levels.append(_list(path, recursive, ignored))
            except OSError:
                yield path


def _list(folder: str, recursive: bool, ignored: IgnoredFiles, *, links: bool = False) -> Iterator[str]:
    """The images in a folder, and with `recursive` its subfolders, sorted; with `links`, those that are links, too.

    Folders have a slash at their end, so that they sort like the paths of their files.
    """
    names = []
    for name, is_folder in list_remote_folder(folder) if folder.startswith(REMOTE) else _entries(folder, links):
        if name.startswith(".") or name in _OF_SYSTEMS:
            continue
        suffix = os.path.splitext(name)[1].lower()
        if is_folder:
            names += [name + os.sep] if recursive else []
        elif suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and _has_heif()):
            names.append(name)
        else:
            ignored[suffix] += 1
    return (os.path.join(folder, name) for name in sorted(names))


@cache
def _has_heif() -> bool:
    return find_spec("pillow_heif") is not None


def _entries(folder: str, links: bool) -> Iterator[tuple[str, bool]]:
    """The names in a folder on disk, and whether each is a folder.

    Links to folders are left out; with `links`, only those that lead to what is searched anyway.
    """
    with os.scandir(folder or os.curdir) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or not entry.is_symlink() or not os.path.isdir(entry.path):
                yield entry.name, is_folder
            elif links and not _overlap(os.path.realpath(entry.path), os.path.realpath(folder)):
                yield entry.name, True


def _overlap(one: str, other: str) -> bool:
    """Whether one of two real paths is the other, or in it."""
    one, other = os.path.join(one, ""), os.path.join(other, "")
    return one.startswith(other) or other.startswith(one)


def is_of_system(name: str) -> bool:
    """Whether a system makes files or folders of this name, such as `@eaDir`."""
    return name in _OF_SYSTEMS


def without_pattern(path: str) -> str:
    """The folder that a pattern begins in; another path as it is."""
    while glob.has_magic(path) and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def class_folders(class_names: Sequence[str]) -> list[str]:
    """The folder name of each class: the class name with path separators and a leading dot replaced by `_`.

    Raises:
        InputError: Two classes would share a folder.
    """
    folders = [re.sub(r"^\.|[/\\\0]", "_", name) for name in class_names]
    for i, folder in enumerate(folders):
        if (first := folders.index(folder)) != i:
            raise InputError(
                f"the classes {class_names[first]!r} and {class_names[i]!r} would share the folder {folder!r}"
            )
    return folders
