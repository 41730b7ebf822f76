"""How images become the model's input: transparency, aspect ratio and polarity."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rnn_runtime.errors import SettingsError
from rnn_runtime.images.decode import Decoded
from rnn_runtime.images.image_like import take_images
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pattern, pixels_of, png_chunk, to_image

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


def with_transparent_gray(pixels: np.ndarray[Any, Any], value: int) -> bytes:
    """A PNG in which one gray value is transparent."""
    data = encode(pixels)
    end = data.index(b"IDAT") - 4
    return data[:end] + png_chunk(b"tRNS", value.to_bytes(2, "big")) + data[end:]


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


def test_a_transparent_gray_in_a_small_png_is_transparent() -> None:
    pixels = np.full((8, 6, 1), 200, np.uint8)
    pixels[:, :2] = 7

    found = pixels_of(with_transparent_gray(pixels, 7), replace(GRAY, background=WHITE))

    assert (found[:, :2] == 255).all()
    assert (found[:, 2:] == 200).all()


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
