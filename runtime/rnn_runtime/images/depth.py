"""Gray images of more than 8 bits per pixel, and how their values become 8 bits.

Microscopes, cameras and scanners write 16 bits per pixel and use what their sensors give: 0 to 4095, say.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.errors import ImageError
from rnn_runtime.images.pillow_quirks import DEEP_MODES, Encoding
from rnn_runtime.model.spec import DEEPEST, FEWEST_GRAYS, DepthRange

_LEAST, _MOST = DEEPEST
_REMEDY = "Choose a depth range in training: rnn-train --depth-range auto, or two values such as 0-4095"
_FULL = (0, _MOST)
_BLOCK = 1 << 20  # pixels


def check_depth(mode: str, encoding: Encoding, depth_range: DepthRange | None) -> None:
    """Check that Pillow gives the values that a file has.

    Args:
        mode: Pillow's mode of the image.
        encoding: How the image is encoded.
        depth_range: The values that become black and white, as in `ImageSpec`.

    Raises:
        ImageError: The values are signed and of 8 bits; or there is a range, and the image has more than 8 bits per
            channel in color or with transparency, of which Pillow gives the upper 8.
    """
    if mode in DEEP_MODES:
        return
    if encoding.is_signed and mode != "F":
        raise ImageError("its pixels are signed numbers of 8 bits")
    if encoding.is_deep_color and depth_range not in (None, _FULL):
        raise ImageError("it has 16 bits in color or with transparency, and a depth range is for gray images")


def read_values(image: Image.Image, encoding: Encoding, *, scaled: bool = False) -> NDArray[np.int32]:
    """The values of an image in one of `DEEP_MODES`, as they are in the file.

    Args:
        image: The image, decoded.
        encoding: How it was encoded.
        scaled: Leave the values of a PGM as Pillow gives them, from 0 to 65535.

    Returns:
        int32, shape `(height, width)`; larger values are brighter, even where the file has it the other way round.

    Raises:
        ImageError: They have more than 16 bits.
    """
    values = np.asarray(image).astype(np.int32)
    if values.min() < _LEAST or values.max() > _MOST:
        raise ImageError("its pixels have more than 16 bits")
    if encoding.white_is_zero:
        np.subtract(encoding.largest, values, out=values)
    if encoding.maxval and not scaled:  # undone to the nearest, which gives the file's values: there are fewer of them
        unsigned = values.view(np.uint32)
        unsigned *= encoding.maxval
        unsigned += _MOST // 2
        unsigned //= _MOST
    return values


def to_8_bits(image: Image.Image, encoding: Encoding, depth_range: DepthRange | None) -> Image.Image:
    """Bring an image in one of `DEEP_MODES` to mode `L`.

    Args:
        image: The image, decoded.
        encoding: How it was encoded.
        depth_range: The values that become black and white, as in `ImageSpec`. None for all values that the file's
            bits can hold, which must leave enough grays.

    Raises:
        ImageError: Its values have more than 16 bits. With a range: all are beyond it. Without one: some are negative,
            or they leave few grays of many.
    """
    values = read_values(image, encoding, scaled=depth_range in (None, _FULL))
    low, high = depth_range or (0, encoding.largest)
    darkest, brightest = int(values.min()), int(values.max())
    if depth_range is None and darkest < 0:
        raise ImageError(f"its values are from {darkest} to {brightest}, some below 0. {_REMEDY}")
    if darkest > high or brightest < low:
        raise ImageError(
            f"all its values, from {darkest} to {brightest}, are beyond the depth range {low}-{high}. "
            "Choose a range in training that holds them: rnn-train --depth-range auto, or two values"
        )
    grays = _grays(high - low + 1)
    np.clip(values, low, high, out=values)
    values -= low
    pixels, seen = np.empty(values.size, np.uint8), np.zeros(len(grays), np.bool_)
    for start in range(0, values.size, _BLOCK):  # NumPy takes 8 bytes per index, for all of them at a time
        block = values.ravel()[start : start + _BLOCK]
        pixels[start : start + _BLOCK] = grays[block]
        seen[block] = True
    kept = np.unique(grays[seen])
    left = int(kept[-1]) - int(kept[0]) + 1
    if depth_range is None and left < FEWEST_GRAYS and np.count_nonzero(seen) > len(kept):
        raise ImageError(
            f"its values are from {darkest} to {brightest} of {high}, which leaves {left} of 256 grays. {_REMEDY}"
        )
    return Image.fromarray(pixels.reshape(values.shape))


@lru_cache
def _grays(count: int) -> NDArray[np.uint8]:
    """The gray, 0 to 255, of each value of a range."""
    return (np.arange(count, dtype=np.int64) * 256 // count).astype(np.uint8)
