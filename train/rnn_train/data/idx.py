"""IDX files, the format of MNIST: an array of bytes after a short header, plain or gzipped; four make a data set."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import Argument, DataError
from rnn_train.data.source import Data, DataSource, LabeledImages, check_memory

_UNSIGNED_BYTE = 0x08


def load_idx_folder(folder: Path, source: DataSource, class_names: tuple[str, ...] | None) -> Data:
    """Load `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the two `t10k` files, the test split.

    Args:
        folder: Where the files are, plain or gzipped.
        source: What was asked for.
        class_names: Names for the classes, in the order of the labels; None for the labels themselves.

    Raises:
        DataError: a file is missing or damaged, or doesn't match the other files or the class names.
    """
    if source.channels is not None:
        raise DataError(
            f"{folder}: the number of channels of IDX files can't be chosen. Leave out ", Argument("channels")
        )
    if source.depth_range == "auto":
        raise DataError(
            f"{folder}: IDX files have 8 bits, in which no depth range can be found. Leave out ",
            Argument("depth_range"),
        )
    train, test = (_load_split(folder, prefix) for prefix in ("train", "t10k"))
    count = int(max(train.labels.max(), test.labels.max())) + 1
    names = class_names if class_names is not None else tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(f"{folder}: labels go up to {count - 1}, but only {len(names)} classes have names")
    if train.images.shape[1:] != test.images.shape[1:] and not source.image_size:
        raise DataError(f"{folder}: training and test images differ in size. Resize them with ", Argument("image_size"))
    return Data(train, None, test, names)


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


def _load_split(folder: Path, prefix: str) -> LabeledImages:
    images, labels = (
        read_idx(_find_idx(folder, f"{prefix}-{name}")) for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    images = images[..., np.newaxis] if images.ndim == 3 else images
    if (
        images.ndim != 4
        or 0 in images.shape[1:]
        or images.shape[3] not in (1, 3)
        or labels.ndim != 1
        or len(images) != len(labels)
    ):
        raise DataError(
            f"{folder}: {prefix} images of shape {images.shape} and labels of shape {labels.shape} don't match; "
            "expected (images, height, width) and (images,)"
        )
    if not len(images):
        raise DataError(f"{folder}: the {prefix} split has no images")
    return LabeledImages(images, labels.astype(np.int64))


def _find_idx(folder: Path, name: str) -> Path:
    """The IDX file of this name, plain or gzipped; some mirrors write `train-images.idx3-ubyte`."""
    for form in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (path := folder / f"{form}{suffix}").is_file():
                return path
    raise DataError(f"{folder}: {name} (or {name}.gz) is missing beside the other IDX files")
