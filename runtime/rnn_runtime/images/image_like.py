"""What may be given as an image: a path, bytes, an open file, a PIL image or an array."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from rnn_runtime.errors import ImageError, InputError
from rnn_runtime.images.decode import FORMATS, PillowErrors, convert_image, decode_image, read_image, reported, to_image
from rnn_runtime.images.limits import MAX_FILE_BYTES
from rnn_runtime.model.spec import ImageSpec


class BinaryFile(Protocol):
    """An open binary file, or anything else whose `read` returns bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none at the end."""
        ...


ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | NDArray[np.uint8]
)

_EXPECTED = "a path, bytes, an open binary file, a PIL image or a uint8 array"
_CHANNELS = (1, 2, 3, 4)  # gray, gray and alpha, RGB, RGBA
_FILE_FORMATS = (*FORMATS, "MPO")  # Pillow's name for a JPEG with more images behind it
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class TakenImage:
    """An image that was given as something other than a path.

    Attributes:
        name: The name of its file; empty where it isn't known.
        content: The encoded image, the pixels that the model takes, or what is wrong with it.
    """

    name: str
    content: bytes | NDArray[np.uint8] | ImageError


def is_single_image(value: object) -> bool:
    """Whether a value is one image, and not several."""
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    return isinstance(value, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(value, "read")


def take_images(images: Iterable[ImageLike], spec: ImageSpec) -> Iterator[str | TakenImage]:
    """Take over images one by one, in the thread of the caller.

    Open files are read here: two of them may share one file beneath, as the members of an archive do. Pixels are
    resized here: the caller may use the same buffer for the next image.

    Args:
        images: Any number of images.
        spec: Size and channels that the model takes.

    Yields:
        Paths as they are, everything else as a `TakenImage`, both for `read_taken`.

    Raises:
        InputError: a value is no image; the text names its position.
    """
    if isinstance(images, np.ndarray) and not (images.ndim == 4 or (images.ndim == 1 and images.dtype.kind in "OU")):
        raise InputError(f"`images` {_describe_shape(images)}")
    try:
        iterator = iter(images)
    except TypeError:
        raise InputError(f"`images` must be {_EXPECTED}, or several of them, not {_type_name(images)}") from None
    return (_take(image, f"`images[{i}]`", spec) for i, image in enumerate(iterator))


def take_image(image: ImageLike, spec: ImageSpec) -> str | TakenImage:
    """Take over a single image; as `take_images`."""
    return _take(image, "`images`", spec)


def read_taken(image: str | TakenImage, spec: ImageSpec) -> NDArray[np.uint8]:
    """The pixels of an image that was taken over; may be called in any thread.

    Returns:
        uint8, shape `(spec.height, spec.width, spec.channels)`.

    Raises:
        ImageError: it can't be read or decoded.
    """
    if not isinstance(image, TakenImage):
        return read_image(image, spec)
    if isinstance(image.content, ImageError):
        raise image.content
    return decode_image(image.content, spec) if isinstance(image.content, bytes) else image.content


def _take(image: ImageLike, place: str, spec: ImageSpec) -> str | TakenImage:
    if isinstance(image, str):
        return str(image)  # numpy has a subclass
    name = _name_of(image)
    try:
        if isinstance(image, bytes | bytearray | memoryview):
            _check_length(image)
            return TakenImage(name, bytes(image))
        if isinstance(image, np.ndarray):
            return TakenImage(name, _convert_array(image, place, spec))
        if isinstance(image, Image.Image):
            return TakenImage(name, _convert_pil_image(image, place, spec))
        if isinstance(image, os.PathLike):
            return os.fsdecode(image)
        if hasattr(image, "read"):
            return TakenImage(name, _read_file(image, place))
    except ImageError as error:
        return TakenImage(name, reported(error, name))
    raise InputError(f"{place} must be {_EXPECTED}, not {_type_name(image)}")


def _name_of(image: object) -> str:
    """The name of the file that an open file or a PIL image comes from, as far as it is known."""
    name = getattr(image, "filename" if isinstance(image, Image.Image) else "name", None)
    return os.fsdecode(name) if name and isinstance(name, str | bytes | os.PathLike) else ""


def _convert_array(pixels: NDArray[np.uint8], place: str, spec: ImageSpec) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        is_deep_gray = pixels.dtype in (np.uint16, np.int16) and pixels.ndim == 2
        remedy = (
            "Pass it as PIL.Image.fromarray(array)" if is_deep_gray else "Bring its values to 0 to 255 and convert it"
        )
        raise InputError(f"{place} must be a uint8 array, from 0 (black) to 255 (white), not {pixels.dtype}. {remedy}")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)):
        raise InputError(f"{place} {_describe_shape(pixels)}")
    if not pixels.size:
        raise ImageError("the image has no pixels")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels.copy() if pixels.shape == spec.shape else convert_image(to_image(pixels), spec)


def _describe_shape(pixels: NDArray[np.generic]) -> str:
    return (
        f"has shape {pixels.shape}. An image has the shape (height, width), or (height, width, channels) with 1 "
        "(gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels. Several images are a list, or have the shape (count, "
        "height, width, channels)"
    )


def _convert_pil_image(image: Image.Image, place: str, spec: ImageSpec) -> bytes | NDArray[np.uint8]:
    """Pixels; or, of an image whose file Pillow has opened and not decoded yet, the bytes of that file."""
    # `_im` is None until the pixels are decoded; Pillow has no public name for that.
    if isinstance(image, ImageFile.ImageFile) and getattr(image, "_im", None) is None:
        if image.fp is None or getattr(image.fp, "closed", False):
            raise ImageError("its file was closed before it was decoded")
        with PillowErrors():
            if image.tell() == 0 and image.format in _FILE_FORMATS:
                position = image.fp.tell()
                image.fp.seek(0)
                try:
                    return _read_file(image.fp, place)
                finally:
                    image.fp.seek(position)
    return convert_image(image, spec)


def _read_file(file: BinaryFile, place: str) -> bytes:
    """What is left of an open file."""
    data = bytearray()
    while True:
        chunk = _read_chunk(file)
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise InputError(
                f"{place} is no binary file: its read() gave {_type_name(chunk)}. Open the file in mode 'rb', or "
                "pass its bytes"
            )
        if not chunk:
            break
        data += chunk
        _check_length(data)
    if not data and _is_read_already(file):
        raise ImageError("the file was read to its end already. Rewind it with seek(0)")
    return bytes(data)


def _read_chunk(file: BinaryFile) -> object:
    try:
        return file.read(_CHUNK)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # it is closed
        raise ImageError(str(error)) from error
    except Exception as error:  # members of archives raise exceptions of many kinds
        raise ImageError(f"can't be read ({type(error).__name__}: {error})") from error


def _is_read_already(file: BinaryFile) -> bool:
    try:
        return bool(file.tell())  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return False


def _check_length(data: bytes | bytearray | memoryview) -> None:
    if memoryview(data).nbytes > MAX_FILE_BYTES:
        raise ImageError(f"the file has more than {MAX_FILE_BYTES} bytes, the limit")


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
