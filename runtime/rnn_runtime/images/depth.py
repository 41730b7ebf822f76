"""Gray images of more than 8 bits per pixel, and how their values become 8 bits.

Microscopes, cameras and scanners write 16 bits per pixel and use what their sensors give: 0 to 4095, say.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from rnn_runtime.errors import ImageError
from rnn_runtime.model.spec import DEEPEST, FEWEST_GRAYS, DepthRange

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I")  # Pillow may hold 16 bits as 32-bit integers ("I")
_LEAST, _MOST = DEEPEST
_REMEDY = "Choose a depth range in training: rnn-train --depth-range auto, or two values such as 0-4095"
# Tags of TIFF 6.0, and two of their values.
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_MAX_COLOR = 255
_MAXVAL = "maxval"  # in the `info` of an image: the value of white in a PGM
_FULL = (0, _MOST)
_BLOCK = 1 << 20  # pixels


def read_values(image: Image.Image) -> NDArray[np.int32]:
    """The values of an image in one of `DEEP_MODES`, as they are in the file.

    Args:
        image: The image. Of a TIFF, it still has its tags; of a PGM, what `keep_maxval` has found.

    Returns:
        int32, shape `(height, width)`; larger values are brighter, also where the file has it the other way round.

    Raises:
        ImageError: they have more than 16 bits.
    """
    values = _read_scaled(image)
    most = image.info.get(_MAXVAL, _MOST)
    if most < _MOST:  # undone to the nearest, which gives the file's values: there are fewer of them
        unsigned = values.view(np.uint32)
        unsigned *= most
        unsigned += _MOST // 2
        unsigned //= _MOST
    return values


def _read_scaled(image: Image.Image) -> NDArray[np.int32]:
    """The same, but for the values of a PGM, which Pillow brings to 0 to 65535."""
    values = np.asarray(image).astype(np.int32)
    if values.min() < _LEAST or values.max() > _MOST:
        raise ImageError("its pixels have more than 16 bits")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts those of 8 bits and fewer
        np.subtract(_largest_value(image), values, out=values)
    return values


def to_8_bits(image: Image.Image, depth_range: DepthRange | None) -> Image.Image:
    """Bring an image in one of `DEEP_MODES` to mode `L`.

    Args:
        image: As for `read_values`.
        depth_range: The values that become black and white, as in `ImageSpec`. None for all values that the file's
            bits can hold, which must leave enough grays.

    Raises:
        ImageError: its values have more than 16 bits. With a range: all are beyond it. Without one: some are negative,
            or they leave few grays of many.
    """
    values = _read_scaled(image) if depth_range in (None, _FULL) else read_values(image)
    low, high = depth_range or (0, _largest_value(image))
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


def keep_maxval(image: ImageFile.ImageFile) -> None:
    """Let `read_values` know which value is white in a PGM of more than 8 bits.

    Args:
        image: The image, not decoded yet.
    """
    for tile in image.tile if image.mode == "I" else ():
        if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple):
            image.info[_MAXVAL] = tile.args[-1]


def check_signs(image: Image.Image) -> None:
    """Refuse signed numbers of 8 bits, which Pillow gives as unsigned: -1 as white.

    Args:
        image: The image. Of a TIFF, it still has its tags.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode not in (*DEEP_MODES, "F") and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError("its pixels are signed numbers of 8 bits")


def check_color_depth(image: Image.Image, depth_range: DepthRange | None) -> None:
    """Check that a range isn't ignored: of colors and transparent images, Pillow gives the upper 8 of 16 bits.

    Args:
        image: The image, not decoded yet.
        depth_range: As for `to_8_bits`.

    Raises:
        ImageError: the image has more than 8 bits per channel, and another mode than `DEEP_MODES`.
    """
    if depth_range in (None, _FULL) or image.mode in DEEP_MODES:
        return
    for tile in getattr(image, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        most = arguments[-1] if tile.codec_name.startswith("ppm") else 0
        if most > _MAX_COLOR or any(";16" in argument for argument in arguments if isinstance(argument, str)):
            raise ImageError("it has 16 bits in color or with transparency, and a depth range is for gray images")


def _largest_value(image: Image.Image) -> int:
    """The largest value that an image's bits can hold; half of it is negative for signed numbers."""
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    if tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        bits -= 1
    return int(2 ** max(8, min(bits, 16))) - 1
