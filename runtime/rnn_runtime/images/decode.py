"""Decode an image and bring it to the model's size. Training and inference both use this, so pixels are the same."""

import io
import os
import stat
import struct
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from rnn_runtime.errors import ImageError, RnnOnnxError
from rnn_runtime.files.atomic import INSTALL_HEIF, REMOTE
from rnn_runtime.files.remote import read_remote
from rnn_runtime.images.depth import check_depth, read_values, to_8_bits
from rnn_runtime.images.fit import fit_image, fit_pixels, to_image
from rnn_runtime.images.limits import MAX_FILE_BYTES, TOO_MANY_BYTES, TOO_MANY_PIXELS, check_size, check_work
from rnn_runtime.images.pillow_quirks import (
    DEEP_MODES,
    PNG_SIGNATURE,
    Encoding,
    convert,
    encoding_of,
    is_gray,
    mend_gif,
    mend_png,
    mend_tiff,
    mend_transparency,
    release_decoder,
    upright_size,
)
from rnn_runtime.model.spec import DepthRange, ImageSpec

Item = TypeVar("Item")
Value = TypeVar("Value")

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "AVIF")  # Pillow's names; Pillow reads many more
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # ISO/IEC 23008-12
_SMALL_PNG = 1 << 15  # bytes
_LEAST_SIDE = 1536  # pixels of an image whose size the model doesn't bound, so that a small sign is still found
_MOST_PACKED = 1032  # deflate's largest ratio (zlib's technical details); a PNG that claims more isn't complete
# Chunks of a PNG that may hold an orientation, or make a color transparent.
_FOR_PILLOW = (b"eXIf", b"iTXt", b"Raw profile type", b"tRNS")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DAMAGED = "a damaged image, or an unsupported kind"
_NOT_AN_IMAGE = "not an image in a supported format, or damaged"
_UNSUPPORTED_TIFF = "an unsupported kind of TIFF, or a damaged one"
_NO_MEMORY = "not enough memory to decode it"


class Decoded(NamedTuple):
    """An image as the model takes it.

    Attributes:
        pixels: uint8, shape `(spec.height, spec.width, spec.channels)`, 0 to 255.
        colors_ignored: Whether the model takes gray images, and the file is one in color.
        aspect_ratio: Width / height before it was fitted; None if it has the model's size already.
    """

    pixels: NDArray[np.uint8]
    colors_ignored: bool = False
    aspect_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class TakenImage:
    """An image that was given as something other than a path.

    Attributes:
        name: The name of its file; empty where it isn't known.
        content: The encoded image, the image as the model takes it, or what is wrong with it.
    """

    name: str
    content: bytes | Decoded | ImageError


def read_images(images: Iterable[str | TakenImage], spec: ImageSpec) -> list[Decoded | ImageError]:
    """Read and decode several images, each to the model's input size.

    Args:
        images: Paths, and images in memory.
        spec: Size and channels that the model was trained with.

    Returns:
        Each image decoded, or what is wrong with it.

    Raises:
        StorageError: Object storage doesn't answer, or refuses.
    """

    def read(image: str | TakenImage) -> Decoded | NDArray[np.uint8]:
        content = image.content if isinstance(image, TakenImage) else read_bytes(image)
        if isinstance(content, ImageError):
            raise content
        return _decode(content, spec) if isinstance(content, bytes) else content

    found = [result_or_error(read, image) for image in images]
    waiting = [image for image in found if isinstance(image, np.ndarray)]
    fitted = iter(fit_pixels(np.stack(waiting), spec) if waiting else ())
    return [Decoded(next(fitted)) if isinstance(image, np.ndarray) else image for image in found]


def decode_image(data: bytes, spec: ImageSpec) -> Decoded:
    """Decode one encoded image to the model's input size.

    A much larger JPEG is decoded at a half, quarter or eighth of its size, which is faster.

    Args:
        data: The bytes of a PNG, JPEG, BMP, TIFF, WebP, AVIF, GIF (first frame), PGM or PPM file; of a HEIC file, with
            the package pillow-heif.
        spec: The input that the model was trained with.

    Returns:
        The pixels, and whether colors are ignored. Gray images of 16 bits are read by `spec.depth_range`, others keep
        their upper 8 bits. EXIF rotation is applied. `spec.fit` says how the rest is done.

    Raises:
        ImageError: The bytes are not a complete image, or one beyond the limits in `rnn_runtime.images.limits`.
    """
    decoded = _decode(data, spec)
    return decoded if isinstance(decoded, Decoded) else Decoded(fit_pixels(decoded[np.newaxis], spec)[0])


def convert_image(image: Image.Image, spec: ImageSpec) -> Decoded:
    """Bring an image in memory to the model's input, as `decode_image` does with a file. `image` isn't changed.

    Args:
        image: A PIL image, in any mode that has a defined range. The EXIF orientation that it carries is applied.
        spec: Size and channels that the model was trained with.

    Raises:
        ImageError: The image has no pixels, can't be decoded or converted, or is beyond the limits for files.
    """
    if 0 in image.size:
        raise ImageError("the image has no pixels")
    check_size(*image.size)
    try:
        with PillowErrors():
            encoding = encoding_of(image)
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
        pixels = fit_image(_to_mode(image, encoding, spec.depth_range, _mode_for(spec)), spec)
        return Decoded(pixels, aspect_ratio=image.width / image.height)
    except MemoryError as error:
        raise ImageError(_NO_MEMORY) from error


def image_shape(data: bytes) -> tuple[int, int, int]:
    """Read an image's shape from its header: height, width, and channels (1 for gray, 3 for color).

    Args:
        data: As for `decode_image`.

    Raises:
        ImageError: As for `decode_image`, but damage after the header goes unnoticed.
    """
    return _read_tolerantly(_shape, data)


def claimed_pixels(data: bytes) -> int:
    """How many pixels an image has by its header; 0 if that can't be read."""
    if len(data) >= 24 and data.startswith(PNG_SIGNATURE):
        width, height = struct.unpack_from(">II", data, 16)
        return int(width * height)
    try:
        image, encoding = _open(data)
    except ImageError:
        return 0
    return max(image.width * image.height, encoding.tile[0] * encoding.tile[1])


def deep_values(data: bytes) -> NDArray[np.int32] | None:
    """The values of a gray image of more than 8 bits per pixel, before any range; None for other images.

    Args:
        data: As for `decode_image`.

    Returns:
        int32, shape `(height, width)`, not turned upright.

    Raises:
        ImageError: As for `decode_image`.
    """
    try:
        return _read_tolerantly(_deep_values, data)
    except MemoryError as error:
        raise ImageError(_NO_MEMORY) from error


def decode_as_it_is(data: bytes, least_side: int, depth_range: DepthRange | None) -> Image.Image:
    """Decode an image and leave it as it is: with its transparency and its colors.

    Args:
        data: As for `decode_image`.
        least_side: A JPEG may come out at a half, quarter or eighth of its size, if both sides keep so many pixels.
        depth_range: As in `ImageSpec`.

    Returns:
        An upright image in mode `L` or `RGB`; where some pixels aren't opaque, `LA` or `RGBA`.

    Raises:
        ImageError: As for `decode_image`.
    """
    read = partial(_decode_to_image, mode=None, least_side=least_side, depth_range=depth_range)
    try:
        return _read_tolerantly(read, data)[0]
    except MemoryError as error:
        raise ImageError(_NO_MEMORY) from error


def result_or_error(function: Callable[[Item], Value], image: Item) -> Value | ImageError:
    """What a function returns for an image, or its `ImageError`. Any other exception is a bug, and passes.

    The error comes without its traceback, which holds the file's bytes. With RNN_DEBUG=1 in the environment, that goes
    to stderr, with the exception of Pillow behind it.
    """
    try:
        return function(image)
    except ImageError as error:
        if os.environ.get("RNN_DEBUG") == "1" and sys.stderr:
            place = f"{image}: " if isinstance(image, str | Path) else ""
            sys.stderr.write(place + "".join(traceback.format_exception(error)))
        return ImageError(*error.args)


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        ImageError: The file is missing, a folder or not readable, or has more than `MAX_FILE_BYTES`.
        StorageError: It is in object storage, which doesn't answer or refuses.
    """
    if isinstance(path, str) and path.startswith(REMOTE):
        return _read_remote(path)
    try:
        # On small files, the system's calls take 40 % of the time of `open` and `read`. O_NONBLOCK: a pipe must not
        # wait for its other end; it is refused below, as everything that isn't a regular file.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a regular file")
            return _read_all(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a null character in the name
        raise ImageError("not a valid file name") from error


def _read_remote(path: str) -> bytes:
    try:
        data = read_remote(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ImageError("no such file or directory") from error
    if data is None:
        raise ImageError(TOO_MANY_BYTES)
    return data


def _read_all(descriptor: int, size: int) -> bytes:
    """All bytes of a file of about `size` bytes."""
    if size > MAX_FILE_BYTES:
        raise ImageError(TOO_MANY_BYTES)
    data = os.read(descriptor, size + 1)
    if len(data) == size:
        return data
    # The file grows or shrinks, or is in /proc, where files have size 0.
    parts = [data, *iter(lambda: os.read(descriptor, 1 << 20), b"")]
    return b"".join(parts)


class PillowErrors:
    """A `with` block around calls of Pillow: what they raise becomes an `ImageError`, with the exception as its cause.

    Pillow raises exceptions of every kind for damaged files. Our own steps stand outside of such blocks, so that a bug
    of ours isn't taken for a damaged file.

    A class, since a generator would take a microsecond more per block.

    Args:
        problem: The text of the error.
    """

    __slots__ = ("_problem",)

    def __init__(self, problem: str = _DAMAGED) -> None:
        self._problem = problem

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RnnOnnxError | MemoryError):
            raise ImageError(self._problem) from error


def _decode_small_png(data: bytes) -> NDArray[np.uint8] | None:
    """Decode a small PNG of 8 bits, gray or RGB; None for all other files.

    On images of 28 x 28, Pillow takes ten times as long for what it does around its decoder
    (docs/explanation/measurements.md). A PNG holds exact values, so both give the same pixels, uint8 `(height, width,
    1 or 3)`. A damaged file is left to Pillow, which says what is wrong.
    """
    if not 26 <= len(data) <= _SMALL_PNG or not data.startswith(PNG_SIGNATURE):
        return None
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    mode = {(8, 0): "mono", (8, 2): "rgb"}.get((bits, color))
    if mode is None or width * height > _MOST_PACKED * len(data) or any(name in data for name in _FOR_PILLOW):
        return None
    try:
        pixels: NDArray[np.uint8] = decode_image_png_u8(data, (height, width), mode)
    except Exception:  # kornia has no exception class of its own
        return None
    return pixels


def _read_tolerantly(read: Callable[[bytes], Value], data: bytes) -> Value:
    """Read an image with Pillow; a PNG that is refused, without what browsers overlook.

    Raises:
        ImageError: what Pillow says of the whole file.
    """
    try:
        return read(data)
    except ImageError:
        mended = mend_png(data)
        if mended is not None:
            with suppress(ImageError):
                return read(mended)
        raise


def _decode(data: bytes, spec: ImageSpec) -> Decoded | NDArray[np.uint8]:
    """Decode an image to the model's input.

    For `glyph`, pixels of the model's size are left to `fit_pixels`, which takes less time for many together.
    """
    mode = _mode_for(spec)
    try:
        pixels = _decode_small_png(data)
        if pixels is None:
            # A JPEG may come out at twice the model's size or more, so that each final pixel is an average of at least
            # four.
            least_side = 2 * max(spec.height, spec.width) if mode else _LEAST_SIDE
            read = partial(_decode_to_image, mode=mode, least_side=least_side, depth_range=spec.depth_range)
            image, colors_ignored = _read_tolerantly(read, data)
        elif pixels.shape == spec.shape:
            if spec.fit == "glyph":
                return pixels
            return Decoded(255 - pixels if spec.invert else pixels)
        else:
            image, colors_ignored = to_image(pixels), mode == "L" and pixels.shape[2] == 3
        return Decoded(fit_image(image, spec), colors_ignored, image.width / image.height)
    except MemoryError as error:
        raise ImageError(_NO_MEMORY) from error


def _mode_for(spec: ImageSpec) -> str | None:
    """The mode to decode to: that of the model's input, or None for the image's own, whose colors `glyph` needs."""
    if spec.fit == "glyph":
        return None
    return "L" if spec.channels == 1 else "RGB"


def _decode_to_image(
    data: bytes, mode: str | None, least_side: int, depth_range: DepthRange | None
) -> tuple[Image.Image, bool]:
    """Decode to an upright image, as `_to_mode` gives it, and say whether colors are ignored."""
    image, encoding = _open(data, is_reduced=True)
    with PillowErrors():
        colors_ignored = mode == "L" and not is_gray(image)
        image.draft(mode or "RGB", (least_side, least_side))
        check_size(*image.size)
        image.load()
        release_decoder(image)
        ImageOps.exif_transpose(image, in_place=True)  # in place: a copy of the largest image takes 256 MB
    return _to_mode(image, encoding, depth_range, mode), colors_ignored


def _shape(data: bytes) -> tuple[int, int, int]:
    image, _ = _open(data)
    with PillowErrors():
        channels = 1 if is_gray(image) else 3
        width, height = upright_size(image)  # this may decode the image, after which it tells less of its kind
        return height, width, channels


def _deep_values(data: bytes) -> NDArray[np.int32] | None:
    image, encoding = _open(data)
    if image.mode not in DEEP_MODES:
        return None
    with PillowErrors():
        image.load()
    return read_values(image, encoding)


def _open(data: bytes, *, is_reduced: bool = False) -> tuple[Image.Image, Encoding]:
    """Read the header of an image, and how it is encoded; with `is_reduced`, a JPEG may be too large as it is."""
    if not data:
        raise ImageError("the file is empty")
    with PillowErrors(_UNSUPPORTED_TIFF if data.startswith(_TIFF_SIGNATURES) else _NOT_AN_IMAGE):
        try:
            image = Image.open(io.BytesIO(data), formats=(*FORMATS, *_heif(data)))
        except Image.DecompressionBombError as error:  # Pillow's limit is above ours
            raise ImageError(TOO_MANY_PIXELS) from error
    # A progressive JPEG is decoded whole, whatever its size is to be.
    is_reduced = is_reduced and image.format in ("JPEG", "MPO") and "progressive" not in image.info
    if not is_reduced:
        check_size(*image.size)
    check_work(image, data)
    with PillowErrors(_NOT_AN_IMAGE):
        mend_tiff(image)
        mend_transparency(image)
        encoding = encoding_of(image)
    if not is_reduced:
        check_size(*encoding.tile)  # libtiff decodes complete tiles, even if only a small part lies inside the image
    return image, encoding


def _heif(data: bytes) -> tuple[str, ...]:
    """Pillow's name of the format of an iPhone's images, if these are some; it reads them by another package.

    Raises:
        ImageError: the package is missing.
    """
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS or b"avif" in data[8:64]:
        return ()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageError(f"a HEIC image, which needs another package: {INSTALL_HEIF}") from None
    register_heif_opener(thumbnails=False)
    return ("HEIF",)


def _to_mode(image: Image.Image, encoding: Encoding, depth_range: DepthRange | None, mode: str | None) -> Image.Image:
    """A decoded image in mode `L` or `RGB`, the one that is asked for or else its own.

    Where some pixels aren't opaque, it is in its own mode with transparency, `LA` or `RGBA`.
    """
    check_depth(image.mode, encoding, depth_range)
    with PillowErrors():
        image = mend_gif(image)
    if image.mode in DEEP_MODES:
        image = _to_8_bits(image, encoding, depth_range)
    elif image.mode == "F":
        raise ImageError("its pixels are floating-point numbers of unknown range")
    with PillowErrors():
        own = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        if image.has_transparency_data:
            image = convert(image, own + "A")
            if image.getchannel("A").getextrema() != (255, 255):
                return image
        return convert(image, mode or own)


def _to_8_bits(image: Image.Image, encoding: Encoding, depth_range: DepthRange | None) -> Image.Image:
    """A gray image of more than 8 bits in mode `L`; with the transparent value of a PNG, in mode `LA`."""
    shallow = to_8_bits(image, encoding, depth_range)
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        shallow.putalpha(Image.fromarray((np.asarray(image) != hidden).astype(np.uint8) * 255))
    return shallow
