"""Limits on images. A small file can claim far more memory or time than any real image takes."""

import re

from PIL import Image

from rnn_runtime.errors import ImageError

MAX_FILE_BYTES = 512 << 20  # the largest image as 16-bit RGB takes 400 MB
MAX_PIXELS = 1 << 26  # 67 million, 8192 x 8192
MAX_DECODED_SIDE = 1 << 20  # pixels; beyond, tables of rows and weights for resizing take more memory than the pixels
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten, and each scan decodes the whole image
MAX_COMMENTS = (
    1000  # of a plain PPM; Pillow copies up to a megabyte per comment, and a megabyte holds half a million comments
)

TOO_MANY_BYTES = f"the file has more than {MAX_FILE_BYTES} bytes, the limit"
TOO_MANY_PIXELS = f"the image has more than {MAX_PIXELS} pixels, the limit"

_PLAIN_FORMATS = (b"P1", b"P2", b"P3")  # PBM, PGM and PPM of plain text
# Markers followed by a length, and the end marker. Restart markers and escaped FF bytes have no length.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA


def check_size(width: int, height: int) -> None:
    """Check the size that an image's header claims, before its pixels are decoded.

    Raises:
        ImageError: The image has more than `MAX_PIXELS`, or a side longer than `MAX_DECODED_SIDE`.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(TOO_MANY_PIXELS)
    if max(width, height) > MAX_DECODED_SIDE:
        raise ImageError(f"the image has a side of more than {MAX_DECODED_SIDE} pixels, the limit")


def check_work(image: Image.Image, data: bytes) -> None:
    """Check what else makes decoding expensive.

    Args:
        image: What `PIL.Image.open` returned for `data`, not decoded yet.
        data: The file.

    Raises:
        ImageError: A JPEG has more than `MAX_SCANS`, or a PPM more than `MAX_COMMENTS`.
    """
    if image.format in ("JPEG", "MPO") and "progressive" in image.info and _count_scans(data) > MAX_SCANS:
        raise ImageError(f"the JPEG has more than {MAX_SCANS} scans, the limit")
    if data.startswith(_PLAIN_FORMATS) and data.count(b"#") > MAX_COMMENTS:
        raise ImageError(f"the file has more than {MAX_COMMENTS} comments, the limit")


def _count_scans(data: bytes) -> int:
    """Count a JPEG's scans, up to `MAX_SCANS` + 1, without those of a thumbnail or of anything after its end."""
    scans = position = 0
    while scans <= MAX_SCANS and (marker := _JPEG_MARKER.search(data, position)) and marker[1][0] != _END_OF_IMAGE:
        scans += marker[1][0] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans
