"""Folders of images: which hold the splits of a data set, and which the classes in each."""

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rnn_runtime.errors import DataError, InputError
from rnn_runtime.files.kinds import IMAGE_SUFFIXES
from rnn_runtime.images.find import find_images

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_MISNAMED = {"training": "train", "testing": "test"}
_NAMES_SHOWN = 5  # in a message


@dataclass(frozen=True, slots=True)
class SplitFolder:
    """A folder whose folders are classes, and the image files of each, both sorted by name."""

    path: Path
    files: Mapping[str, list[str]]


def find_splits(folder: Path) -> tuple[dict[str, SplitFolder], list[str]]:
    """Find the splits `train`, `validation` and `test` in a folder; without a folder `train`, all of it is `train`.

    Args:
        folder: Holds `train/`, perhaps `val/` (or `valid/`, `validation/`) and `test/`, and these the classes' folders;
            or it holds the classes' folders itself.

    Returns:
        The splits that are there, `train` always, and sentences about what was left out or is missing.

    Raises:
        DataError: folders are misnamed or can't be listed, hold no images, their classes don't fit each other, or a
            class folder is a link by which images would be in several classes.
    """
    names = _folder_names(folder)
    _check_split_names(folder, names)
    notes = []
    if "train" in names:
        paths = {_SPLITS[name]: folder / name for name in names if name in _SPLITS}
        paths = {split: paths[split] for split in ("train", "validation", "test") if split in paths}
        notes += [f"{folder / name}: left out, neither train, val nor test" for name in names if name not in _SPLITS]
    else:
        paths = {"train": folder}
        odd = [name for name in names if _meant_by(name) is not None]
        notes += [f"{folder / name}: used as a class, though it is named like a split of the data" for name in odd]
    _check_links(folder, [path / name for path in paths.values() for name in _folder_names(path)])
    splits = {split: SplitFolder(path, list_classes(path)) for split, path in paths.items()}
    _check_classes(splits)
    for path in dict.fromkeys([folder, *paths.values()]):
        if loose := _image_names(path):
            more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
            notes.append(f"{path}: left out, because not in a class folder: {loose[0]}{more}")
    return splits, notes


def list_classes(folder: Path) -> dict[str, list[str]]:
    """The image files of each class folder, both sorted by name.

    Args:
        folder: Its folders are the classes; images in their subfolders count too. Hidden ones are left out.

    Raises:
        DataError: there is no class folder, or one without images.
    """
    names = _folder_names(folder)
    if not names and _image_names(folder):
        raise DataError(
            f"{folder}: images, but no class folders. Move the images of each class into a folder named after it, "
            f"such as {folder / 'cat'}"
        )
    if not names:
        raise DataError(f"{folder}: no folders in it. It needs one folder of images per class")
    try:
        return {name: list(find_images([str(folder / name)], recursive=True)) for name in names}
    except InputError as error:
        raise DataError(f"{error}. Each class needs images: add some, or remove the folder") from None


def name_classes(names: Iterable[str]) -> str:
    """For people: `the class 'ant'`, or `the classes 'ant', 'bee' and 'cat'`, the first few of many."""
    ordered = [repr(name) for name in names]
    if len(ordered) == 1:
        return f"the class {ordered[0]}"
    if len(ordered) > _NAMES_SHOWN:
        ordered[_NAMES_SHOWN - 1 :] = [f"{len(ordered) - _NAMES_SHOWN + 1} more"]
    return f"the classes {', '.join(ordered[:-1])} and {ordered[-1]}"


def _check_split_names(folder: Path, names: list[str]) -> None:
    """Refuse what looks like splits but would be taken for classes, or left out."""
    meant = {name: split for name in names if (split := _meant_by(name)) is not None}
    misnamed = [f"{name} to {split}" for name, split in meant.items() if name != split]
    if "train" in names:
        if misnamed:
            raise DataError(f"{folder}: rename {' and '.join(misnamed)}, as beside train")
        if len(validation := [name for name in names if _SPLITS.get(name) == "validation"]) > 1:
            raise DataError(f"{folder}: {' and '.join(validation)} are all for validation. Keep one of them")
        return
    if meant and len(meant) == len(names):
        problem = f"{folder}: {' and '.join(meant)} would be classes, and look like splits"
        if misnamed:
            raise DataError(f"{problem}. Rename {' and '.join(misnamed)}")
        raise DataError(f"{problem}, but there is no train beside them. Add it, with a folder of images per class")
    for name in meant:
        if repeated := set(_folder_names(folder / name)) & set(names):
            raise DataError(
                f"{folder / name}: holds a folder {min(repeated)}, and so does {folder}. Move the folders of training "
                f"images into {folder / 'train'}, or move {name} elsewhere"
            )


def _check_links(folder: Path, class_folders: list[Path]) -> None:
    """Refuse class folders that are links to other class folders, to folders in them, or to what holds them all."""
    links = {path for path in class_folders if path.is_symlink()}
    if not links:
        return
    remedy = "so its images would be in several classes or splits. Remove the link"
    places = sorted((os.path.join(os.path.realpath(path), ""), path not in links, path) for path in class_folders)
    for place, _, path in places:
        if os.path.join(os.path.realpath(folder), "").startswith(place):
            raise DataError(f"{path}: a link to {place}, which holds all the data, {remedy}")
    # A folder's subfolders follow it, since all these names end with a slash.
    for (outer, _, one), (inner, _, other) in itertools.pairwise(places):
        if inner.startswith(outer) and not links.isdisjoint((one, other)):
            link, target = (one, other) if one in links else (other, one)
            raise DataError(f"{link}: a link to images of {target}, {remedy}")


def _meant_by(name: str) -> str | None:
    """The name that a split's folder should have, for `Train`, `training` and the like."""
    lower = name.lower()
    return lower if lower in _SPLITS else _MISNAMED.get(lower)


def _check_classes(splits: Mapping[str, SplitFolder]) -> None:
    train = splits["train"]
    if len(train.files) < 2:
        (name,) = train.files
        hint = ""
        if len(_folder_names(train.path / name)) > 1:
            hint = f". Did you mean `data={str(train.path / name)!r}`?"
        raise DataError(f"{train.path}: only one class folder, {name!r}; a classifier needs two or more{hint}")
    for split, found in splits.items():
        _check_trained(split, found, train)


def _check_trained(split: str, found: SplitFolder, train: SplitFolder) -> None:
    unknown = [name for name in found.files if name not in train.files]
    alike = {name.lower(): name for name in train.files}
    for name in unknown:
        if name.lower() in alike:
            raise DataError(
                f"{found.path / name}: this class is {alike[name.lower()]!r} in {train.path}. Give both the same name"
            )
    if unknown:
        raise DataError(
            f"{found.path}: {split} images, but no training images, for {name_classes(unknown)}. "
            f"Add some to {train.path}, or remove these images"
        )


def _folder_names(folder: Path) -> list[str]:
    """The folders in a folder, and links to folders, sorted; hidden ones are left out.

    Raises:
        DataError: it can't be listed.
    """
    try:
        with os.scandir(folder) as entries:
            # os.path.isdir: the entry's own is_dir raises for a link that leads to itself
            return sorted(entry.name for entry in entries if entry.name[0] != "." and os.path.isdir(entry.path))
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror}. It must be a folder with one folder of images per class"
        ) from None


def _image_names(folder: Path) -> list[str]:
    """The image files that lie directly in a folder that could be listed, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and not os.path.isdir(entry.path)]
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
