"""Small images in every format that a folder is searched for, encoded in memory."""

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

LOSSLESS = (".png", ".bmp", ".tif", ".webp", ".ppm")


def pattern(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels, uint8 `(height, width, channels)`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encode(pixels: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """Encode gray or RGB pixels; lossless where the format can be."""
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []  # above 100 is lossless
    done, data = cv2.imencode(suffix, pixels[:, :, ::-1], options)
    assert done
    return data.tobytes()


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
