"""The chunks of a PNG file: those that its pixels and orientation need, and all others."""

import struct

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTING_TEXTS = (b"Raw profile type", b"XML:com.adobe.xmp")
_FRAME = 12  # bytes of a chunk beside its content: length, name, checksum


def keep_needed_chunks(data: bytes) -> bytes | None:
    """Leave out what neither the pixels nor the orientation of a PNG need, such as times, profiles and comments.

    Browsers and the decoder of small files show an image where such a chunk is damaged. Pillow refuses it.

    Returns:
        The smaller file; None if there is nothing to leave out, or `data` is no PNG.
    """
    if not data.startswith(_SIGNATURE):
        return None
    parts, position = [_SIGNATURE], len(_SIGNATURE)
    while position + _FRAME <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + _FRAME + length
        content = data[position + 8 : position + 8 + max(map(len, _ORIENTING_TEXTS))]
        if kind in _NEEDED or (kind in _TEXTS and content.startswith(_ORIENTING_TEXTS)):
            parts.append(data[position:end])
        elif kind == b"IEND":
            break
        position = end
    needed = b"".join([*parts, _END])
    return needed if len(needed) < len(data) else None
