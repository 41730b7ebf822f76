"""The IDX files of the MNIST family: arrays of bytes behind a short header, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import DataError

_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes; the format is told by the content, not by the name.

    The format is described on MNIST's page (yann.lecun.com/exdb/mnist): two zero bytes, a type, the number
    of dimensions, each dimension as a big-endian 32-bit number, then the values, last dimension fastest.

    Args:
        path: A file such as `train-images-idx3-ubyte.gz`.

    Returns:
        uint8, of the shape that the header gives.

    Raises:
        DataError: the file can't be read, or is no whole IDX file of unsigned bytes.
    """
    try:
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
        raise DataError(f"{path}: {error}") from None


def parse_idx(data: bytes) -> NDArray[np.uint8]:
    """Parse the content of an uncompressed IDX file; returns and raises as `read_idx`."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError("not an IDX file: it doesn't begin with two zero bytes, a type and a count")
    kind, dimensions = data[2], data[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"an IDX file of type 0x{kind:02x}; only unsigned bytes (0x08) are images or labels")
    start = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:start][: (len(data) - 4) // 4 * 4], ">u4").tolist()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise DataError(f"an IDX file of {dimensions} dimensions; labels have 1, images 3 or 4")
    if len(shape) < dimensions:
        raise DataError("an IDX file whose header is cut short")
    size = math.prod(shape)
    if size != len(data) - start:
        sides = " x ".join(map(str, shape))
        raise DataError(f"an IDX file of {sides} that holds {len(data) - start:,} values instead of {size:,}")
    try:
        return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # writable, as torch wants it
    except ValueError:  # no values at all, in a shape that no array can have
        raise DataError(
            f"an IDX file of {' x '.join(map(str, shape))}, which is no shape of images or labels"
        ) from None
