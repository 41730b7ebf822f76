"""A fast path for small PNG files, without the work that Pillow does around its decoder."""

import struct

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray

_SMALL_PNG = 1 << 15  # bytes
_MOST_PACKED = 1032  # deflate's largest ratio (zlib's technical details); a PNG that claims more isn't complete
_ORIENTING = (b"eXIf", b"iTXt", b"Raw profile type")  # chunks that may hold an orientation


def decode_small_png(data: bytes) -> NDArray[np.uint8] | None:
    """Decode a small PNG of 8 bits, gray or RGB; None for all other files.

    On images of 28 x 28, Pillow takes ten times as long (docs/explanation/measurements.md). A PNG holds exact values,
    so both give the same pixels, uint8 `(height, width, 1 or 3)`. A damaged file is left to Pillow, which says what is
    wrong.
    """
    if not 26 <= len(data) <= _SMALL_PNG or not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    mode = {(8, 0): "mono", (8, 2): "rgb"}.get((bits, color))
    if mode is None or width * height > _MOST_PACKED * len(data) or any(name in data for name in _ORIENTING):
        return None
    try:
        pixels: NDArray[np.uint8] = decode_image_png_u8(data, (height, width), mode)
    except Exception:  # kornia has no exception class of its own
        return None
    return pixels
