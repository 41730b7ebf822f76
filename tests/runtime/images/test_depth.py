"""Gray images of more than 8 bits: which values become black and white, and when that is refused."""

import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.errors import ImageError, SettingsError
from rnn_runtime.images.decode import convert_image, deep_values
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pattern, pixels_of
from tests.support.hostile_images import deep_tiff, planar_tiff, png, save

SPEC = ImageSpec(4, 6, 1)
FULL = ImageSpec(4, 6, 1, (0, 65535))

values_of_16_bits = arrays(np.uint16, (4, 6))


def random_values(least: int, most: int) -> NDArray[np.int32]:
    values = np.random.default_rng(0).integers(least, most, (4, 6), np.int32, endpoint=True)
    values[0, :2] = least, most
    return values


def deep_png(values: NDArray[np.integer]) -> bytes:
    return save(Image.fromarray(values.astype(np.uint16)), "PNG")


def test_12_bits_fill_all_grays() -> None:
    values = random_values(0, 4095)

    decoded = pixels_of(deep_tiff(values, bits=12), SPEC)

    assert np.array_equal(decoded[:, :, 0], values >> 4)


def test_signed_values_above_zero_fill_all_grays() -> None:
    values = random_values(0, 32767)

    decoded = pixels_of(deep_tiff(values, signed=True), SPEC)

    assert np.array_equal(decoded[:, :, 0], values >> 7)


def test_values_below_zero_need_a_range() -> None:
    data = deep_tiff(random_values(-1024, 3071), signed=True)

    with pytest.raises(ImageError, match=r"^its values are from -1024 to 3071, some below 0\. Choose a depth range in"):
        pixels_of(data, SPEC)

    decoded = pixels_of(data, ImageSpec(4, 6, 1, (-1024, 3071)))
    assert np.array_equal(decoded[:, :, 0], (random_values(-1024, 3071) + 1024) >> 4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8], ids=["plain", "deflated"])
@pytest.mark.parametrize("signed", [False, True])
def test_any_order_of_bytes_gives_the_same_values(order: str, compression: int, signed: bool) -> None:
    values = random_values(-32768 if signed else 0, 32767)

    data = deep_tiff(values, signed=signed, order=order, compression=compression)

    assert np.all(deep_values(data) == values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8], ids=["plain", "deflated"])
def test_colors_in_planes_of_16_bits_keep_their_upper_8_bits(order: str, compression: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (4, 6, 3))
    data = planar_tiff(values, order, compression)

    assert np.array_equal(pixels_of(data, ImageSpec(4, 6, 3)), values >> 8)
    with pytest.raises(ImageError, match="it has 16 bits in color"):
        pixels_of(data, ImageSpec(4, 6, 3, (0, 4095)))


def test_where_zero_is_white_values_are_inverted() -> None:
    values = random_values(0, 65535)
    data = deep_tiff(values, white_is_zero=True)

    assert np.array_equal(pixels_of(data, SPEC)[:, :, 0], (65535 - values) >> 8)
    assert np.all(deep_values(data) == 65535 - values)
    assert np.array_equal(convert_image(Image.open(io.BytesIO(data)), SPEC).pixels[:, :, 0], (65535 - values) >> 8)

    shallow = deep_tiff(values >> 8, bits=8, white_is_zero=True)
    assert np.array_equal(pixels_of(shallow, SPEC)[:, :, 0], 255 - (values >> 8))


def test_signed_values_of_8_bits_are_refused() -> None:
    data = deep_tiff(random_values(-128, 127), bits=8, signed=True)

    with pytest.raises(ImageError, match="its pixels are signed numbers of 8 bits"):
        pixels_of(data, SPEC)
    with pytest.raises(ImageError, match="its pixels are signed numbers of 8 bits"):
        convert_image(Image.open(io.BytesIO(data)), SPEC)


@pytest.mark.parametrize(("least", "most", "left"), [(0, 4095, 16), (3, 211, 1), (30_000, 31_000, 5)])
@pytest.mark.parametrize("encoded", [deep_png, deep_tiff])
def test_an_image_that_would_lose_most_of_its_grays_is_refused(
    least: int, most: int, left: int, encoded: Callable[[NDArray[np.integer]], bytes]
) -> None:
    data = encoded(random_values(least, most))

    with pytest.raises(
        ImageError, match=f"^its values are from {least} to {most} of 65535, which leaves {left} of 256"
    ):
        pixels_of(data, SPEC)

    assert np.array_equal(pixels_of(data, FULL)[:, :, 0], random_values(least, most) >> 8)
    stretched = pixels_of(data, ImageSpec(4, 6, 1, (least, most)))
    assert (stretched.min(), stretched.max()) == (0, 255 if most - least >= 255 else (most - least) * 256 // 209)


@pytest.mark.parametrize("factor", [256, 257])
def test_16_bits_made_of_8_lose_nothing(factor: int) -> None:
    dim = np.arange(24).reshape(4, 6) % 9 + 3

    assert np.array_equal(pixels_of(deep_png(dim * factor), SPEC)[:, :, 0], dim)


@pytest.mark.parametrize("value", [0, 77, 65535])
def test_an_image_of_one_value_is_read(value: int) -> None:
    assert pixels_of(deep_png(np.full((4, 6), value)), SPEC).tolist() == [[[value >> 8]] * 6] * 4


@given(values_of_16_bits, st.integers(-32768, 65534), st.integers(1, 100_000))
def test_a_range_is_applied_as_documented(values: NDArray[np.uint16], least: int, width: int) -> None:
    most = min(least + width, 65535)
    expected = [
        [(min(max(v, least), most) - least) * 256 // (most - least + 1) for v in row] for row in values.tolist()
    ]
    spec = ImageSpec(4, 6, 1, (least, most))
    assume(values.min() <= most and values.max() >= least)  # others are refused

    decoded = pixels_of(deep_png(values), spec)

    assert decoded[:, :, 0].tolist() == expected
    assert np.array_equal(convert_image(Image.fromarray(values), spec).pixels, decoded)


@given(values_of_16_bits)
def test_the_full_range_keeps_the_upper_8_bits_of_any_image(values: NDArray[np.uint16]) -> None:
    assert np.array_equal(pixels_of(deep_png(values), FULL)[:, :, 0], values >> 8)


@pytest.mark.parametrize("depth_range", [(0, 99), (1000, 3000)])
@pytest.mark.parametrize("pixels", [pattern(4, 6, 1), np.zeros((4, 6, 1), np.uint8), np.full((4, 6, 1), 255, np.uint8)])
def test_a_range_changes_no_image_of_8_bits(pixels: NDArray[np.uint8], depth_range: tuple[int, int]) -> None:
    assert np.array_equal(pixels_of(encode(pixels), ImageSpec(4, 6, 1, depth_range)), pixels)


@pytest.mark.parametrize(("least", "most"), [(0, 99), (700, 65535), (0, 0), (65535, 65535)])
def test_an_image_beyond_the_range_is_refused(least: int, most: int) -> None:
    values = random_values(least, most)
    spec = ImageSpec(4, 6, 1, (100, 699))
    problem = (
        f"^all its values, from {least} to {most}, are beyond the depth range 100-699. Choose a range in training "
        "that holds them: rnn-train --depth-range auto, or two values$"
    )

    with pytest.raises(ImageError, match=problem):
        pixels_of(deep_png(values), spec)
    with pytest.raises(ImageError, match=problem):
        convert_image(Image.fromarray(values.astype(np.uint16)), spec)


@pytest.mark.parametrize(("value", "gray"), [(100, 0), (699, 255)])
def test_an_image_at_an_end_of_the_range_lies_within_it(value: int, gray: int) -> None:
    spec = ImageSpec(4, 6, 1, (100, 699))
    flat = np.full((4, 6), value)
    nearly_beyond = np.full((4, 6), 0 if value == 100 else 65535)
    nearly_beyond[1, 1] = value

    for values in (flat, nearly_beyond):
        assert np.all(pixels_of(deep_png(values), spec) == gray)


COLOR_16 = {
    "rgb.png": png(6, 4, (b"IDAT", zlib.compress((b"\0" + bytes(range(36))) * 4)), bits=16, color=2),
    "gray-alpha.png": png(6, 4, (b"IDAT", zlib.compress((b"\0" + bytes(range(24))) * 4)), bits=16, color=4),
    "rgb.ppm": b"P6 6 4 65535\n" + bytes(range(144)),
}


@pytest.mark.parametrize("name", COLOR_16)
def test_a_range_is_not_ignored_for_colors_of_16_bits(name: str) -> None:
    assert pixels_of(COLOR_16[name], SPEC).shape == pixels_of(COLOR_16[name], FULL).shape == (4, 6, 1)

    with pytest.raises(ImageError, match="16 bits in color or with transparency, and a depth range is for gray images"):
        pixels_of(COLOR_16[name], ImageSpec(4, 6, 1, (0, 4095)))


def pgm(values: NDArray[np.integer], maxval: int, *, plain: bool = False) -> bytes:
    height, width = values.shape
    pixels = " ".join(map(str, values.ravel().tolist())).encode() if plain else values.astype(">u2").tobytes()
    return b"P%d %d %d %d\n" % (2 if plain else 5, width, height, maxval) + pixels


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("maxval", [256, 999, 4095, 65_533, 65_534, 65_535])
def test_a_range_counts_the_values_in_a_pgm(maxval: int, plain: bool) -> None:
    values = random_values(0, maxval)
    data = pgm(values, maxval, plain=plain)
    spec = ImageSpec(4, 6, 1, (maxval // 8, maxval // 2))

    assert np.array_equal(pixels_of(data, spec), pixels_of(deep_png(values), spec))
    assert np.all(deep_values(data) == values)
    for kept in (SPEC, FULL):
        assert np.array_equal(pixels_of(data, kept)[:, :, 0], np.rint(values / maxval * 65535).astype(int) >> 8)


@pytest.mark.parametrize("maxval", [4095, 65_534])
def test_each_value_of_a_pgm_is_found(maxval: int) -> None:
    values = np.arange(maxval + 1)[np.newaxis]

    assert np.all(deep_values(pgm(values, maxval)) == values)


def test_32_bits_are_read_only_where_16_hold_their_values() -> None:
    for most, fits in ((65535, True), (65536, False)):
        data = save(Image.fromarray(random_values(0, most)), "TIFF")
        for spec in (SPEC, FULL):
            if fits:
                assert np.array_equal(pixels_of(data, spec)[:, :, 0], random_values(0, most) >> 8)
            else:
                with pytest.raises(ImageError, match="more than 16 bits"):
                    pixels_of(data, spec)


def test_deep_values_are_those_of_the_file() -> None:
    values = random_values(-5, 4000)

    found = deep_values(deep_tiff(values, signed=True))
    assert found is not None
    assert np.array_equal(found, values)
    assert deep_values(encode(pattern(4, 6, 3))) is None
    with pytest.raises(ImageError):
        deep_values(b"no image")


@pytest.mark.parametrize("depth_range", [(5, 5), (6, 5), (0, 65536), (-32769, 0), (0.0, 1.0), (0,), "0-5"])
def test_a_range_that_cannot_be_is_refused(depth_range: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match=r"depth.range"):
        ImageSpec(4, 6, 1, depth_range)
