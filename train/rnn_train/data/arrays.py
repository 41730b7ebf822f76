"""Data sets as arrays in one file: NumPy's `.npz`, as Keras has it, and tables of pixels, as Kaggle has them."""

import math
import zipfile
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import DataError
from rnn_runtime.model.spec import MAX_CLASSES
from rnn_train.data.source import LabeledImages, check_memory

_NPZ = "x_train, y_train, x_test and y_test"
_FEWEST = 2  # values in a row of pixels


def read_npz(path: Path) -> dict[str, LabeledImages]:
    """Read `x_train`, `y_train`, and where they are there `x_test` and `y_test`, as in Keras's `mnist.npz`.

    Args:
        path: The file. Images are of whole numbers from 0 to 255, shape `(images, height, width)` or `(images, height,
            width, 1 or 3)`; labels are whole numbers from 0 on, shape `(images,)` or `(images, 1)`.

    Returns:
        The splits `train` and, if it is there, `test`.

    Raises:
        DataError: the file can't be read, an array is missing or of another kind, or an image or label can't be used.
    """
    try:
        with path.open("rb") as content:
            if not zipfile.is_zipfile(content):  # np.load would take it for a pickle
                raise DataError(f"{path}: not an .npz file, or a damaged one")
            with zipfile.ZipFile(content) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            check_memory(2 * size, f"{path}: to be read, its arrays take")
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not arrays that NumPy wrote, or damaged ones: {error}") from None
    names = [name for name in ("x_train", "y_train", "x_test", "y_test") if name in found]
    if len(names) % 2 or "x_train" not in names or set(names) != found.keys():
        raise DataError(f"{path}: holds {', '.join(found) or 'nothing'}. It must hold {_NPZ}, or the first two")
    return {
        split: _labeled(path, found[f"x_{split}"], found[f"y_{split}"], split)
        for split in ("train", "test")
        if f"x_{split}" in found
    }


def _labeled(path: Path, images: NDArray[Any], labels: NDArray[Any], split: str) -> LabeledImages:
    pixels = images[..., np.newaxis] if images.ndim == 3 else images
    if pixels.ndim != 4 or 0 in pixels.shape or pixels.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: x_{split} has the shape {images.shape}; expected (images, height, width) or (images, height, "
            "width, 1 or 3)"
        )
    if labels.shape not in ((len(pixels),), (len(pixels), 1)):
        raise DataError(f"{path}: y_{split} has the shape {labels.shape}; expected ({len(pixels)},), one per image")
    _check_range(path, f"x_{split}", pixels, 255)
    _check_range(path, f"y_{split}", labels, MAX_CLASSES - 1)
    # writable and in one piece, as torch wants it
    return LabeledImages(
        np.ascontiguousarray(pixels, np.uint8), np.ascontiguousarray(labels.reshape(len(pixels)), np.int64)
    )


def _check_range(path: Path, name: str, values: NDArray[Any], most: int) -> None:
    expected = f"must hold whole numbers from 0 to {most}"
    if values.dtype.kind not in "iu":
        hint = f". Of values from 0 to 1, make ({name} * 255).astype('uint8')" if values.ndim > 2 else ""
        raise DataError(f"{path}: {name} holds {values.dtype}, and {expected}{hint}")
    wrong = ((values < 0) | (values > most)).reshape(len(values), -1).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        found = f"values from {values[row].min()} to {values[row].max()}"
        raise DataError(f"{path}: {name}[{row}] holds {found}, and {expected}")


def read_pixel_table(path: Path) -> dict[str, LabeledImages]:
    """Read a CSV with an image in each row, as Kaggle's Digit Recognizer has it: `label,pixel0,...,pixel783`.

    Args:
        path: The file. Images are gray and square, with pixels from 0 to 255, row by row; labels are whole numbers
            from 0 to 255. Without a line of names, the label comes first.

    Returns:
        The split `train`.

    Raises:
        DataError: the file can't be read, or a row isn't such an image; the text names its line.
    """
    try:
        check_memory(path.stat().st_size, f"{path}: to be read, its rows take")
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    with file:
        first = file.readline().removeprefix(b"\xef\xbb\xbf").strip().split(b",")
        has_names = not first[0].strip().isdigit()
        names = [name.strip().strip(b'"').lower() for name in first] if has_names else []
        if has_names and b"label" not in names:
            raise DataError(
                f"{path}: line 1: no column label, and a table of images has the columns label,pixel0,pixel1,..."
            )
        at, count = names.index(b"label") if has_names else 0, len(first)
        side = math.isqrt(count - 1)
        if side**2 != count - 1 or count < _FEWEST:
            raise DataError(f"{path}: line 1: {count - 1:,} pixels, which are no square image")
        rows = []
        for number, line in enumerate(file if has_names else chain([b",".join(first)], file), 1 + has_names):
            if not line.strip():
                continue
            fields = line.split(b",")
            if len(fields) != count:
                raise DataError(f"{path}: line {number}: {len(fields):,} values instead of {count:,}")
            try:
                rows.append(bytes(map(int, fields)))
            except ValueError:
                raise DataError(
                    f"{path}: line {number}: holds something else than whole numbers from 0 to 255"
                ) from None
    if not rows:
        raise DataError(f"{path}: no rows")
    values = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), count)
    pixels = np.delete(values, at, axis=1).reshape(len(rows), side, side, 1)
    return {"train": LabeledImages(pixels, values[:, at].astype(np.int64))}
