"""IDX files, the format of MNIST: an array of bytes after a short header, plain or gzipped; four make a data set."""

import gzip
import math
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import Argument, DataError
from rnn_runtime.text import shorten
from rnn_train.data.source import LabeledImages, check_memory
from rnn_train.settings import EMNIST, Dataset

_UNSIGNED_BYTE = 0x08
_NAME = re.compile(r"(?P<prefix>.*?)(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
_LONGEST = 200  # characters of a list of names
_Files = dict[tuple[str, str], Path]  # by split and kind


def load_idx_files(folder: Path, dataset: Dataset | None) -> dict[str, LabeledImages] | None:
    """Load training and test images from IDX files in a folder, or in one of its subfolders.

    `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the same of the test images, whose names begin with `t10k`
    or `test`; plain or gzipped. A name may stand before all of them, as in `emnist-letters-train-images-idx3-ubyte`.

    Args:
        folder: Where to look.
        dataset: The data set that they are said to be.

    Returns:
        The splits `train` and `test`; None if there are no IDX files.

    Raises:
        DataError: a file is missing or damaged, or doesn't match the other files; there are those of several data sets,
            or of EMNIST, and `dataset` doesn't say so.
    """
    found = _find_idx_files(folder)
    if not found:
        return None
    sets = _group(found)
    if dataset in EMNIST:
        sets = {place: files for place, files in sets.items() if place[1] in ("", f"{dataset}-")}
    sets = {place: files for place, files in sets.items() if place[0] == folder} or sets
    if not sets:
        names = shorten(", ".join(path.name for path in found), _LONGEST)
        raise DataError(
            f"{folder}: no training images among its IDX files: {names}. Expected are train-images-idx3-ubyte, "
            "train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"
        )
    prefixes = {prefix.removesuffix("-") for _, prefix in sets}
    if dataset not in EMNIST and (of_emnist := [name for name in EMNIST if name in prefixes]):
        raise DataError(
            f"{folder}: files of EMNIST, whose images lie on their sides: {', '.join(of_emnist)}. Choose one with ",
            Argument("dataset", of_emnist[0]),
        )
    if len(sets) > 1:
        names = shorten(", ".join(str(place / f"{prefix}train-images...") for place, prefix in sets), _LONGEST)
        raise DataError(
            f"{folder}: IDX files of several data sets: {names}. Point ", Argument("data"), " to a folder with one"
        )
    ((place, prefix), files) = next(iter(sets.items()))
    return {split: _load_split(place, prefix, split, files) for split in ("train", "test")}


def _find_idx_files(folder: Path) -> list[Path]:
    """Files whose names say that they are IDX files, those in the folder itself first."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if name.removesuffix(".gz").endswith("ubyte")]
    return found


def _group(paths: Sequence[Path]) -> dict[tuple[Path, str], _Files]:
    """The files of each data set that has training images, by their folder and what stands before their names."""
    sets: defaultdict[tuple[Path, str], _Files] = defaultdict(dict)
    for path in sorted(paths, key=lambda path: path.suffix == ".gz"):  # a plain file is taken before a gzipped one
        found = _NAME.fullmatch(path.name)
        if found:
            # Kaggle has some files in a folder of the same name.
            place = path.parent.parent if path.parent.name == path.name else path.parent
            split = "train" if found["split"] == "train" else "test"
            sets[place, found["prefix"]].setdefault((split, found["kind"]), path)
    return {place: files for place, files in sets.items() if ("train", "images") in files}


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes; gzip is recognized by the content, not by the name.

    The format is described on MNIST's page (yann.lecun.com/exdb/mnist): two zero bytes, a type, the number
    of dimensions, each dimension as a big-endian 32-bit number, then the values, the last dimension varying fastest.

    Args:
        path: A file such as `train-images-idx3-ubyte.gz`.

    Returns:
        uint8, in the shape that the header gives.

    Raises:
        DataError: the file can't be read, or isn't a complete IDX file of unsigned bytes.
    """
    try:
        check_memory(2 * Path(path).stat().st_size, f"{path}: to be read, its values take")
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except OSError as error:  # gzip's BadGzipFile is one too
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip data: {error}") from None
    try:
        return parse_idx(data)
    except DataError as error:
        raise DataError(f"{path}: ", *error.args) from None


def parse_idx(data: bytes) -> NDArray[np.uint8]:
    """Parse the content of an uncompressed IDX file. Returns and raises the same as `read_idx`."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError("not an IDX file: it doesn't start with two zero bytes, a type and a count")
    kind, dimensions = data[2], data[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"an IDX file of type 0x{kind:02x}; only unsigned bytes (0x08) are images or labels")
    start = 4 + 4 * dimensions
    try:
        shape = np.frombuffer(data, ">u4", dimensions, offset=4).tolist()
        size = math.prod(shape)
        if size != len(data) - start:
            sides = " x ".join(map(str, shape))
            raise DataError(f"an IDX file of {sides} that holds {len(data) - start:,} values instead of {size:,}")
        return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # writable, as torch wants it
    except ValueError:  # a header that is cut short, or a shape that no array can have
        raise DataError("an IDX file whose header isn't that of images or labels") from None


def _load_split(place: Path, prefix: str, split: str, files: _Files) -> LabeledImages:
    for kind, form in (("images", "idx3"), ("labels", "idx1")):
        if (split, kind) not in files:
            name = f"{prefix}{'train' if split == 'train' else 't10k'}-{kind}-{form}-ubyte"
            raise DataError(f"{place}: {name} (or {name}.gz) is missing beside the other IDX files")
    images, labels = (read_idx(files[split, kind]) for kind in ("images", "labels"))
    images = images[..., np.newaxis] if images.ndim == 3 else images
    if (
        images.ndim != 4
        or 0 in images.shape[1:]
        or images.shape[3] not in (1, 3)
        or labels.ndim != 1
        or len(images) != len(labels)
    ):
        raise DataError(
            f"{place}: {split} images of shape {images.shape} and labels of shape {labels.shape} don't match; "
            "expected (images, height, width) and (images,)"
        )
    if not len(images):
        raise DataError(f"{place}: the {split} split has no images")
    return LabeledImages(images, labels.astype(np.int64))
