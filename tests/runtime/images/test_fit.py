"""How images become the model's input: transparency, aspect ratio and polarity."""

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rnn_runtime.errors import ImageError, SettingsError
from rnn_runtime.images.decode import Decoded
from rnn_runtime.images.image_like import take_images
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pattern, pixels_of, png_chunk, to_image
from tests.support.hostile_images import gray_gif, png, tiff

GRAY, RGB = ImageSpec(8, 6, 1), ImageSpec(8, 6, 3)
WHITE = (255, 255, 255)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def half_transparent() -> Image.Image:
    """8 x 6, white, whose right half is transparent (and black there)."""
    pixels = np.zeros((8, 6, 4), np.uint8)
    pixels[:, :3] = 255
    return to_image(pixels)


def with_transparent_color(bits: int, hidden: int, visible: int, *, channels: int = 1, damaged: bool = False) -> bytes:
    """A PNG of 8 x 8, whose two upper rows have the value that is transparent, and maybe with a damaged comment."""
    rows = [[hidden] * 8 * channels] * 2 + [[visible] * 8 * channels] * 6
    packed = [sum(value << bits * i for i, value in enumerate(row)).to_bytes(bits * channels, "big") for row in rows]
    chunks = [(b"tRNS", hidden.to_bytes(2, "big") * channels), (b"IDAT", zlib.compress(b"\0" + b"\0".join(packed)))]
    data = png(8, 8, *chunks, bits=bits, color=2 if channels == 3 else 0)
    comment = png_chunk(b"tEXt", b"damaged")[:-1] + b"!"
    return data.replace(b"IEND", comment + b"IEND") if damaged else data


@pytest.mark.parametrize("spec", [GRAY, RGB], ids=["gray", "RGB"])
@pytest.mark.parametrize(
    "data",
    [
        saved(half_transparent(), "PNG"),
        saved(half_transparent(), "WEBP", lossless=True, exact=True),
        saved(half_transparent(), "TIFF"),
        saved(half_transparent().convert("LA"), "PNG"),
        saved(half_transparent().convert("PA"), "TIFF"),
        saved(half_transparent(), "GIF"),
        saved(half_transparent().quantize(2), "PNG"),
    ],
    ids=["PNG", "WebP", "TIFF", "gray PNG", "palette TIFF", "GIF", "palette PNG"],
)
def test_the_background_shows_behind_transparent_pixels(data: bytes, spec: ImageSpec) -> None:
    found = pixels_of(data, replace(spec, background=(40, 40, 40)))

    assert (found[:, :3] == 255).all()
    assert (found[:, 3:] == 40).all()


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    ("bits", "channels", "hidden", "visible", "gray"),
    [
        (1, 1, 1, 0, 0),
        (2, 1, 2, 1, 85),
        (4, 1, 7, 12, 204),
        (8, 1, 7, 200, 200),
        (16, 1, 300, 200 << 8, 200),
        (8, 3, 7, 200, 200),
        (16, 3, 300, 200 << 8, 200),
    ],
)
def test_the_transparent_color_of_a_png_is_transparent(
    bits: int, channels: int, hidden: int, visible: int, gray: int, damaged: bool
) -> None:
    data = with_transparent_color(bits, hidden, visible, channels=channels, damaged=damaged)

    found = pixels_of(data, ImageSpec(8, 8, 1, background=(99, 99, 99)))

    assert (found[:2] == 99).all()
    assert (found[2:] == gray).all()


def test_a_transparent_color_whose_chunk_is_damaged_is_left_out() -> None:
    data = with_transparent_color(8, 7, 200)
    position = data.index(b"tRNS") + 5
    data = data[:position] + b"\xc8" + data[position + 1 :]

    assert (pixels_of(data, ImageSpec(8, 8, 1, background=WHITE))[:2] == 7).all()


def test_the_transparent_gray_of_a_gif_with_a_gray_palette_is_transparent() -> None:
    data = gray_gif(np.array([[[7], [200]] * 4] * 8, np.uint8))
    control = b"!\xf9\x04\x01\0\0" + bytes([7]) + b"\0"

    found = pixels_of(data.replace(b",\0\0\0\0", control + b",\0\0\0\0", 1), ImageSpec(8, 8, 1, background=WHITE))

    assert (found[:, ::2] == 255).all()
    assert (found[:, 1::2] == 200).all()


@pytest.mark.parametrize("order", "<>")
def test_gray_and_transparency_in_separate_planes_are_refused(order: str) -> None:
    planes = [zlib.compress(bytes([value]) * 48) for value in (200, 255)]
    at = 8 + 2 + 11 * 12 + 4
    starts = struct.pack(f"{order}4I", at + 16, at + 16 + len(planes[0]), *map(len, planes))
    tags = [(256, 4, 1, 6), (257, 4, 1, 8), (258, 3, 2, 8 | 8 << 16), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 2, at)]
    tags += [(277, 3, 1, 2), (278, 4, 1, 8), (279, 4, 2, at + 8), (284, 3, 1, 2), (338, 3, 1, 2)]

    with pytest.raises(ImageError, match="in separate planes"):
        pixels_of(tiff(tags, starts + b"".join(planes), order), GRAY)


def test_partly_transparent_pixels_are_mixed_with_the_background() -> None:
    pixels = np.full((8, 6, 4), (200, 100, 0, 51), np.uint8)  # a fifth

    found = pixels_of(encode(pixels), replace(RGB, background=(100, 100, 200)))

    assert (found == (120, 100, 160)).all()


@pytest.mark.parametrize(("ink", "background", "seen_on"), [(0, (0, 0, 0), 255), (255, WHITE, 0), (0, WHITE, 255)])
def test_a_picture_that_is_only_in_its_alpha_channel_stays_one(
    ink: int, background: tuple[int, int, int], seen_on: int
) -> None:
    drawing = np.full((8, 6, 2), ink, np.uint8)
    drawing[..., 1] = 0
    drawing[2:6, 2, 1] = 255

    found = pixels_of(saved(Image.fromarray(drawing, "LA"), "PNG"), replace(GRAY, background=background))

    assert (found[2:6, 2] == ink).all()
    assert (found == seen_on).sum() == 8 * 6 - 4


def test_what_only_its_color_tells_from_the_background_is_put_onto_another_for_gray_models() -> None:
    red, green = (200, 40, 40), (40, 122, 40)  # of the same gray
    drawing = np.full((8, 6, 4), (*red, 0), np.uint8)
    drawing[2:6, 2, 3] = 255
    data = encode(drawing)

    in_gray = pixels_of(data, replace(GRAY, background=green))
    in_color = pixels_of(data, replace(RGB, background=green))

    assert np.ptp(in_gray) > 100
    assert (in_color[0, 0] == green).all()
    assert (in_color[2, 2] == red).all()


def test_opaque_images_with_an_alpha_channel_are_read_as_those_without() -> None:
    pixels = pattern(16, 12, 4)
    pixels[..., 3] = 255

    for spec in (GRAY, RGB):
        assert np.array_equal(pixels_of(encode(pixels), spec), pixels_of(encode(pixels[..., :3]), spec))


@pytest.mark.parametrize(("height", "width"), [(8, 24), (24, 8), (100, 50)])
def test_pad_keeps_the_aspect_ratio_and_adds_the_background(height: int, width: int) -> None:
    spec = ImageSpec(16, 16, 3, fit="pad", background=(10, 20, 30))

    found = pixels_of(encode(np.full((height, width, 3), 200, np.uint8)), spec)

    inside = (found == 200).all(axis=2)
    assert (found[~inside] == (10, 20, 30)).all()
    scale = 16 / max(height, width)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert (len(rows), len(columns)) == (round(height * scale), round(width * scale))
    assert abs(rows[0] - (15 - rows[-1])) <= 1  # centered
    assert abs(columns[0] - (15 - columns[-1])) <= 1


def test_crop_takes_the_centered_part_with_the_models_aspect_ratio() -> None:
    pixels = np.zeros((8, 24, 1), np.uint8)
    pixels[:, 8:16] = pattern(8, 8, 1)

    found = pixels_of(encode(pixels), ImageSpec(8, 8, 1, fit="crop"))

    assert np.array_equal(found, pixels[:, 8:16])


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_images_of_the_models_size_stay_as_they_are(fit: Any) -> None:
    pixels = pattern(8, 6, 3)

    assert np.array_equal(pixels_of(encode(pixels), replace(RGB, fit=fit)), pixels)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(8, 6), (20, 30)])
def test_inverted_images_are_those_with_light_and_dark_exchanged(fit: Any, size: tuple[int, int]) -> None:
    pixels = pattern(*size, 3)
    spec = replace(RGB, fit=fit)

    found = pixels_of(encode(pixels), replace(spec, invert=True))

    assert np.array_equal(found, pixels_of(encode(255 - pixels), spec))


def test_what_is_transparent_stays_transparent_when_it_is_inverted() -> None:
    found = pixels_of(saved(half_transparent(), "PNG"), replace(GRAY, background=(90, 90, 90), invert=True))

    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] == 90).all()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop", "glyph"])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_and_pil_images_give_the_pixels_of_their_files(fit: Any, invert: bool, channels: int) -> None:
    spec = ImageSpec(16, 16, 1, fit=fit, background=WHITE, invert=invert)
    pixels = np.full((40, 30, channels), 230, np.uint8)
    pixels[10:30, 12:15] = 20
    pixels[5:8, :] = pattern(3, 30, channels)
    image = to_image(pixels)

    taken = take_images([pixels, image], spec)

    expected = pixels_of(saved(image, "PNG"), spec)
    for item in taken:
        assert not isinstance(item, str)
        assert isinstance(item.content, Decoded)
        assert np.array_equal(item.content.pixels, expected)


def test_glyphs_are_gray() -> None:
    with pytest.raises(SettingsError, match="channels must be 1"):
        ImageSpec(28, 28, 3, fit="glyph")
