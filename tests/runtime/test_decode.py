"""From encoded files to pixels."""

import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_runtime.decode import decode_image, decode_pixels, read_image, resize_image
from rnn_runtime.errors import ImageError
from rnn_runtime.model_spec import ImageSpec
from tests.runtime.encoded import LOSSLESS, encode, pattern, png_of_claimed_size

GRAY = ImageSpec(8, 6, 1)
RGB = ImageSpec(8, 6, 3)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_keep_every_colour(suffix: str) -> None:
    pixels = pattern(8, 6, 3)

    assert np.array_equal(decode_image(encode(pixels, suffix), RGB), pixels)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm"])
def test_lossless_formats_keep_every_gray(suffix: str) -> None:
    pixels = pattern(8, 6, 1)

    assert np.array_equal(decode_image(encode(pixels, suffix), GRAY), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".gif"])
def test_lossy_formats_keep_pure_colours_nearly(suffix: str) -> None:
    pixels = np.full((8, 6, 3), (255, 0, 0), np.uint8)

    decoded = decode_image(encode(pixels, suffix), RGB)

    assert np.abs(decoded.astype(int) - pixels).max() <= 8


def test_colour_becomes_gray_by_luminance() -> None:
    green = np.full((8, 6, 3), (0, 255, 0), np.uint8)

    gray = decode_image(encode(green), GRAY)

    assert np.abs(gray - 0.587 * 255).max() < 1  # ITU-R BT.601 gives green a weight of 0.587


def test_gray_becomes_three_equal_channels() -> None:
    pixels = pattern(8, 6, 1)

    assert np.array_equal(decode_image(encode(pixels), RGB), np.repeat(pixels, 3, axis=2))


def test_16_bit_images_keep_their_upper_8_bits() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 6), np.uint16)
    data = cv2.imencode(".png", deep)[1].tobytes()

    decoded = decode_image(data, GRAY)[:, :, 0]

    assert np.abs(decoded.astype(int) - (deep >> 8)).max() <= 1


def test_transparency_is_dropped() -> None:
    pixels = pattern(8, 6, 4)
    data = cv2.imencode(".png", pixels)[1].tobytes()

    assert np.array_equal(decode_image(data, RGB), pixels[:, :, 2::-1])


def test_exif_rotation_is_applied() -> None:
    wide = np.zeros((6, 8, 1), np.uint8)
    wide[:, :4] = 255
    jpeg = encode(wide, ".jpg")
    # big-endian TIFF with one entry: orientation (0x0112), a short, 6: turn by 90 degrees clockwise to view
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)
    segment = b"\xff\xe1" + (2 + 6 + len(tiff)).to_bytes(2, "big") + b"Exif\0\0" + tiff

    turned = decode_image(jpeg[:2] + segment + jpeg[2:], GRAY)

    assert turned.shape == (8, 6, 1)
    assert turned[:4].min() > 200
    assert turned[4:].max() < 50


def test_own_size_and_channels_are_kept_where_none_are_asked_for() -> None:
    for shape in ((3, 5, 1), (7, 2, 3)):
        pixels = pattern(*shape)
        assert np.array_equal(decode_pixels(encode(pixels)), pixels)


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 3]), st.binary()
)
@settings(max_examples=60, deadline=None)
def test_any_size_is_brought_to_the_models(
    height: int, width: int, to_height: int, to_width: int, channels: int, extra: bytes
) -> None:
    spec = ImageSpec(to_height, to_width, channels)
    pixels = pattern(height, width, channels, seed=len(extra))

    resized = decode_image(encode(pixels), spec)

    assert resized.shape == spec.shape
    assert resized.dtype == np.uint8
    assert pixels.min() <= resized.min() <= resized.max() <= pixels.max()


def test_halving_averages_blocks_of_four() -> None:
    pixels = pattern(8, 12, 1).astype(int) // 4 * 4

    halved = resize_image(pixels.astype(np.uint8), ImageSpec(4, 6, 1))

    expected = pixels.reshape(4, 2, 6, 2).mean(axis=(1, 3))
    assert np.abs(halved[:, :, 0] - expected).max() <= 0.5


@pytest.mark.parametrize("shape", [(1, 1), (10_000, 1), (1, 10_000)])
def test_extreme_proportions_are_brought_to_the_models_size(shape: tuple[int, int]) -> None:
    assert decode_image(encode(np.full((*shape, 1), 77, np.uint8)), GRAY).tolist() == [[[77]] * 6] * 8


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
        decode_image(data, GRAY)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".pgm"])
def test_truncated_images_are_errors_not_half_pictures(suffix: str) -> None:
    data = encode(pattern(40, 40, 1 if suffix == ".pgm" else 3), suffix)

    for length in np.linspace(1, len(data) - 16, 40).astype(int):
        with pytest.raises(ImageError):
            decode_image(data[:length], GRAY)


@given(st.sampled_from([".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".ppm"]), st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_images_give_pixels_or_an_image_error(suffix: str, data: st.DataObject) -> None:
    encoded = bytearray(encode(pattern(12, 10, 3), suffix))
    for position in data.draw(st.lists(st.integers(0, len(encoded) - 1), max_size=8)):
        encoded[position] = data.draw(st.integers(0, 255))

    try:
        pixels = decode_image(bytes(encoded), RGB)
    except ImageError:
        return
    assert pixels.shape == RGB.shape


def test_decompression_bomb_is_refused_by_its_header() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ImageError, match="more than 67108864 pixels"):
        decode_image(png_of_claimed_size(50_000, 50_000), GRAY)

    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100_000  # its pixels would take 2.5 GB


def test_users_own_limit_of_pixels_is_honoured(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(pattern(10, 11, 1)))
    code = (
        "from rnn_runtime.decode import read_image; from rnn_runtime.model_spec import ImageSpec;"
        "read_image('a.png', ImageSpec(2, 2, 1))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"OPENCV_IO_MAX_IMAGE_PIXELS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    assert "ImageError: the image has more than 100 pixels" in result.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.png", "no such file or directory"), (".", "is a directory"), ("a\0b", "not a valid file name")],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        read_image(f"{tmp_path}/{name}", GRAY)
