"""From an encoded image file to the pixels that a model takes. Training and serving both go through here."""

import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import ImageError
from rnn_runtime.model_spec import ImageSpec

# The kinds that a folder is searched for; files named one by one are decoded whatever their ending.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"})
MAX_PIXELS = 1 << 26  # 67 million, 8192 x 8192: a small file may claim far more than memory holds

# OpenCV reads its limit once, when it is imported, from the environment (docs.opencv.org, imgcodecs).
_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
os.environ.setdefault(_LIMIT, str(MAX_PIXELS))
import cv2  # noqa: E402

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Images are decoded and resized by several of our threads; OpenCV's own would only contend with them.
cv2.setNumThreads(1)


def read_image(path: str | Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Read and decode an image file to the model's input size.

    Args:
        path: A file that `decode_image` understands.
        spec: Size and channels that the model was trained with.

    Returns:
        uint8, shape `(spec.height, spec.width, spec.channels)`, 0 to 255.

    Raises:
        ImageError: the file can't be read or decoded; the text doesn't repeat the path.
    """
    return decode_image(read_bytes(path), spec)


def decode_image(data: bytes, spec: ImageSpec) -> NDArray[np.uint8]:
    """Decode one encoded image to the model's input size.

    Args:
        data: The bytes of a PNG, JPEG, BMP, TIFF, WebP, GIF (first frame), PGM or PPM file.
        spec: Size and channels that the model was trained with.

    Returns:
        uint8, shape `(spec.height, spec.width, spec.channels)`, 0 to 255. 16-bit images keep their upper
        8 bits, transparency is dropped, EXIF rotation is applied, three channels are in RGB order.

    Raises:
        ImageError: the bytes are no whole image, or one of more pixels than `MAX_PIXELS`, or than the
            environment variable `OPENCV_IO_MAX_IMAGE_PIXELS` allows if it was set before.
    """
    return resize_image(decode_pixels(data, spec.channels), spec)


def decode_pixels(data: bytes, channels: int | None = None) -> NDArray[np.uint8]:
    """Decode one encoded image at its own size.

    Args:
        data: As for `decode_image`.
        channels: 1 for gray, 3 for RGB, None for what the file holds.

    Returns:
        uint8, shape `(height, width, channels)`, 0 to 255.

    Raises:
        ImageError: as for `decode_image`.
    """
    if not data:
        raise ImageError("the file is empty")
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB, None: cv2.IMREAD_ANYCOLOR}[channels]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE_" in str(error):
            raise ImageError(
                f"the image has more than {os.environ[_LIMIT]} pixels, the limit that {_LIMIT} sets"
            ) from None
        raise ImageError("not an image that can be decoded, or a damaged one") from None
    if pixels is None:
        raise ImageError("not an image that can be decoded, or a damaged one")
    if channels is None and pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, np.uint8).reshape(*pixels.shape[:2], -1)


def resize_image(pixels: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    """Stretch an image to the model's input size: by area when it shrinks, bilinear when it grows.

    Args:
        pixels: uint8, shape `(height, width, spec.channels)`.
        spec: The size to reach.

    Returns:
        uint8, shape `(spec.height, spec.width, spec.channels)`. The same array if the size is right.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (spec.height, spec.width):
        return pixels
    shrinks = height >= spec.height and width >= spec.width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (spec.width, spec.height), interpolation=method)
    return np.asarray(resized, np.uint8).reshape(spec.shape)


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        ImageError: it isn't there, is a folder, or may not be read.
    """
    try:
        # unbuffered: a fifth less time on small files
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError("not a regular file")
            return file.readall()
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from None
    except ValueError:  # a null character in the name
        raise ImageError("not a valid file name") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe would wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
