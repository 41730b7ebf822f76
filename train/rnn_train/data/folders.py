"""Data sets as image files, in a folder per class or with a table of labels: finding, decoding and writing them."""

import contextlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.cores import default_threads
from rnn_runtime.errors import Argument, DataError, ImageError, InputError, SettingsError
from rnn_runtime.files.atomic import IMAGE_SUFFIXES, atomic_write
from rnn_runtime.images.ahead import read_each
from rnn_runtime.images.decode import Decoded, decode_image, deep_values, image_shape, read_bytes
from rnn_runtime.images.find import IgnoredFiles, class_folders, find_images, is_of_system
from rnn_runtime.images.fit import to_image
from rnn_runtime.images.labels import read_labels
from rnn_runtime.interruption import signals_noted, stop_if_signaled
from rnn_runtime.model.spec import DepthRange, ImageSpec
from rnn_runtime.text import count_of
from rnn_train.data.looks import find_background, look_at, suggest_fit
from rnn_train.data.source import Data, DataSource, LabeledImages, new_images

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_MISNAMED = {"training": "train", "testing": "test"}
_FILES_PER_BATCH = 32  # a few batches at a time are decoded and not yet in the array
_OUTLIERS = 0.001  # share of an image's pixels, at either end
_ODD_SHAPES = 0.005  # share of the images whose aspect ratio counts as odd, at either end
_NAMES_SHOWN = 5  # in a message


@dataclass(frozen=True, slots=True)
class SplitFolder:
    """A folder, and the image files of each class in it, both sorted by name."""

    path: Path
    files: Mapping[str, list[str]]


def load_image_files(folder: Path, source: DataSource) -> Data:
    """Load `train/<class>/*`, and where there are any `val/<class>/*` and `test/<class>/*`; or `<class>/*` to train on.

    With `source.labels`, files may be anywhere in these folders, and the table says their classes.

    Raises:
        DataError: a row of the table can't be used, there are fewer than two classes, a class has no images or no
            training images, images can't be decoded, or differ in size without `image_size`, or there are both val/ and
            `val_split`.
    """
    if source.class_names is not None or source.dataset is not None:
        raise DataError(
            f"{folder}: no IDX files here, and image files have classes with names. Leave out ",
            Argument("dataset"),
            " and ",
            Argument("class_names"),
        )
    splits, notes = find_splits(folder) if source.labels is None else find_labeled(folder, Path(source.labels))
    if source.val_split and "validation" in splits:
        raise DataError(
            f"{splits['validation'].path}: holds the validation images already. Leave out ", Argument("val_split")
        )
    class_names = tuple(splits["train"].files)
    paths = {split: [path for files in found.files.values() for path in files] for split, found in splits.items()}
    depth_range = source.fixed_depth_range
    if source.depth_range == "auto":
        depth_range = find_depth_range(paths["train"])
        notes.append(_describe_depth(depth_range))
    background = source.fixed_background
    if background is None or source.fit is None:
        looks = look_at(paths["train"], depth_range)
        background = background or find_background(looks)
        if source.fit is None and (suggestion := suggest_fit(looks, source.image_size)):
            notes.append(suggestion)
    fit = source.chosen_fit
    pixels, aspect_ratios, errors = load_images(
        list(itertools.chain(*paths.values())),
        source.image_size,
        1 if fit == "glyph" else source.channels,
        partial(ImageSpec, depth_range=depth_range, fit=fit, background=background),
        skip_unreadable=source.skip_unreadable,
    )
    images, start = {}, 0
    for split, found in splits.items():
        labels = np.repeat([class_names.index(name) for name in found.files], [*map(len, found.files.values())])
        unreadable = {row - start: text for row, text in errors.items() if 0 <= row - start < len(labels)}
        kept = np.delete(labels, list(unreadable))
        if lost := set(labels) - set(kept):
            row = int(np.flatnonzero(labels == min(lost))[0])
            raise DataError(
                f"{found.path}: of the class {class_names[min(lost)]!r}, no image can be decoded, the first: "
                f"{paths[split][row]}: {unreadable[row]}"
            )
        kept_paths = tuple(path for i, path in enumerate(paths[split]) if i not in unreadable)
        images[split] = LabeledImages(pixels[: len(kept)], kept, kept_paths)
        pixels, start = pixels[len(kept) :], start + len(labels)
        if unreadable:
            first = min(unreadable)
            notes.append(
                f"Left out {len(unreadable)} of {len(labels)} images that can't be decoded, the first: "
                f"{paths[split][first]}: {unreadable[first]}"
            )
    return Data(
        images["train"],
        images.get("validation"),
        images.get("test"),
        class_names,
        tuple(notes),
        depth_range,
        fit,
        background,
        _usual(aspect_ratios[: len(images["train"])]),
    )


def _usual(aspect_ratios: NDArray[np.float64]) -> tuple[float, float]:
    """From the least to the largest, without half a percent at either end."""
    least, most = np.quantile(aspect_ratios, (_ODD_SHAPES, 1 - _ODD_SHAPES))
    return float(least), float(most)


def load_images(
    paths: Sequence[str],
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    make_spec: Callable[[int, int, int], ImageSpec] = ImageSpec,
    *,
    skip_unreadable: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.float64], dict[int, str]]:
    """Decode images, exactly as the runtime does. Each file is read once, the first gray ones of color images twice.

    Args:
        paths: The files.
        image_size: `(height, width)` to resize them to; None if they all have the same size.
        channels: 1 or 3; None for 3 if any image is in color, else 1.
        make_spec: Makes the spec that they are read by, of height, width and channels.
        skip_unreadable: Leave out files that can't be decoded, instead of raising.

    Returns:
        The images that could be read, uint8 `(images, height, width, channels)`; width / height of each before it was
        resized, shape `(images,)`; and the errors of the other files, by index in `paths`.

    Raises:
        DataError: a file can't be decoded, or the images differ in size and there is no `image_size`.
    """
    read = partial(_read, size=image_size, channels=channels, make_spec=make_spec)
    images = new_images(len(paths), (*image_size, channels)) if image_size and channels else None
    aspect_ratios = np.empty(len(paths))
    errors: dict[int, str] = {}
    first, kept = "", 0
    results = read_each(read, paths, batch_size=_FILES_PER_BATCH, threads=default_threads())
    for row, (path, decoded) in enumerate(results):
        if isinstance(decoded, ImageError):
            errors[row] = str(decoded)
            continue
        image = decoded.pixels
        if channels is None and image.shape[2] == 3:  # gray ones, too, are read as the model will read them
            results.close()
            return load_images(paths, image_size, 3, make_spec, skip_unreadable=skip_unreadable)
        if images is None:
            images = new_images(len(paths), image.shape)
        first = first or path
        (height, width), size = images.shape[1:3], image.shape[:2]
        if size != (height, width):
            raise DataError(
                f"images differ in size, {height}x{width} in {first} and {size[0]}x{size[1]} in {path}. "
                "Resize them with ",
                Argument("image_size"),
            )
        images[kept] = image
        aspect_ratios[kept] = decoded.aspect_ratio or width / height
        kept += 1
    if errors and not skip_unreadable:
        row = min(errors)
        raise DataError(
            f"{len(errors)} of {len(paths)} images can't be read, the first: {paths[row]}: {errors[row]}. "
            "Repair or remove them, or set ",
            Argument("skip_unreadable", True),
        )
    if images is None:
        raise DataError(f"{paths[0]} and {len(paths) - 1} more: none of these images can be decoded")
    return images[:kept], aspect_ratios[:kept], errors


def _read(
    path: str,
    size: tuple[int, int] | None,
    channels: int | None,
    make_spec: Callable[[int, int, int], ImageSpec],
) -> Decoded:
    """Read and decode a file, in its own size or channels where none are given."""
    data = read_bytes(path)
    if size and channels:
        shape = (*size, channels)
    else:
        found = image_shape(data)
        shape = (*(size or found[:2]), channels or found[2])
    try:
        spec = make_spec(*shape)
    except SettingsError as error:
        raise DataError(f"{path}: ", *error.args, ". Resize all images with ", Argument("image_size")) from None
    return decode_image(data, spec)


def find_depth_range(paths: Sequence[str]) -> DepthRange | None:
    """The smallest and largest value of gray images of more than 8 bits; None if there are no such images.

    The 0.1 % darkest and brightest pixels of each image don't count: one pixel of a sensor that is broken would decide
    for all images. Files that can't be read are left out.
    """
    results = read_each(_extremes, paths, batch_size=_FILES_PER_BATCH, threads=default_threads())
    found = [extremes for _, extremes in results if isinstance(extremes, tuple)]
    if not found:
        return None
    least, most = min(low for low, _ in found), max(high for _, high in found)
    return (least, most) if least < most else None


def _extremes(path: str) -> tuple[int, int] | None:
    values = deep_values(read_bytes(path))
    if values is None:
        return None
    ignored = int(values.size * _OUTLIERS)
    ordered = np.partition(values.ravel(), (ignored, values.size - 1 - ignored))
    return int(ordered[ignored]), int(ordered[-1 - ignored])


def _describe_depth(found: DepthRange | None) -> str:
    if found is None:
        return "No depth range was found: no training image has more than 8 bits per pixel and more than one value"
    return f"Of images with more than 8 bits per pixel, the values from {found[0]} to {found[1]} become 0 to 255"


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
    if "train" in names:
        paths = {_SPLITS[name]: folder / name for name in names if name in _SPLITS}
        paths = {split: paths[split] for split in ("train", "validation", "test") if split in paths}
        notes = [f"{folder / name}: left out, neither train, val nor test" for name in names if name not in _SPLITS]
    else:
        paths = {"train": folder}
        odd = [name for name in names if _meant_by(name) is not None]
        notes = [f"{folder / name}: used as a class, though it is named like a split of the data" for name in odd]
    _check_links(folder, [path / name for path in paths.values() for name in _folder_names(path)])
    ignored = IgnoredFiles()
    splits = {split: SplitFolder(path, list_classes(path, ignored)) for split, path in paths.items()}
    if described := ignored.describe():
        notes.append(f"{folder}: {described}")
    _check_classes(splits)
    for path in dict.fromkeys([folder, *paths.values()]):
        if loose := _image_names(path):
            more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
            notes.append(f"{path}: left out, because not in a class folder: {loose[0]}{more}")
    return splits, notes


def find_labeled(folder: Path, table: Path) -> tuple[dict[str, SplitFolder], list[str]]:
    """Find the image files that a table names, and their splits.

    If any is in `train/`, all must be in a split's folder; if not, all are training images.

    Args:
        folder: What the paths in the table are relative to.
        table: As for `read_labels`.

    Returns:
        The splits that are there, `train` always, and sentences about what was left out.

    Raises:
        DataError: a row can't be used, a file is in no split, or the classes don't fit each other.
    """
    try:
        rows = read_labels(table, [str(folder)])
    except InputError as error:
        raise DataError(*error.args) from None
    tops = [Path(os.path.relpath(row.path, folder)).parts[0] for row in rows]
    if misnamed := [f"{top} to {name}" for top in sorted(set(tops)) if (name := _meant_by(top)) not in (None, top)]:
        raise DataError(f"{folder}: rename {' and '.join(misnamed)}, and in {table}")
    has_splits = "train" in tops
    notes = []
    if not has_splits and (odd := sorted(set(tops) & set(_SPLITS))):
        notes.append(f"{folder}: {' and '.join(odd)} used for training, since no row of {table} is in a folder train")
    files: dict[str, dict[str, list[str]]] = {}
    for row, top in sorted(zip(rows, tops, strict=True), key=lambda pair: (pair[0].label, pair[0].path)):
        split = _SPLITS.get(top) if has_splits else "train"
        if split is None:
            raise DataError(f"{table}: line {row.line}: {row.path} is outside train, val and test, where others are")
        files.setdefault(split, {}).setdefault(row.label, []).append(row.path)
    if len(files["train"]) < 2:
        (name,) = files["train"]
        raise DataError(f"{table}: the only label of training images is {name!r}; a classifier needs two or more")
    order = sorted(files, key=["train", "validation", "test"].index)
    splits = {split: SplitFolder(folder / split if has_splits else folder, files[split]) for split in order}
    _check_classes(splits)
    ignored = IgnoredFiles()
    with contextlib.suppress(InputError):  # no images, where all paths are absolute
        known = {os.path.abspath(row.path) for row in rows}
        found = find_images([str(folder)], recursive=True, ignored=ignored)
        if left := [path for path in found if os.path.abspath(path) not in known]:
            notes.append(f"{folder}: left out {count_of(len(left), 'image')} without a row in {table}: {left[0]}")
    if described := ignored.describe():
        notes.append(f"{folder}: {described}")
    return splits, notes


def list_classes(folder: Path, ignored: IgnoredFiles | None = None) -> dict[str, list[str]]:
    """The image files of each class folder, both sorted by name.

    Args:
        folder: Its folders are the classes, by their names in Unicode's form NFC; images in their subfolders count too.
            Hidden ones are left out.
        ignored: Counts the files that have no image's suffix.

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
    folders: dict[str, str] = {}
    for name in names:
        other = folders.setdefault(unicodedata.normalize("NFC", name), name)  # macOS writes names in another form
        if other != name:
            raise DataError(
                f"{folder}: has two folders {unicodedata.normalize('NFC', name)!r}, in two forms of Unicode. Put their "
                "images into one"
            )
    try:
        return {
            name: list(find_images([str(folder / found)], recursive=True, ignored=ignored))
            for name, found in folders.items()
        }
    except InputError as error:
        raise DataError(*error.args, ". Each class needs images: add some, or remove the folder") from None


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


def _meant_by(name: str) -> str | None:
    """The name that a split's folder should have, for `Train`, `training` and the like."""
    lower = name.lower()
    return lower if lower in _SPLITS else _MISNAMED.get(lower)


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


def _check_classes(splits: Mapping[str, SplitFolder]) -> None:
    """Check that there are classes to tell apart, and that each class of any split is trained."""
    train = splits["train"]
    if len(train.files) < 2:
        (name,) = train.files
        problem = f"{train.path}: only one class folder, {name!r}; a classifier needs two or more"
        if len(_folder_names(train.path / name)) > 1:
            raise DataError(f"{problem}. Did you mean ", Argument("data", str(train.path / name)), "?")
        raise DataError(problem)
    alike = {name.lower(): name for name in train.files}
    for split, found in splits.items():
        unknown = [name for name in found.files if name not in train.files]
        for name in unknown:
            if name.lower() in alike:
                raise DataError(
                    f"{found.path / name}: this class is {alike[name.lower()]!r} in {train.path}. "
                    "Give both the same name"
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
            return sorted(
                entry.name
                for entry in entries
                if entry.name[0] != "." and not is_of_system(entry.name) and os.path.isdir(entry.path)
            )
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror}. It must be a folder with one folder of images per class"
        ) from None


def _image_names(folder: Path) -> list[str]:
    """The image files that lie directly in a folder that could be listed, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and not os.path.isdir(entry.path)]
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def write_image_folder(
    folder: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Write images as PNG files, `folder/<class>/00042.png`, numbered by index in `images`.

    Args:
        folder: Created if it doesn't exist. Its folders are named by `class_folders`.
        images: uint8, shape `(images, height, width, channels)`.
        labels: The class of each, an index into `class_names`.
        class_names: One name per class.

    Raises:
        InputError: two classes would share a folder.
        OSError: a folder or file can't be written.
    """
    folders = class_folders(class_names)
    with signals_noted():
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            stop_if_signaled()
            path = Path(folder) / folders[label] / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, "wb", sync=False) as file:  # syncing thousands would take minutes
                to_image(image).save(file, "PNG")
