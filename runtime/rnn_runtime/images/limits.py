"""What an image file may ask for: a small one may claim far more memory or time than any real image takes."""

import re

from PIL import Image

from rnn_runtime.errors import ImageError

MAX_FILE_BYTES = 512 << 20  # the pixels of the largest image, RGB of 16 bits, take 400 MB
MAX_PIXELS = 1 << 26  # 67 million, 8192 x 8192
MAX_DECODED_SIDE = 1 << 20  # pixels; beyond, tables of rows and of weights for resizing take more than the pixels do
MAX_SCANS = 100  # of a progressive JPEG; encoders write some ten, and each goes over the whole image
MAX_COMMENTS = 1000  # of a plain PPM; Pillow moves a megabyte for each, and a megabyte holds half a million

TOO_MANY_PIXELS = f"the image has more than {MAX_PIXELS} pixels, the most that is decoded"

_PLAIN_FORMATS = (b"P1", b"P2", b"P3")  # PBM, PGM and PPM of plain text
# Markers that a length follows, and the end; not those of restarts, and of FF that is data, which have none.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF 6.0


def check_size(width: int, height: int) -> None:
    """Check the size that an image's header claims, before its pixels are decoded.

    Raises:
        ImageError: it has more than `MAX_PIXELS`, or a side longer than `MAX_DECODED_SIDE`.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(TOO_MANY_PIXELS)
    if max(width, height) > MAX_DECODED_SIDE:
        raise ImageError(f"the image has a side of more than {MAX_DECODED_SIDE} pixels, the most that is decoded")


def check_work(image: Image.Image, data: bytes) -> None:
    """Check what else decoding an image would take.

    Args:
        image: As `PIL.Image.open` made it of `data`, its pixels not decoded yet.
        data: The file.

    Raises:
        ImageError: a TIFF's tiles are larger than any image, a JPEG has more than `MAX_SCANS`, or a PPM
            more than `MAX_COMMENTS`.
    """
    if tags := getattr(image, "tag_v2", None):
        # libtiff decodes whole tiles, however little of them lies within the image
        check_size(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1))
    if image.format in ("JPEG", "MPO") and "progressive" in image.info and _count_scans(data) > MAX_SCANS:
        raise ImageError(f"the JPEG has more than {MAX_SCANS} scans, the most that are decoded")
    if data.startswith(_PLAIN_FORMATS) and data.count(b"#") > MAX_COMMENTS:
        raise ImageError(f"the file has more than {MAX_COMMENTS} comments, the most that are read")


def _count_scans(data: bytes) -> int:
    """The scans of a JPEG, up to one too many; not those of a thumbnail in its header or of what follows its end."""
    scans = position = 0
    while scans <= MAX_SCANS and (marker := _JPEG_MARKER.search(data, position)) and marker[1][0] != _END_OF_IMAGE:
        scans += marker[1][0] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans
