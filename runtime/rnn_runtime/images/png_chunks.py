"""PNG files that browsers and the decoder of small files read, and Pillow refuses."""

import struct
import zlib
from collections.abc import Iterator, Sequence

from rnn_runtime.images.limits import MAX_PIXELS

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTING_TEXTS = (b"Raw profile type", b"XML:com.adobe.xmp")
_FRAME = 12  # bytes of a chunk beside its content: length, name, checksum
_ZLIB_HEADER, _ADLER = 2, 4  # bytes
_BLOCK = 1 << 16  # bytes
_MOST_PER_PIXEL = 9  # bytes: four channels of 16 bits, and in images of one column a byte per row


def mend_png(data: bytes) -> bytes | None:
    """Leave out what neither the pixels nor the orientation of a PNG need, and put the checksum of its pixels right.

    Times, profiles, comments and such may be damaged. zlib's checksum (Adler-32) is corrected only if those of the
    chunks (CRC-32) are right: the pixels are what was written then, by a program that makes no such checksums.

    Returns:
        Another file; None if there is nothing to mend, or `data` is no PNG.
    """
    if not data.startswith(_SIGNATURE):
        return None
    chunks = list(_needed_chunks(data))
    pixels = [chunk for chunk in chunks if chunk[4:8] == b"IDAT"]
    corrected = _correct_checksum(pixels, struct.unpack_from(">II", data.ljust(24, b"\0"), 16))
    if corrected is not None:
        place = chunks.index(pixels[0])
        chunks = [*chunks[:place], corrected, *(chunk for chunk in chunks[place:] if chunk[4:8] != b"IDAT")]
    mended = b"".join([_SIGNATURE, *chunks, _END])
    # A longer file is a truncated one, to which only the end was added.
    return mended if corrected is not None or (len(mended) <= len(data) and mended != data) else None


def _needed_chunks(data: bytes) -> Iterator[bytes]:
    position = len(_SIGNATURE)
    while position + _FRAME <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + _FRAME + length
        content = data[position + 8 : position + 8 + max(map(len, _ORIENTING_TEXTS))]
        if kind in _NEEDED or (kind in _TEXTS and content.startswith(_ORIENTING_TEXTS)):
            yield data[position:end]
        elif kind == b"IEND":
            break
        position = end


def _correct_checksum(chunks: Sequence[bytes], size: tuple[int, int]) -> bytes | None:
    """One chunk of pixels for several, with the right checksum; None if it is right, or other things are wrong.

    Args:
        chunks: All chunks of pixels.
        size: Width and height in the header.
    """
    width, height = size
    if width * height > MAX_PIXELS or any(chunk[-4:] != _crc(chunk[4:-4]) for chunk in chunks):
        return None
    stream = b"".join(chunk[8:-4] for chunk in chunks)
    inflate, adler, produced = zlib.decompressobj(-zlib.MAX_WBITS), 1, 0
    for start in range(_ZLIB_HEADER, len(stream), _BLOCK):
        block, values = stream[start : start + _BLOCK], b""
        while not inflate.eof and (block or len(values) == _BLOCK):
            try:
                values = inflate.decompress(block, _BLOCK)
            except zlib.error:
                return None
            block = inflate.unconsumed_tail
            adler, produced = zlib.adler32(values, adler), produced + len(values)
        if produced > _MOST_PER_PIXEL * MAX_PIXELS:
            return None
        if inflate.eof:
            end = min(start + _BLOCK, len(stream)) - len(inflate.unused_data)
            break
    else:
        return None
    right = struct.pack(">I", adler)
    if stream[end : end + _ADLER] == right or end + _ADLER > len(stream):
        return None
    content = b"IDAT" + stream[:end] + right
    return struct.pack(">I", len(content) - 4) + content + _crc(content)


def _crc(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))
