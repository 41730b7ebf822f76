"""What Pillow doesn't say in public, and what it reads otherwise than the file means: all that touches its internals.

Seen in Pillow 13.0. Each part names the report that would end it, or has the words for one that isn't written yet.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImagePalette

from rnn_runtime.errors import ImageError

# Tags of TIFF 6.0, and some of their values.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES, _COLOR_MAP, _SAMPLE_FORMAT = 258, 262, 284, 320, 339
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I")  # of gray with more than 8 bits; 16 bits may be 32-bit integers, "I"
_MAX_8_BITS = 255
_DEEP = 16  # bits
_FEW_GRAYS = {"L;2": 3, "L;4": 15}  # the largest value in the file, by Pillow's raw mode
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Encoding(NamedTuple):
    """How a file encodes its pixels, as far as Pillow leaves that to its caller.

    Attributes:
        bits: The bits of each value in a TIFF; 16 for other files.
        is_signed: Whether half of the values are negative.
        white_is_zero: Whether smaller values are brighter.
        maxval: The value of white in a PGM of more than 8 bits; None for other files.
        is_deep_color: Whether it has colors or transparency with more than 8 bits per channel.
        tile: Width and height of each tile of a TIFF.
    """

    bits: int = _DEEP
    is_signed: bool = False
    white_is_zero: bool = False
    maxval: int | None = None
    is_deep_color: bool = False
    tile: tuple[int, int] = (1, 1)

    @property
    def largest(self) -> int:
        """The largest value that 8 to 16 bits can hold."""
        return int(2 ** max(8, min(self.bits - self.is_signed, _DEEP))) - 1


_PLAIN = Encoding()


def encoding_of(image: Image.Image) -> Encoding:
    """Read how an image is encoded. Tiles are known only until it is decoded.

    - Of signed numbers with 8 bits, Pillow gives -1 as white. No report yet: "TIFF with SampleFormat 2 and 8 bits is
      read as unsigned".
    - It inverts WhiteIsZero for up to 8 bits only: python-pillow/Pillow#6642.
    - It brings the values of a PGM to 0 to 65535: python-pillow/Pillow#6202.
    - It has no mode for 16 bits in color, and gives the upper 8: python-pillow/Pillow#1888.
    """
    tags: Any = getattr(image, "tag_v2", {})
    maxval, is_deep = None, False
    for tile in getattr(image, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name.startswith("ppm"):
            maxval = arguments[-1] if image.mode == "I" else None
            is_deep |= arguments[-1] > _MAX_8_BITS
        is_deep |= any(";16" in argument for argument in arguments if isinstance(argument, str))
    if not tags:
        return Encoding(maxval=maxval, is_deep_color=is_deep) if maxval or is_deep else _PLAIN
    return Encoding(
        bits=int(tags.get(_BITS_PER_SAMPLE, (_DEEP,))[0]),
        is_signed=_SIGNED in tags.get(_SAMPLE_FORMAT, ()),
        white_is_zero=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
        is_deep_color=is_deep,
        tile=(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1))),
    )


def mend_tiff(image: ImageFile.ImageFile) -> None:
    """Let Pillow read three kinds of TIFF as they are meant, and refuse a fourth.

    - Signed numbers in compressed big-endian files: libtiff has brought their bytes to the machine's order, and Pillow
      exchanges them again. No report yet: "Compressed big-endian TIFF of I;16BS has its bytes swapped".
    - Colors of 16 bits in uncompressed planes: Pillow reads them as 8 bits. No report yet (python-pillow/Pillow#4621 is
      about compressed ones): "Uncompressed TIFF with PlanarConfiguration 2 and 16 bits is read as 8 bits".
    - Palettes of 8 bits where TIFF has 16: Pillow takes the upper 8, which are zero. python-pillow/Pillow#2157.
    - Gray and transparency in planes of their own: Pillow reads all as transparent. No report yet: "Compressed TIFF of
      LA with PlanarConfiguration 2 has an alpha of 0".

    Args:
        image: The image, not decoded yet.

    Raises:
        ImageError: It is of the fourth kind.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if not tags:
        return
    if tags.get(_PLANES) == _SEPARATE and image.mode in ("LA", "La"):
        raise ImageError("its gray and its transparency are in separate planes, a kind of TIFF that isn't supported")
    in_deep_planes = tags.get(_BITS_PER_SAMPLE, (8,))[0] == _DEEP and tags.get(_PLANES) == _SEPARATE
    for i, tile in enumerate(image.tile):
        order, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "libtiff":
            order = {"I;16BS": "I;16NS", "I;32BS": "I;32NS"}.get(order, order)
        elif in_deep_planes and isinstance(order, str) and len(order) == 1:
            order += ";16B" if tags.prefix == b"MM" else ";16L"
        image.tile[i] = tile._replace(args=(order, *rest))
    if image.mode == "P" and max(tags[_COLOR_MAP]) <= _MAX_8_BITS:
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOR_MAP]))


def mend_transparency(image: ImageFile.ImageFile) -> None:
    """Give the transparent value or color of a PNG as many bits as Pillow gives its pixels.

    Pillow brings pixels to 8 bits, and the transparent one stays as it is in the file. No report yet: "tRNS of PNGs
    with 2, 4 or 16 bits isn't scaled with their pixels".

    Args:
        image: The image, not decoded yet.
    """
    hidden = image.info.get("transparency")
    raw_mode = image.tile[0].args if image.format == "PNG" and image.tile else None
    if isinstance(hidden, int) and raw_mode in _FEW_GRAYS:
        most = _FEW_GRAYS[raw_mode]
        image.info["transparency"] = (hidden & most) * (_MAX_8_BITS // most)
    elif isinstance(hidden, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in hidden)


def release_decoder(image: Image.Image) -> None:
    """Let go of the decoder of an image that is decoded; only its first frame can be used then.

    That of WebP keeps two frames in memory. No report yet: "WebPImageFile keeps its decoder's canvases after load()".
    """
    if hasattr(image, "_decoder"):
        image._decoder = None


def mend_gif(image: Image.Image) -> Image.Image:
    """A decoded image whose mode is that of its pixels.

    Of a GIF whose first frame has a gray ramp as its palette, Pillow says that it is gray, yet gives the pixels the
    palette of the whole file. No report yet (python-pillow/Pillow#6576 is about later frames): "First GIF frame with
    a gray local palette has mode L and im.mode P".
    """
    if image.im.mode == image.mode:
        return image
    mended = Image.fromarray(np.asarray(image))
    if "transparency" in image.info:
        mended.info["transparency"] = image.info["transparency"]
    return mended


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert a decoded image to mode `L`, `LA`, `RGB` or `RGBA`.

    Pillow converts LAB and La in two steps only. No report yet (python-pillow/Pillow#6706 is the same for RGBa):
    "convert('L') fails for LAB and La". It warns of palettes with several transparent colors that aren't converted to
    RGBA first.
    """
    first = {"LAB": "RGB", "La": "LA"}.get(image.mode)
    if image.mode == "P" and "transparency" in image.info:
        first = "RGBA"
    if first:
        image = image.convert(first)
    return image if image.mode == mode else image.convert(mode)


def is_gray(image: Image.Image) -> bool:
    """Whether an image, not decoded yet, has no colors by its kind or palette.

    Pillow makes colors of 16 bits of gray with transparency: python-pillow/Pillow#1888.
    """
    if image.mode == "P" and image.palette is not None:
        order, entries = image.palette.getdata()
        if order.endswith(";L"):  # all reds, then all greens, then all blues
            count = len(entries) // 3
            red, green, blue = (entries[i * count : (i + 1) * count] for i in range(3))
        else:
            whole = len(entries) // len(order) * len(order)
            red, green, blue = (entries[i : whole : len(order)] for i in range(3))
        return red == green == blue
    deep_with_alpha = any(tile.args == "LA;16B" for tile in getattr(image, "tile", ()))
    return deep_with_alpha or image.mode in ("1", "L", "LA", "La", "F", *DEEP_MODES)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image once its orientation is applied; the image isn't decoded.

    Of a TIFF, Pillow swaps them for the orientation in a tag, and not for that in XMP. No report yet: "TIFF with an
    orientation in XMP has the size of the image as it is stored". All of a PNG is read, since it may have its
    orientation at its end.
    """
    applied = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    turned = (image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE) != applied
    return image.size[::-1] if turned else image.size


def undecoded_file(image: Image.Image) -> IO[bytes] | None:
    """The file that an image was opened from and isn't decoded yet, at its first frame; None for other images.

    `_im` is None until then. No report yet: "Public property for whether an image is loaded".

    Raises:
        ImageError: The file was closed.
    """
    if not isinstance(image, ImageFile.ImageFile) or getattr(image, "_im", None) is not None:
        return None
    if image.fp is None or getattr(image.fp, "closed", False):
        raise ImageError("its file was closed before it was decoded")
    return image.fp if image.tell() == 0 else None


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"eXIf")
_TRANSPARENCY = b"tRNS"  # browsers leave it out if it is damaged
_COLOR_KIND, _GRAY, _RGB, _PALETTE = 25, b"\0", b"\2", b"\3"  # where a PNG has its kind of colors, and some kinds
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTING_TEXTS = (b"Raw profile type", b"XML:com.adobe.xmp")
_FRAME = 12  # bytes of a chunk besides its content: length, name, checksum


def mend_png(data: bytes) -> bytes | None:
    """Leave out what neither the pixels nor the orientation of a PNG need: times, profiles and comments may be damaged.

    Browsers overlook such damage. Pillow does so only with LOAD_TRUNCATED_IMAGES, which also lets half pictures pass:
    python-pillow/Pillow#6843.

    Returns:
        Another file; None if there is nothing to leave out, or `data` isn't a PNG.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    mended = b"".join([PNG_SIGNATURE, *_needed_chunks(data), _PNG_END])
    # A longer file is a truncated one, to which only the end was added.
    return mended if len(mended) <= len(data) and mended != data else None


def _needed_chunks(data: bytes) -> Iterator[bytes]:
    position = len(PNG_SIGNATURE)
    while position + _FRAME <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + _FRAME + length
        chunk = data[position:end]
        if (
            kind in _NEEDED
            or (kind == _TRANSPARENCY and _is_intact(chunk, length, color=data[_COLOR_KIND : _COLOR_KIND + 1]))
            or (kind in _TEXTS and data.startswith(_ORIENTING_TEXTS, position + 8))
        ):
            yield chunk
        elif kind == b"IEND":
            break
        position = end


def _is_intact(transparency: bytes, length: int, color: bytes) -> bool:
    """Whether a chunk that makes colors transparent has its checksum, and the length for that kind of colors."""
    fits = {_GRAY: length == 2, _RGB: length == 6, _PALETTE: 0 < length <= 256}.get(color, False)
    return fits and transparency[-4:] == zlib.crc32(transparency[4:-4]).to_bytes(4, "big")
