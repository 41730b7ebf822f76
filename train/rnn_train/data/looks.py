"""What image files look like before they become the model's input: their background, and which fit suits them."""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.cores import default_threads
from rnn_runtime.images.ahead import read_each
from rnn_runtime.images.decode import decode_as_it_is, read_bytes
from rnn_runtime.images.fit import Color
from rnn_runtime.images.glyph import visible_gray
from rnn_runtime.model.spec import DepthRange

_SAMPLE = 200  # images
_SAMPLE_BYTES = 64 << 20  # of their files, which take a second or two
_SIDE = 256  # pixels, of which something visible takes a part
_FILES_PER_BATCH = 32
_BLACK: Color = (0, 0, 0)
_WHITE: Color = (255, 255, 255)
_DARK, _LIGHT = 64, 192  # of 255
_EVEN = 12.0  # of 255, the largest standard deviation along a border that shows an even background
_RATIO = 1.25  # by which an image may be wider or higher than the model's input
_MOST, _SOME, _FEW = 0.9, 0.1, 0.05  # of the files


class Look(NamedTuple):
    """What an image looks like before it is fitted.

    Attributes:
        height: In pixels, after a JPEG was decoded at a part of its size.
        width: The same.
        border: The median color of its border.
        unevenness: The standard deviation along the border, of the channel where it is largest.
        visible: The mean gray of its visible pixels, 0 to 255, each counted by its opacity; None for opaque images.
    """

    height: int
    width: int
    border: Color
    unevenness: float
    visible: float | None


def look_at(paths: Sequence[str], depth_range: DepthRange | None) -> list[Look]:
    """Look at a sample of image files, evenly spaced, of fewer where they are large. Unreadable ones are left out.

    Args:
        paths: The files.
        depth_range: As in `ImageSpec`.
    """
    sample = paths[:: -(-len(paths) // _SAMPLE)]
    size = sum(os.path.getsize(path) for path in sample if os.path.exists(path))
    sample = sample[:: -(-size // _SAMPLE_BYTES) or 1]
    look = partial(_look, depth_range=depth_range)
    looks = read_each(look, sample, batch_size=_FILES_PER_BATCH, threads=default_threads())
    return [look for _, look in looks if isinstance(look, Look)]


def find_background(looks: Sequence[Look]) -> Color:
    """The color to put behind transparent pixels, and around images that are padded.

    White or black, whichever the visible pixels of transparent images stand out from. Without such images, the median
    color of the borders.
    """
    visible = [look.visible for look in looks if look.visible is not None]
    if visible:
        return _WHITE if np.mean(visible) < 128 else _BLACK
    if not looks:
        return _BLACK
    red, green, blue = np.median([look.border for look in looks], axis=0).astype(int).tolist()
    return red, green, blue


def border_color(images: NDArray[np.uint8]) -> Color:
    """The median color of the borders of a sample of images, uint8 `(images, height, width, channels)`."""
    sample = images[:: -(-len(images) // _SAMPLE)]
    edges = np.concatenate([sample[:, 0], sample[:, -1], sample[:, :, 0], sample[:, :, -1]], axis=1)
    red, green, blue = np.broadcast_to(np.median(edges, axis=(0, 1)).astype(int), 3).tolist()
    return red, green, blue


def suggest_fit(looks: Sequence[Look], image_size: tuple[int, int] | None) -> str | None:
    """Name another way to fit images than `stretch`, if their looks speak for it.

    Args:
        looks: A sample of the images.
        image_size: Height and width of the model's input, if they were chosen.

    Returns:
        A sentence with the figures; None if nothing speaks for another way.
    """
    count = len(looks)
    transparent = sum(look.visible is not None for look in looks)
    even = [max(look.border) for look in looks if look.visible is None and look.unevenness <= _EVEN]
    dark, light = sum(value < _DARK for value in even), sum(value > _LIGHT for value in even)
    reason = fit = None
    if count and transparent >= _MOST * count:
        reason, fit = f"{transparent} have a transparent background", "glyph"
    elif count and transparent + len(even) >= _MOST * count and min(dark, light) >= _FEW * count:
        reason, fit = f"{dark} have a dark and {light} a light background", "glyph"
    elif image_size:
        height, width = image_size
        odd = sum(abs(math.log(look.width * height / (look.height * width))) > math.log(_RATIO) for look in looks)
        if count and odd >= _SOME * count:
            reason, fit = f"{odd} change their aspect ratio by more than a quarter", "pad"
    if fit is None:
        return None
    purpose = "made for one sign per image" if fit == "glyph" else "which keeps it"
    return f"Of {count} images looked at, {reason}. Consider --fit {fit}, {purpose}"


def _look(path: str, depth_range: DepthRange | None) -> Look:
    image = decode_as_it_is(read_bytes(path), _SIDE, depth_range)
    width, height = image.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    border = np.concatenate([np.asarray(image.crop(edge).convert("RGB")).reshape(-1, 3) for edge in edges])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    visible = None
    if image.mode not in ("L", "RGB"):
        small = image.resize((min(width, _SIDE), min(height, _SIDE)), Image.Resampling.NEAREST)
        colors = np.asarray(small.convert("RGBA"))
        visible = visible_gray(colors[..., :3].astype(np.float64), colors[..., 3] / 255)
    return Look(height, width, (red, green, blue), float(border.std(axis=0).max()), visible)
