"""Small images in every format that a folder is searched for, encoded in memory."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.images.decode import decode_image, read_bytes
from rnn_runtime.model.spec import ImageSpec

LOSSLESS = (".png", ".bmp", ".tif", ".webp", ".ppm")


def pattern(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels, uint8 `(height, width, channels)`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encode(pixels: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """Encode gray or RGB pixels; lossless where the format can be."""
    file = io.BytesIO()
    to_image(pixels).save(file, Image.registered_extensions()[suffix], lossless=True)  # only WebP looks at it
    return file.getvalue()


def pixels_of(image: bytes | str | Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """An encoded image, or the file at a path, decoded to a model's input."""
    return decode_image(image if isinstance(image, bytes) else read_bytes(image), spec).pixels


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Pixels `(height, width, 1, 3 or 4)` as Pillow's image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file, with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
