"""TIFFs that Pillow 13 reads otherwise than they are meant, and those that it doesn't read."""

import io
from typing import Any

from PIL import ImageFile, ImagePalette

# Tags of TIFF 6.0, and a value.
_BITS_PER_SAMPLE, _COLOR_MAP = 258, 320
_PLANES, _SEPARATE = 284, 2
_DEEP = 16  # bits
# Pillow's names of orders of bytes: big-endian, and the machine's
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS"}
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNSUPPORTED = ("unknown pixel mode", "unknown data organization")  # of complete tags


def mend_tiff(image: ImageFile.ImageFile) -> None:
    """Let Pillow read three kinds of TIFF as they are meant.

    It exchanges the bytes of signed numbers in compressed big-endian files, which libtiff has already brought to the
    machine's order. It reads 16 bits as 8 in uncompressed files that have a plane per color. And it takes the upper 8
    of 16 bits of a palette, where some programs write 8 bits.

    Args:
        image: The image, not decoded yet.
    """
    tags: Any = getattr(image, "tag_v2", {})
    wide = tags.get(_BITS_PER_SAMPLE, (8,))[0] == _DEEP and tags.get(_PLANES) == _SEPARATE
    for i, tile in enumerate(image.tile if tags else ()):
        order, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "libtiff":
            order = _NATIVE.get(order, order)
        elif wide and isinstance(order, str) and len(order) == 1:
            order += ";16B" if tags.prefix == b"MM" else ";16L"
        image.tile[i] = tile._replace(args=(order, *rest))
    if tags and image.mode == "P" and max(tags[_COLOR_MAP]) < 1 << 8:
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOR_MAP]))


def is_unsupported_tiff(data: bytes) -> bool:
    """Whether a file that Pillow doesn't open is a TIFF of a kind that it doesn't know: of 64 bits, for example."""
    if not data.startswith(_SIGNATURES):
        return False
    from PIL import TiffImagePlugin  # Pillow itself imports it for the first TIFF only

    try:
        TiffImagePlugin.TiffImageFile(io.BytesIO(data)).close()
    except SyntaxError as error:
        return str(error) in _UNSUPPORTED
    except Exception:  # of damaged tags, any
        return False
    return False
