"""Damaged images of every format: pixels of the right shape, or an error that says so. Nothing else, and no crash.

For a longer search: pytest --hypothesis-profile=long tests/runtime/images/test_damaged_images.py
"""

import contextlib
import itertools
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rnn_runtime.errors import ImageError
from rnn_runtime.images.decode import image_shape
from rnn_runtime.model.spec import ImageSpec
from tests.support.commands import RunProcess
from tests.support.encoded_images import pattern, pixels_of, png_chunk, to_image
from tests.support.hostile_images import deep_tiff, gray_tiff, jpeg_of_scans, png, rle_bmp, save, tiled_tiff

PHOTO = to_image(pattern(12, 10, 3))
DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 1 << 16, (12, 10), np.uint16))
ROTATED = Image.Exif()
ROTATED[0x0112] = 6

IMAGES = {
    "gray.png": save(PHOTO.convert("L"), "PNG"),
    "rgb.png": save(PHOTO, "PNG"),
    "palette.png": save(PHOTO.convert("P"), "PNG", transparency=3, exif=ROTATED),
    "deep.png": save(DEEP, "PNG"),
    "extras.png": png(
        8, 8, (b"pHYs", bytes(9)), (b"zTXt", b"a\0\0" + zlib.compress(b"text")), (b"IDAT", zlib.compress(bytes(72)))
    ),
    "no-pixels.png": png(12, 10, (b"tEXt", b"Raw profile type exif\0\nexif\n8\n49492a00"), bits=1),
    "animated.png": save(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(90)]),
    "rgb.jpg": save(PHOTO, "JPEG", exif=ROTATED),
    "gray.jpg": save(PHOTO.convert("L"), "JPEG"),
    "cmyk.jpg": save(PHOTO.convert("CMYK"), "JPEG", progressive=True),
    "scans.jpg": jpeg_of_scans(3),
    "rgb.bmp": save(PHOTO, "BMP"),
    "palette.bmp": rle_bmp(12, 10, b"\5\1\0\0\0\2\3\1\0\4\1\2\3\4\0\0" + b"\x0c\7\0\0" * 18),
    "rgb.tif": save(PHOTO, "TIFF"),
    "lzw.tif": save(PHOTO.convert("RGBA"), "TIFF", compression="tiff_lzw"),
    "deflate.tif": save(DEEP, "TIFF", compression="tiff_deflate"),
    "signed.tif": deep_tiff(np.arange(120).reshape(12, 10) * 250, signed=True),
    "12-bit.tif": deep_tiff(np.arange(120).reshape(12, 10) * 34, bits=12),
    "jpeg.tif": save(PHOTO, "TIFF", compression="jpeg"),
    "fax.tif": save(PHOTO.convert("1"), "TIFF", compression="group4"),
    "tiles.tif": tiled_tiff(64, compression=8),
    "rgb.webp": save(PHOTO, "WEBP", exif=ROTATED),
    "lossless.webp": save(PHOTO.convert("RGBA"), "WEBP", lossless=True),
    "animated.webp": save(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(90)]),
    "palette.gif": save(PHOTO.convert("P"), "GIF", transparency=3, comment=b"a comment"),
    "animated.gif": save(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "rgb.ppm": save(PHOTO, "PPM"),
    "plain.pgm": b"P2 # plain\n3 2 15\n0 1 2\n3 4 15\n",
    "few-values.ppm": b"P6 3 2 15\n" + bytes(range(16)) + b"\0\1",
}

# what is done where: bytes are put there, in place of others or between them, or some are left out, or all behind
edits = st.lists(
    st.tuples(st.sampled_from(["put", "insert", "leave out", "end"]), st.integers(0, 1 << 12), st.binary(max_size=8)),
    min_size=1,
    max_size=8,
)


def damage(data: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    for step, place, some in steps:
        at = place % (len(data) + 1)
        behind = {"put": at + len(some), "insert": at, "leave out": at + len(some), "end": len(data)}[step]
        data = data[:at] + (some if step in ("put", "insert") else b"") + data[behind:]
    return data


@pytest.mark.parametrize("name", IMAGES)
@settings(max_examples=settings().max_examples // 4)  # for each of many files
@given(steps=edits)
def test_damaged_images_give_pixels_or_an_image_error(name: str, steps: list[tuple[str, int, bytes]]) -> None:
    data = damage(IMAGES[name], steps)

    for spec in (ImageSpec(8, 6, 3), ImageSpec(12, 10, 1)):
        with contextlib.suppress(ImageError):
            pixels = pixels_of(data, spec)
            assert pixels.shape == spec.shape
            assert pixels.dtype == np.uint8
    with contextlib.suppress(ImageError):
        height, width, channels = image_shape(data)
        assert min(height, width) > 0
        assert channels in (1, 3)


@pytest.mark.parametrize("name", sorted(set(IMAGES) - {"no-pixels.png"}))
def test_undamaged_images_give_pixels(name: str) -> None:
    assert pixels_of(IMAGES[name], ImageSpec(8, 6, 3)).shape == (8, 6, 3)


@given(st.binary(max_size=200), st.sampled_from(sorted(IMAGES)), st.integers(0, 40))
def test_random_bytes_after_a_right_start_are_pixels_or_an_error(rest: bytes, name: str, length: int) -> None:
    data = IMAGES[name][:length] + rest

    for function in (lambda: pixels_of(data, ImageSpec(8, 6, 3)), lambda: image_shape(data)):
        with contextlib.suppress(ImageError):
            function()


def test_a_truncated_png_has_no_shape_that_could_be_believed() -> None:
    with pytest.raises(ImageError, match="a damaged image"):
        image_shape(IMAGES["rgb.png"][:-40])


PNG_PIXELS = pattern(8, 8, 1)
PNG_ROWS = (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in PNG_PIXELS)))
EXTRAS = {
    b"pHYs": struct.pack(">IIB", 2835, 2835, 1),
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": bytes(32),
    b"sRGB": b"\0",
    b"tRNS": b"\0\5",
    b"tIME": bytes(7),
    b"tEXt": b"Comment\0by a camera",
    b"zTXt": b"Comment\0\0" + zlib.compress(b"by a camera"),
    b"iTXt": b"Comment\0\0\0\0\0by a camera",
    b"iCCP": b"a profile\0\0" + zlib.compress(bytes(200)),
    b"acTL": struct.pack(">II", 2, 0),
    b"prVt": b"of a program",
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "checksum": lambda chunk: chunk[:-1] + bytes([chunk[-1] ^ 1]),
    "empty": lambda chunk: png_chunk(chunk[4:8], b""),
    "short": lambda chunk: png_chunk(chunk[4:8], chunk[8:-5]),
    "junk": lambda chunk: png_chunk(chunk[4:8], b"\xff" * (len(chunk) - 12)),
    "no letters": lambda chunk: png_chunk(b"\xe9" + chunk[5:8], chunk[8:-4]),
}


@pytest.mark.parametrize("kind", EXTRAS, ids=bytes.decode)
def test_a_png_is_read_whatever_happens_to_what_its_pixels_do_not_need(kind: bytes) -> None:
    start, end = png(8, 8)[:33], png(8, 8)[33:]
    pixels, filling = png_chunk(*PNG_ROWS), png_chunk(b"zzZz", bytes(50_000))  # a large file goes to another decoder
    for damage in DAMAGE.values():
        extra = damage(png_chunk(kind, EXTRAS[kind]))
        for chunks in itertools.product((b"", filling), (extra + pixels, pixels + extra), (b"", end)):
            data = start + b"".join(chunks)
            assert np.array_equal(pixels_of(data, ImageSpec(8, 8, 1)), PNG_PIXELS)
            assert image_shape(data) == (8, 8, 1)


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_a_png_whose_pixels_changed_is_an_error(is_large: bool) -> None:
    pixels = pattern(300, 200, 1) if is_large else PNG_PIXELS
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = bytearray(png(width, height, (b"IDAT", zlib.compress(rows, 0))))
    data[60] ^= 1  # a pixel, as it is

    with pytest.raises(ImageError, match="a damaged image"):
        pixels_of(bytes(data), ImageSpec(*pixels.shape))


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(
    ("kind", "content"), [(b"eXIf", ROTATED.tobytes()[6:]), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a/>")]
)
def test_a_png_whose_orientation_is_damaged_is_an_error(kind: bytes, content: bytes, is_large: bool) -> None:
    chunk = DAMAGE["checksum"](png_chunk(kind, content))
    data = png(8, 8, PNG_ROWS)
    data = data[:33] + chunk + (png_chunk(b"zzZz", bytes(50_000)) if is_large else b"") + data[33:]

    for function in (lambda: pixels_of(data, ImageSpec(8, 8, 1)), lambda: image_shape(data)):
        with pytest.raises(ImageError, match="not an image in a supported format, or damaged"):
            function()


def test_what_libraries_print_of_damage_is_kept_off_stderr(
    run_process: RunProcess, digits_model: Path, tmp_path: Path
) -> None:
    damaged = bytearray(IMAGES["deflate.tif"])
    damaged[8:12] = b"\xff\xff\xff\xff"  # where its pixels begin
    (tmp_path / "damaged.tif").write_bytes(damaged)
    samples = gray_tiff(8, 8).replace(struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 3, 1, 65535))
    (tmp_path / "samples.tif").write_bytes(samples)

    result = run_process("rnn-infer", "--provider", "cpu", "--model", digits_model, "damaged.tif", "samples.tif")

    assert "a damaged image" in result.stdout
    assert "an unsupported kind of TIFF" in result.stdout
    assert len(result.stderr.splitlines()) == 1


def test_what_pillow_logs_is_left_to_a_program_that_uses_the_library(tmp_path: Path) -> None:
    (tmp_path / "samples.tif").write_bytes(gray_tiff(8, 8).replace(b"\x15\1\3\0\1\0\0\0\1", b"\x15\1\3\0\1\0\0\0\xff"))
    program = """
        import logging
        from rnn_runtime.errors import ImageError
        from rnn_runtime.images.decode import decode_image, read_bytes
        from rnn_runtime.model.spec import ImageSpec
        logging.basicConfig(format="LOG %(message)s")
        try:
            decode_image(read_bytes("samples.tif"), ImageSpec(8, 8, 1))
        except ImageError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert result.stderr.startswith("LOG More samples per pixel than can be decoded: 255")
    assert "an unsupported kind of TIFF" in result.stdout
