"""From the paths that a user names to the image files they mean, sorted, without holding them all."""

import glob
import heapq
import itertools
import os
from collections.abc import Iterable, Iterator

from rnn_runtime.decode import IMAGE_SUFFIXES
from rnn_runtime.errors import InputError


def find_images(paths: Iterable[str], *, recursive: bool = False) -> Iterator[str]:
    """Find the image files that files, folders and glob patterns name.

    Args:
        paths: Files (taken whatever their ending, even if they don't exist: reading them will tell),
            folders (their files with an image's ending, hidden ones left out) and glob patterns
            (`**` goes through folders; a folder that a pattern matches counts as a folder).
        recursive: Go into the folders' folders too. Links to folders are not followed.

    Returns:
        Paths in sorted order, each once, found while they are read: of a folder tree, memory holds the
        names of one folder at a time.

    Raises:
        InputError: a folder or pattern can't be read or matches nothing.
    """
    files, sources = set(), []
    for path in dict.fromkeys(paths):
        if os.path.isdir(path):
            sources.append(_search_folder(path, recursive))
        # a file may be named like a pattern, so a file that exists wins
        elif glob.has_magic(path) and not os.path.lexists(path):
            sources.append(_search_pattern(path, recursive))
        else:
            files.add(path)
    return _without_repeats(heapq.merge(sorted(files), *sources))


def _search_folder(folder: str, recursive: bool) -> Iterator[str]:
    found = _walk(folder, recursive)
    first = next(found, None)
    if first is None:
        hint = "" if recursive else "; add --recursive to search its folders too"
        raise InputError(f"{folder}: no image files in this folder{hint}")
    return itertools.chain([first], found)


def _search_pattern(pattern: str, recursive: bool) -> Iterator[str]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise InputError(f"{pattern}: no file matches this pattern")
    parts = [_walk(match, recursive) if os.path.isdir(match) else iter([match]) for match in matches]
    return heapq.merge(*parts)


def _without_repeats(ordered: Iterable[str]) -> Iterator[str]:
    for path, _ in itertools.groupby(ordered):
        yield path


def _walk(folder: str, recursive: bool) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            # A folder sorts as what its files' paths begin with, "name/", so that the order is that of whole paths.
            names = sorted(
                entry.name + os.sep if recursive and entry.is_dir(follow_symlinks=False) else entry.name
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        raise InputError(f"{folder}: can't list this folder: {error.strerror}") from None
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith(os.sep):
            yield from _walk(path.removesuffix(os.sep), recursive)
        elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            yield path
