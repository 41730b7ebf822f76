"""What may be given as an image: a path, bytes, an open file, a PIL image or an array."""

import os
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.errors import Argument, ImageError, InputError
from rnn_runtime.images.decode import FORMATS, Decoded, PillowErrors, TakenImage, convert_image
from rnn_runtime.images.fit import fit_pixels, to_image
from rnn_runtime.images.limits import MAX_FILE_BYTES, TOO_MANY_BYTES
from rnn_runtime.images.pillow_quirks import undecoded_file
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


def is_single_image(value: object) -> bool:
    """Whether a value is one image, and not several."""
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    return isinstance(value, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(value, "read")


def take_images(images: ImageLike | Iterable[ImageLike], spec: ImageSpec) -> Iterator[str | TakenImage]:
    """Take over one image or several, one by one, in the thread of the caller.

    Open files are read here: two of them may share one file beneath, as the members of an archive do. Pixels are
    resized here: the caller may use the same buffer for the next image.

    Args:
        images: An image, or any number of them.
        spec: Size and channels that the model takes.

    Yields:
        Paths as they are, and everything else as a `TakenImage`.

    Raises:
        InputError: A value isn't an image; the text names its position.
    """
    if is_single_image(images):
        return iter([_take(images, Argument("images"), spec)])
    if isinstance(images, np.ndarray) and not (images.ndim == 4 or (images.ndim == 1 and images.dtype.kind in "OU")):
        raise InputError(Argument("images"), f" {_describe_shape(images)}")
    try:
        iterator = iter(cast(Iterable[ImageLike], images))
    except TypeError as error:
        problem = f" must be {_EXPECTED}, or several of them, not {_type_name(images)}"
        raise InputError(Argument("images"), problem) from error
    return (_take(image, Argument(f"images[{i}]"), spec) for i, image in enumerate(iterator))


def _take(image: object, place: Argument, spec: ImageSpec) -> str | TakenImage:
    if isinstance(image, str | os.PathLike):
        return str(os.fsdecode(image))  # numpy has a subclass
    name = _name_of(image)
    try:
        return TakenImage(name, _content_of(image, place, spec))
    except ImageError as error:
        return TakenImage(name, error)


def _content_of(image: object, place: Argument, spec: ImageSpec) -> bytes | Decoded:
    if isinstance(image, bytes | bytearray | memoryview):
        _check_length(image)
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _convert_array(image, place, spec)
    if isinstance(image, Image.Image):
        return _convert_pil_image(image, place, spec)
    if hasattr(image, "read"):
        return _read_file(image, place)
    raise InputError(place, f" must be {_EXPECTED}, not {_type_name(image)}")


def _name_of(image: object) -> str:
    """The name of the file that an open file or a PIL image comes from, as far as it is known."""
    name = getattr(image, "filename" if isinstance(image, Image.Image) else "name", None)
    return os.fsdecode(name) if name and isinstance(name, str | bytes | os.PathLike) else ""


def _convert_array(pixels: NDArray[np.uint8], place: Argument, spec: ImageSpec) -> Decoded:
    if pixels.dtype != np.uint8:
        is_deep_gray = pixels.dtype in (np.uint16, np.int16) and pixels.ndim == 2
        remedy = (
            "Pass it as PIL.Image.fromarray(array)" if is_deep_gray else "Bring its values to 0 to 255 and convert it"
        )
        raise InputError(place, f" must be a uint8 array, from 0 (black) to 255 (white), not {pixels.dtype}. {remedy}")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)):
        raise InputError(place, f" {_describe_shape(pixels)}")
    if not pixels.size:
        raise ImageError("the image has no pixels")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape == spec.shape:
        (fitted,) = fit_pixels(pixels.copy()[np.newaxis], spec)
        return Decoded(fitted)
    return convert_image(to_image(pixels), spec)


def _describe_shape(pixels: NDArray[np.generic]) -> str:
    return (
        f"has shape {pixels.shape}. An image has the shape (height, width), or (height, width, channels) with 1 "
        "(gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels. Several images are a list, or have the shape (count, "
        "height, width, channels)"
    )


def _convert_pil_image(image: Image.Image, place: Argument, spec: ImageSpec) -> bytes | Decoded:
    """The image as the model takes it; or the bytes of a file that Pillow has opened and not decoded yet."""
    file = undecoded_file(image)
    if file is None or image.format not in _FILE_FORMATS:
        return convert_image(image, spec)
    with PillowErrors():  # of the file that Pillow keeps
        position = file.tell()
        file.seek(0)
    data = _read_file(file, place)
    with PillowErrors():
        file.seek(position)
    return data


def _read_file(file: BinaryFile, place: Argument) -> bytes:
    """What is left of an open file."""
    data = bytearray()
    while True:
        chunk = _read_chunk(file)
        if not isinstance(chunk, bytes | bytearray | memoryview):
            problem = f" isn't a binary file: its read() gave {_type_name(chunk)}"
            raise InputError(place, f"{problem}. Open the file in mode 'rb', or pass its bytes")
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
        raise ImageError(TOO_MANY_BYTES)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
