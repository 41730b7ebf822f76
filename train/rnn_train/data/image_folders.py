"""A data set as folders of images, one per class: its images, decoded into memory."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import DataError, ImageError, SettingsError
from rnn_runtime.images.decode import decode_image, deep_values, image_shape, read_bytes, reported
from rnn_runtime.images.pool import map_files, usable_cores
from rnn_runtime.model.spec import DepthRange, ImageSpec
from rnn_train.data.labeled_images import Data, LabeledImages
from rnn_train.data.source import DataSource
from rnn_train.data.split_folders import find_splits

_FILES_PER_BATCH = 32  # a few batches at a time are decoded at their own size and not yet in the array
_REASONS_SHOWN = 3  # in a note
_OUTLIERS = 0.001  # share of an image's pixels, at either end


def load_class_folders(folder: Path, source: DataSource) -> Data:
    """Load `train/<class>/*`, and where there are any `val/<class>/*` and `test/<class>/*`; or `<class>/*` to train on.

    Raises:
        DataError: there are fewer than two classes, a class has no images or no training images, images can't be
            decoded, or differ in size without `image_size`, or there are both val/ and `val_split`.
    """
    if source.class_names is not None or source.dataset is not None:
        raise DataError(
            f"{folder}: no IDX files here, and folders of images name their own classes. "
            "Leave out `dataset` and `class_names`"
        )
    splits, notes = find_splits(folder)
    if source.val_split and "validation" in splits:
        raise DataError(f"{splits['validation'].path}: holds the validation images already. Leave out `val_split`")
    class_names = tuple(splits["train"].files)
    paths = {split: [path for files in found.files.values() for path in files] for split, found in splits.items()}
    depth_range = source.fixed_depth_range
    if source.depth_range == "auto":
        depth_range = find_depth_range(paths["train"])
        notes.append(_describe_depth(depth_range))
    pixels, errors = load_images(
        [path for split in paths.values() for path in split],
        source.image_size,
        source.channels,
        depth_range,
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
        notes += _describe_unreadable(paths[split], unreadable)
    return Data(images["train"], images.get("validation"), images.get("test"), class_names, tuple(notes), depth_range)


def _describe_unreadable(paths: Sequence[str], errors: Mapping[int, str]) -> list[str]:
    """Sentences about files that were left out, and the most frequent reasons if there are several."""
    if not errors:
        return []
    first = min(errors)
    notes = [
        f"Left out {len(errors)} of {len(paths)} images that can't be decoded, the first: {paths[first]}: "
        f"{errors[first]}"
    ]
    texts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in errors.values():
        kind = re.sub(r"\d+", "", text)  # the values of each image are others
        texts.setdefault(kind, text)
        counts[kind] += 1
    if len(counts) > 1:
        shown = counts.most_common(_REASONS_SHOWN)
        reasons = [f"{texts[kind]} ({count})" for kind, count in shown]
        if more := len(errors) - sum(count for _, count in shown):
            reasons.append(f"others ({more})")
        notes.append(f"Most frequent reasons: {'; '.join(reasons)}")
    return notes


def load_images(
    paths: Sequence[str],
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    depth_range: DepthRange | None = None,
    *,
    skip_unreadable: bool = False,
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode images in several threads, exactly as the runtime does. Each file is read once.

    Args:
        paths: The files.
        image_size: `(height, width)` to resize them to; None if they all have the same size.
        channels: 1 or 3; None for 3 if any image is in color, else 1.
        depth_range: The values of black and white in images of more than 8 bits, as in `ImageSpec`.
        skip_unreadable: Leave out files that can't be decoded, instead of raising.

    Returns:
        The images that could be read, uint8 `(images, height, width, channels)`, and the errors of the other files,
        by index in `paths`.

    Raises:
        DataError: a file can't be decoded, or the images differ in size and there is no `image_size`.
    """
    images = _Images(len(paths), image_size, channels, depth_range)
    for batch in map_files(images.read, paths, batch_size=_FILES_PER_BATCH, threads=usable_cores()):
        for path, found in batch:
            images.add(path, found)
    pixels, errors = images.finish(paths), images.errors
    if errors and not skip_unreadable:
        first = min(errors)
        raise DataError(
            f"{len(errors)} of {len(paths)} images can't be read, the first: {paths[first]}: {errors[first]}. "
            "Repair or remove them, or set `skip_unreadable=True`"
        )
    return pixels, errors


def find_depth_range(paths: Sequence[str]) -> DepthRange | None:
    """The smallest and largest value of gray images of more than 8 bits; None if there are no such images.

    The 0.1 % darkest and brightest pixels of each image don't count: one pixel of a sensor that is broken would decide
    for all images. Files that can't be read are left out.
    """
    found: list[tuple[int, int]] = []
    for batch in map_files(_extremes, paths, batch_size=_FILES_PER_BATCH, threads=usable_cores()):
        found += [extremes for _, extremes in batch if isinstance(extremes, tuple)]
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


@dataclass(frozen=True, slots=True)
class _Found:
    """A file whose header could be read: its shape, and its pixels or why there are none."""

    shape: tuple[int, int, int]
    pixels: NDArray[np.uint8] | ImageError | None  # None if their size is out of range


class _Images:
    """Collects images in one array, whose size and channels may follow from the images themselves."""

    def __init__(
        self, count: int, size: tuple[int, int] | None, channels: int | None, depth_range: DepthRange | None
    ) -> None:
        self.errors: dict[int, str] = {}
        self._count, self._size, self._channels, self._depth_range = count, size, channels, depth_range
        self._added = self._kept = 0
        self._first: tuple[str, tuple[int, int, int]] | None = None  # the first file with a header, and its shape
        self._in_color = False
        self._array: NDArray[np.uint8] | None = None

    def read(self, path: str) -> _Found:
        """Read and decode a file. Called from several threads.

        Raises:
            ImageError: it can't be read, or has no valid header.
        """
        data = read_bytes(path)
        if self._size and self._channels:
            shape = (*self._size, self._channels)
        else:
            found = image_shape(data)
            # A gray image stays gray here; `add` repeats its values for RGB where needed.
            shape = (*(self._size or found[:2]), self._channels or found[2])
        try:
            return _Found(shape, decode_image(data, ImageSpec(*shape, self._depth_range)))
        except ImageError as error:
            return _Found(shape, reported(error, path))
        except SettingsError:
            return _Found(shape, None)

    def add(self, path: str, found: _Found | ImageError) -> None:
        """Add a file's result, in the order of the files."""
        row, self._added = self._added, self._added + 1
        if isinstance(found, ImageError):
            self.errors[row] = str(found)
            return
        if self._first is None:
            self._first = path, found.shape
        (height, width), other = self._first[1][:2], found.shape[:2]
        if other != (height, width):
            raise DataError(
                f"images differ in size, {height}x{width} in {self._first[0]} and {other[0]}x{other[1]} in {path}. "
                "Resize them with `image_size`"
            )
        self._in_color |= found.shape[2] == 3
        if isinstance(found.pixels, ImageError):
            self.errors[row] = str(found.pixels)
        elif found.pixels is not None:
            self._keep(found.pixels)

    def _keep(self, pixels: NDArray[np.uint8]) -> None:
        shape = (self._count, *pixels.shape[:2], 3 if self._in_color else 1)
        if self._array is None:
            self._array = np.empty(shape, np.uint8)
        elif self._array.shape != shape:  # the first in color, after gray ones
            self._array = self._widen(self._array)
        self._array[self._kept] = pixels
        self._kept += 1

    def _widen(self, gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
        wide = np.empty((*gray.shape[:3], 3), np.uint8)
        wide[: self._kept] = gray[: self._kept]
        return wide

    def finish(self, paths: Sequence[str]) -> NDArray[np.uint8]:
        """The images that could be read.

        Raises:
            DataError: no image tells size and channels, or the size is out of range.
        """
        if self._first is None:
            if not self._size or not self._channels:
                raise DataError(f"{paths[0]} and {len(paths) - 1} more: none of these images can be decoded")
            shape = (*self._size, self._channels)
        else:
            first, (height, width, _) = self._first
            shape = (height, width, 3 if self._in_color else 1)
            try:
                ImageSpec(*shape)
            except SettingsError as error:
                raise DataError(f"{first}: {error}. Resize all images with `image_size`") from None
        if self._array is None:
            return np.empty((0, *shape), np.uint8)
        if self._array.shape[3] != shape[2]:  # only images that can't be decoded are in color
            self._array = self._widen(self._array)
        return self._array[: self._kept]
