"""From encoded files to pixels."""

import contextlib
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from rnn_runtime.errors import ImageError
from rnn_runtime.images.decode import image_shape
from rnn_runtime.images.fit import fit_pixels
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import LOSSLESS, encode, pattern, pixels_of, png_chunk, to_image
from tests.support.hostile_images import png

GRAY = ImageSpec(8, 6, 1)
RGB = ImageSpec(8, 6, 3)


def save(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_keep_every_color(suffix: str) -> None:
    pixels = pattern(8, 6, 3)

    assert np.array_equal(pixels_of(encode(pixels, suffix), RGB), pixels)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm"])
def test_lossless_formats_keep_every_gray(suffix: str) -> None:
    pixels = pattern(8, 6, 1)

    assert np.array_equal(pixels_of(encode(pixels, suffix), GRAY), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".gif"])
def test_lossy_formats_keep_pure_colors_nearly(suffix: str) -> None:
    pixels = np.full((8, 6, 3), (255, 0, 0), np.uint8)

    decoded = pixels_of(encode(pixels, suffix), RGB)

    assert np.abs(decoded.astype(int) - pixels).max() <= 8


def test_color_becomes_gray_by_luminance() -> None:
    green = np.full((8, 6, 3), (0, 255, 0), np.uint8)

    gray = pixels_of(encode(green), GRAY)

    assert np.abs(gray - 0.587 * 255).max() < 1  # ITU-R BT.601 gives green a weight of 0.587


def test_gray_becomes_three_equal_channels() -> None:
    pixels = pattern(8, 6, 1)

    assert np.array_equal(pixels_of(encode(pixels), RGB), np.repeat(pixels, 3, axis=2))


def test_16_bit_images_keep_their_upper_8_bits() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 6), np.uint16)
    data = save(Image.fromarray(deep), ".png")

    decoded = pixels_of(data, GRAY)[:, :, 0]

    assert np.array_equal(decoded, deep >> 8)


def test_exif_rotation_is_applied() -> None:
    wide = np.zeros((6, 8, 1), np.uint8)
    wide[:, :4] = 255
    jpeg = encode(wide, ".jpg")
    # big-endian TIFF with one entry: orientation (0x0112), a short, 6: turn by 90 degrees clockwise to view
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)
    segment = b"\xff\xe1" + (2 + 6 + len(tiff)).to_bytes(2, "big") + b"Exif\0\0" + tiff

    turned = pixels_of(jpeg[:2] + segment + jpeg[2:], GRAY)

    assert turned.shape == (8, 6, 1)
    assert turned[:4].min() > 200
    assert turned[4:].max() < 50


def oriented(pixels: NDArray[np.uint8], suffix: str, orientation: int, *, in_xmp: bool) -> bytes:
    """An image with an orientation in its EXIF data, or in its XMP."""
    if not in_xmp:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        return save(to_image(pixels), suffix, exif=exif, lossless=True)
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    if suffix == ".png":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return save(to_image(pixels), suffix, pnginfo=text)
    options: dict[str, Any] = {"tiffinfo": {ExifTags.Base.XMLPacket: xmp}} if suffix == ".tif" else {"xmp": xmp}
    return save(to_image(pixels), suffix, lossless=True, **options)


@pytest.mark.parametrize("in_xmp", [False, True], ids=["exif", "xmp"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_the_shape_in_a_header_is_that_of_the_upright_image(suffix: str, orientation: int, in_xmp: bool) -> None:
    pixels = pattern(4, 7, 3)
    diagonal = pixels.swapaxes(0, 1)
    upright = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    upright |= {5: diagonal, 6: np.rot90(pixels, -1), 7: diagonal[::-1, ::-1], 8: np.rot90(pixels)}
    expected = upright.get(orientation, pixels)

    data = oriented(pixels, suffix, orientation, in_xmp=in_xmp)

    assert image_shape(data) == expected.shape
    if suffix != ".jpg":
        assert np.array_equal(pixels_of(data, ImageSpec(*expected.shape)), expected)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("shape", [(3, 5, 1), (7, 2, 3)])
def test_header_tells_size_and_channels(shape: tuple[int, int, int], suffix: str) -> None:
    expected = (*shape[:2], 3) if suffix == ".webp" else shape  # WebP knows color only

    assert image_shape(encode(pattern(*shape), suffix)) == expected


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 3]), st.binary()
)
def test_any_size_is_brought_to_the_models(
    height: int, width: int, to_height: int, to_width: int, channels: int, extra: bytes
) -> None:
    spec = ImageSpec(to_height, to_width, channels)
    pixels = pattern(height, width, channels, seed=len(extra))

    resized = pixels_of(encode(pixels), spec)

    assert resized.shape == spec.shape
    assert resized.dtype == np.uint8
    assert pixels.min() <= resized.min() <= resized.max() <= pixels.max()


def test_halving_averages_blocks_of_four() -> None:
    pixels = pattern(8, 12, 1).astype(int) // 4 * 4

    (halved,) = fit_pixels(pixels.astype(np.uint8)[np.newaxis], ImageSpec(4, 6, 1))

    expected = pixels.reshape(4, 2, 6, 2).mean(axis=(1, 3))
    assert np.abs(halved[:, :, 0] - expected).max() <= 0.5


GRAYS = [value for gray in (7, 250, 90, 120) for value in (gray, gray, gray)]
COLORS = [*GRAYS[:-1], 121]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif"])
@pytest.mark.parametrize(("colors", "channels"), [(GRAYS, 1), (COLORS, 3)])
def test_an_image_is_gray_if_its_palette_is(suffix: str, colors: list[int], channels: int) -> None:
    image = Image.fromarray(pattern(8, 6, 1)[:, :, 0] % 4)
    image.putpalette(colors)
    data = save(image, suffix)

    assert image_shape(data) == (8, 6, channels)
    expected = np.array(colors, np.uint8).reshape(4, 3)[np.asarray(image)]
    assert np.array_equal(pixels_of(data, RGB), expected)
    assert channels == 3 or np.array_equal(pixels_of(data, GRAY), expected[:, :, :1])


def test_half_a_color_at_the_end_of_a_palette_is_no_damage() -> None:
    data = png(6, 8, (b"PLTE", bytes([9, 9, 9, 7])), (b"IDAT", zlib.compress(bytes(56))), color=3)

    assert image_shape(data) == GRAY.shape
    assert np.array_equal(pixels_of(data, GRAY), np.full(GRAY.shape, 9))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("is_gray", [False, True])
def test_gray_images_with_transparency_are_gray(bits: int, is_gray: bool) -> None:
    values = pattern(8, 6, 2 if is_gray else 4)
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values.astype(int) * 257 ** (bits // 16))
    data = png(6, 8, (b"IDAT", zlib.compress(rows)), bits=bits, color=4 if is_gray else 6)

    spec = GRAY if is_gray else RGB
    assert image_shape(data) == spec.shape
    on_black = values[:, :, : spec.channels] * (values[:, :, -1:] / 255)
    assert np.abs(pixels_of(data, spec) - on_black).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (10_000, 1), (1, 10_000)])
def test_extreme_proportions_are_brought_to_the_models_size(shape: tuple[int, int]) -> None:
    assert pixels_of(encode(np.full((*shape, 1), 77, np.uint8)), GRAY).tolist() == [[[77]] * 6] * 8


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"hello, I am a text", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (bytes(10_000), "not an image"),
    ],
)
def test_what_is_no_image_is_an_image_error(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        pixels_of(data, GRAY)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".pgm"])
def test_truncated_images_are_errors_not_half_pictures(suffix: str) -> None:
    spec = ImageSpec(40, 40, 1 if suffix == ".pgm" else 3)
    data = encode(pattern(*spec.shape), suffix)
    whole = pixels_of(data, spec)
    behind_the_pixels = 20  # bytes: a checksum and an end mark, whose loss some decoders don't mind

    for length in np.linspace(1, len(data) - behind_the_pixels - 1, 60).astype(int):
        with pytest.raises(ImageError):
            pixels_of(data[:length], spec)
    for length in range(len(data) - behind_the_pixels, len(data)):
        with contextlib.suppress(ImageError):
            assert np.array_equal(pixels_of(data[:length], spec), whole)


def test_small_png_gives_the_pixels_that_any_png_does() -> None:
    for shape in ((28, 28, 1), (28, 28, 3), (10, 7, 3)):
        pixels = pattern(*shape)
        for spec in (ImageSpec(*shape), ImageSpec(5, 9, 1), ImageSpec(40, 40, 3)):
            small = encode(pixels)
            assert len(small) < 5_000
            # a chunk that all decoders skip makes it a large file, which goes another way
            large = small[:33] + png_chunk(b"zzZz", bytes(50_000)) + small[33:]
            assert np.array_equal(pixels_of(small, spec), pixels_of(large, spec))


@pytest.mark.parametrize("position", [20, 50, 400, -20])
def test_a_flipped_bit_in_a_png_is_an_error_not_another_picture(position: int) -> None:
    data = bytearray(encode(pattern(28, 28, 1)))
    data[position] ^= 4

    with pytest.raises(ImageError):
        pixels_of(bytes(data), ImageSpec(28, 28, 1))


def test_large_jpeg_decoded_at_less_than_its_size_looks_the_same() -> None:
    coarse = pattern(6, 8, 3)
    photo = np.asarray(to_image(coarse).resize((640, 480), Image.Resampling.BICUBIC))
    spec = ImageSpec(28, 28, 3)

    scaled = pixels_of(encode(photo, ".jpg"), spec)

    (exact,) = fit_pixels(photo[np.newaxis], spec)
    assert np.abs(scaled.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_kinds_of_pixels_become_what_the_model_takes(mode: str) -> None:
    black_and_white = np.array([[0, 255, 0, 255, 255, 0]], np.uint8)
    gray = np.repeat(black_and_white, 8, axis=0)[:, :, np.newaxis]
    image = to_image(np.repeat(gray, 3, axis=2)).convert(mode)
    data = save(image, ".jpg" if mode == "CMYK" else ".png", **({"quality": 100} if mode == "CMYK" else {}))

    for spec in (GRAY, RGB):
        assert np.abs(pixels_of(data, spec).astype(int) - gray).max() <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(dtype: type[np.generic]) -> None:
    data = save(Image.fromarray(np.full((8, 6), 100_000, dtype)), ".tif")

    with pytest.raises(ImageError, match="its pixels"):
        pixels_of(data, GRAY)


def test_animation_gives_its_first_frame() -> None:
    frames = [to_image(np.full((8, 6, 3), value, np.uint8)) for value in (10, 200)]
    for suffix in (".gif", ".webp", ".png"):
        data = save(frames[0], suffix, save_all=True, append_images=frames[1:])
        assert np.abs(pixels_of(data, RGB).astype(int) - 10).max() <= 3


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.png", "no such file or directory"), (".", "is a directory"), ("a\0b", "not a valid file name")],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        pixels_of(f"{tmp_path}/{name}", GRAY)
