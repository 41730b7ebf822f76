"""Files that claim, or would take, far more memory or time than their size lets expect."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.images.limits import MAX_COMMENTS, MAX_DECODED_SIDE, MAX_PIXELS, MAX_SCANS, TOO_MANY_PIXELS
from tests.support.encoded_images import png_chunk

NOT_AN_IMAGE = "not an image in a supported format, or damaged"
UNSUPPORTED_TIFF = "an unsupported kind of TIFF, or a damaged one"
DAMAGED = "a damaged image, or an unsupported kind"
TOO_LONG = f"the image has a side of more than {MAX_DECODED_SIDE} pixels, the limit"
TOO_MANY_SCANS = f"the JPEG has more than {MAX_SCANS} scans, the limit"
TOO_MANY_COMMENTS = f"the file has more than {MAX_COMMENTS} comments, the limit"

ZEROS = 30_000_000  # bytes, which deflate to 29 KB
SIDE = 8192
assert SIDE * SIDE == MAX_PIXELS


def save(image: Image.Image, style: str, **options: object) -> bytes:
    """Encode an image in a format by Pillow's name."""
    file = io.BytesIO()
    image.save(file, style, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, color: int = 0) -> bytes:
    """A PNG made of parts; without an IDAT among them, its pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def tiff(entries: list[tuple[int, int, int, int]], rest: bytes, order: str = "<") -> bytes:
    """A TIFF of one directory with `(tag, type, count, value or offset)`, and `rest` behind it.

    `order` is that of its bytes, for `struct`.
    """
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    directory = b"".join(
        struct.pack(f"{order}HHI", *entry[:3]) + struct.pack(order + {1: "B3x", 3: "H2x"}.get(entry[1], "I"), entry[3])
        if entry[2] == 1
        else struct.pack(f"{order}HHII", *entry)
        for entry in sorted(entries)
    )
    return start + struct.pack(f"{order}IH", 8, len(entries)) + directory + bytes(4) + rest


def gray_tiff(width: int, height: int, *more: tuple[int, int, int, int], compression: int = 1) -> bytes:
    """A TIFF with the tags that a gray image needs, and zeros behind it, deflated."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    return tiff([*tags, (277, 3, 1, 1), *more], zlib.compress(bytes(1_000_000)))


def deep_tiff(
    values: NDArray[np.integer],
    *,
    bits: int = 16,
    signed: bool = False,
    white_is_zero: bool = False,
    order: str = "<",
    compression: int = 1,
) -> bytes:
    """A gray TIFF of 8, 12 or 16 bits per pixel, `values` of shape `(height, width)`, with an even width.

    `order` is that of its bytes, for `struct`; `compression` 1 is none, 8 is deflate.
    """
    height, width = values.shape
    if bits == 12:
        first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = values.astype(f"{order}{'i' if signed else 'u'}{bits // 8}").tobytes()
    pixels = zlib.compress(pixels) if compression == 8 else pixels
    behind_tags = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression)]
    tags += [(262, 3, 1, 0 if white_is_zero else 1), (273, 4, 1, behind_tags), (277, 3, 1, 1), (278, 4, 1, height)]
    return tiff([*tags, (279, 4, 1, len(pixels)), (339, 3, 1, 2 if signed else 1)], pixels, order)


def planar_tiff(values: NDArray[np.integer], order: str = "<", compression: int = 1) -> bytes:
    """A TIFF of RGB with 16 bits, one plane per color; `values` `(height, width, 3)`, else as for `deep_tiff`."""
    height, width, _ = values.shape
    planes = [values[:, :, i].astype(f"{order}u2").tobytes() for i in range(3)]
    planes = [zlib.compress(plane) for plane in planes] if compression == 8 else planes
    at = 8 + 2 + 10 * 12 + 4
    starts = [at + 30 + sum(map(len, planes[:i])) for i in range(3)]
    behind = struct.pack(f"{order}3H3I3I", 16, 16, 16, *starts, *map(len, planes))
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at), (259, 3, 1, compression), (262, 3, 1, 2)]
    tags += [(273, 4, 3, at + 6), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 3, at + 18), (284, 3, 1, 2)]
    return tiff(tags, behind + b"".join(planes), order)


def premultiplied_tiff(pixels: NDArray[np.uint8]) -> bytes:
    """A TIFF of gray pixels `(height, width, 1)` that are multiplied by an alpha of 255."""
    height, width, _ = pixels.shape
    content = np.concatenate([pixels, np.full_like(pixels, 255)], axis=2).tobytes()
    behind_tags = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 2, 8 | 8 << 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, behind_tags), (277, 3, 1, 2), (278, 4, 1, height), (279, 4, 1, len(content))]
    return tiff([*tags, (338, 3, 1, 1)], content)


def palette_tiff(pixels: NDArray[np.uint8], colors: NDArray[np.integer]) -> bytes:
    """A TIFF of pixels `(height, width, 1)` in a palette of `colors` `(256, 3)`, which belong to 16 bits."""
    height, width, _ = pixels.shape
    behind_tags = 8 + 2 + 9 * 12 + 4
    content = colors.T.astype("<u2").tobytes() + pixels.tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 3)]
    tags += [(273, 4, 1, behind_tags + 256 * 6), (278, 4, 1, height), (279, 4, 1, pixels.size)]
    return tiff([*tags, (320, 3, 768, behind_tags)], content)


def float_tiff(bits: int, channels: int = 1) -> bytes:
    """A TIFF of 8 x 8 floating-point zeros."""
    behind_tags = 8 + 2 + 10 * 12 + 4
    size = 64 * channels * bits // 8
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1 if channels == 1 else 2)]
    tags += [(273, 4, 1, behind_tags), (277, 3, 1, channels), (278, 4, 1, 8), (279, 4, 1, size), (339, 3, 1, 3)]
    return tiff(tags, bytes(size))


def tiled_tiff(side: int, compression: int) -> bytes:
    """A TIFF of 64 x 64 in one square tile of any size."""
    behind_tags = 8 + 2 + 10 * 12 + 4
    tile = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, behind_tags), (325, 4, 1, 900)]
    return gray_tiff(64, 64, *tile, compression=compression)


def rle_bmp(width: int, height: int, pixels: bytes) -> bytes:
    """A BMP of 256 colors, run-length encoded."""
    start = 14 + 40 + 1024
    header = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return (
        header
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
        + bytes(1024)
        + pixels
    )


def webp(width: int, height: int) -> bytes:
    """A WebP whose canvas is of any size, with 8 x 8 pixels."""
    canvas = b"VP8X" + struct.pack("<I4x", 10) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = save(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(frame)) + b"WEBP" + canvas + frame


def gray_gif(pixels: NDArray[np.uint8]) -> bytes:
    """A GIF of fewer than 200 gray pixels `(height, width, 1)`: a gray palette of its own beside one of colors."""
    height, width, _ = pixels.shape
    # Codes of 9 bits: 256 begins, 257 ends, and the others stand for a pixel each, so nothing is compressed.
    codes = sum(code << 9 * i for i, code in enumerate([256, *pixels.ravel().tolist(), 257]))
    packed = codes.to_bytes((9 * (pixels.size + 2) + 7) // 8, "little")
    colors, grays = bytes([200, 10, 30, 0, 255, 0] * 128), bytes(value for value in range(256) for _ in "rgb")
    screen = struct.pack("<HHBBB", width, height, 0b11110111, 0, 0) + colors
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0b10000111) + grays
    return b"GIF89a" + screen + frame + bytes([8, len(packed)]) + packed + b"\0;"


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = save(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:start] + data[start:end] * count + data[end:]


def jpeg_with(segment: bytes, marker: int) -> bytes:
    """A JPEG of 8 x 8 with an application's segment in its header."""
    data = save(Image.new("L", (8, 8), 128), "JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", 2 + len(segment)) + segment + data[2:]


def overlapping_tags(count: int, size: int, kind: int = 7) -> bytes:
    """A directory whose tags all claim the same `size` bytes, as values of a TIFF type."""
    width = {5: 8, 7: 1}[kind]
    return tiff([(30_000 + i, kind, size // width, 0) for i in range(count)], bytes(size))


def _replace(data: bytes, old: tuple[int, ...], new: tuple[int, ...]) -> bytes:
    pattern = f"<{len(old)}H"
    return data.replace(struct.pack(pattern, *old), struct.pack(pattern, *new), 1)


def _gif() -> bytes:
    return save(Image.new("P", (8, 8)), "GIF")


@cache
def _packed() -> bytes:
    return zlib.compress(bytes(ZEROS), 9)


_MEGABYTE = zlib.compress(bytes(1 << 20), 9)

# What each is made by, and what is said of it; None where it gives pixels like any image.
BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "50000x50000.png": (lambda: png(50_000, 50_000, (b"IDAT", _packed()[:9_000]), bits=1), TOO_MANY_PIXELS),
    "wide.png": (lambda: png(MAX_PIXELS, 1, (b"IDAT", _packed())), TOO_LONG),
    "tall.png": (lambda: png(1, MAX_PIXELS, (b"IDAT", _packed())), TOO_LONG),
    "half-empty.png": (lambda: png(SIDE, SIDE, (b"IDAT", _packed())), DAMAGED),
    "half-empty-rgb.png": (lambda: png(SIDE, SIDE, (b"IDAT", _packed()), color=2), DAMAGED),
    "text.png": (lambda: png(8, 8, (b"zTXt", b"a\0\0" + _packed()), (b"IDAT", _packed())), None),
    "texts.png": (
        lambda: png(8, 8, *[(b"zTXt", b"a%d\0\0" % i + _MEGABYTE) for i in range(300)]),
        NOT_AN_IMAGE,
    ),
    "international-text.png": (lambda: png(8, 8, (b"iTXt", b"a\0\1\0\0\0" + _packed())), NOT_AN_IMAGE),
    "color-profile.png": (
        lambda: png(8, 8, (b"iCCP", b"a\0\0" + _packed() + bytes(40_000)), (b"IDAT", _packed())),
        None,
    ),
    "pixels-too-many.png": (lambda: png(8, 8, (b"IDAT", _packed())), None),
    "exif.png": (
        lambda: png(8, 8, (b"eXIf", overlapping_tags(5_000, 1_000_000)), (b"IDAT", zlib.compress(bytes(72)))),
        None,
    ),
    "claim.jpg": (
        lambda: save(Image.new("L", (65_500, 1)), "JPEG").replace(
            struct.pack(">HH", 1, 65_500), struct.pack(">HH", 65_500, 65_500), 1
        ),
        TOO_MANY_PIXELS,
    ),
    "scans.jpg": (lambda: jpeg_of_scans(1_000), TOO_MANY_SCANS),
    "exif.jpg": (lambda: jpeg_with(b"Exif\0\0" + overlapping_tags(2_000, 40_000), 0xE1), None),
    "pictures.jpg": (lambda: jpeg_with(b"MPF\0" + overlapping_tags(3_000, 20_000, kind=5), 0xE2), None),
    "claim.gif": (lambda: _replace(_gif(), (8, 8), (50_000, 50_000)), TOO_MANY_PIXELS),
    "frame.gif": (lambda: _replace(_gif(), (0, 0, 8, 8), (0, 0, 50_000, 50_000)), TOO_MANY_PIXELS),
    "comments.gif": (lambda: _gif().replace(b",", b"!\xfe\x01a\0" * 500_000 + b",", 1), None),
    "claim.bmp": (lambda: rle_bmp(50_000, 50_000, b"\0\0"), TOO_MANY_PIXELS),
    "wide.bmp": (lambda: rle_bmp(60_000_000, 1, b"\0\2\0\xff" * 10), TOO_LONG),
    "claim.tif": (lambda: gray_tiff(50_000, 50_000, (273, 4, 1, 8), (279, 4, 1, 1_000)), TOO_MANY_PIXELS),
    "tags.tif": (lambda: overlapping_tags(5_000, 1_000_000), UNSUPPORTED_TIFF),
    "tiles-lzw.tif": (lambda: tiled_tiff(40_000, compression=5), TOO_MANY_PIXELS),
    "tiles-deflate.tif": (lambda: tiled_tiff(40_000, compression=8), TOO_MANY_PIXELS),
    "tiles-packbits.tif": (lambda: tiled_tiff(40_000, compression=32773), TOO_MANY_PIXELS),
    "claim.webp": (lambda: webp(50_000, 50_000), TOO_MANY_PIXELS),
    "canvas.webp": (lambda: webp(12_000, 12_000), NOT_AN_IMAGE),
    "exif.webp": (lambda: save(Image.new("RGB", (8, 8)), "WEBP", exif=overlapping_tags(5_000, 1_000_000)), None),
    "claim.ppm": (lambda: b"P6 50000 50000 255\n" + bytes(1_000), TOO_MANY_PIXELS),
    "half-empty.ppm": (lambda: b"P6 8192 8192 255\n" + bytes(1_000), DAMAGED),
    "comments.ppm": (lambda: b"P3 8 8 255\n" + b"#\n" * 2_000_000 + b"7 " * 192, TOO_MANY_COMMENTS),
}
