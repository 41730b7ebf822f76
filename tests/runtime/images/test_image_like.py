"""Images that are given as something other than a path have the pixels of their file."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from rnn_runtime.errors import ImageError
from rnn_runtime.images.decode import TakenImage, decode_image, read_images
from rnn_runtime.images.image_like import ImageLike, take_images
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pattern, to_image

SPECS = [ImageSpec(8, 6, 1), ImageSpec(8, 6, 3)]


def pixels_of(image: ImageLike, spec: ImageSpec) -> NDArray[np.uint8]:
    (taken,) = take_images(image, spec)
    return pixels_of_taken(taken, spec)


def pixels_of_taken(taken: str | TakenImage, spec: ImageSpec) -> NDArray[np.uint8]:
    (found,) = read_images([taken], spec)
    if isinstance(found, ImageError):
        raise found
    return found.pixels


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def loaded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def modes() -> dict[str, bytes]:
    """A file for each kind of pixels."""
    photo = to_image(pattern(30, 40, 4))
    deep = np.random.default_rng(0).integers(0, 1 << 16, (30, 40), np.uint16)
    palette = photo.convert("RGB").quantize(17)
    return {
        "1": saved(photo.convert("1"), "PNG"),
        "L": saved(photo.convert("L"), "PNG"),
        "LA": saved(photo.convert("LA"), "PNG"),
        "P": saved(palette, "PNG"),
        "P with transparency": saved(palette, "PNG", transparency=3),
        "RGB with transparency": saved(photo.convert("RGB"), "PNG", transparency=(1, 2, 3)),
        "RGBA": saved(photo, "PNG"),
        "I;16": saved(Image.fromarray(deep), "PNG"),
        "I;16B": saved(Image.fromarray(deep.astype(">u2")), "TIFF"),
        "CMYK": saved(photo.convert("CMYK"), "TIFF"),
        "LAB": saved(Image.merge("LAB", photo.split()[:3]), "TIFF"),
        "GIF": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "WebP": saved(photo, "WEBP", lossless=True),
        "BMP": saved(photo.convert("RGB"), "BMP"),
        "PPM": saved(photo.convert("RGB"), "PPM"),
    }


MODES = modes()


@pytest.mark.parametrize("spec", SPECS, ids=["gray", "RGB"])
@pytest.mark.parametrize("kind", [*MODES, "JPEG", "MPO"])
def test_bytes_open_files_and_opened_images_are_decoded_as_files_are(
    tmp_path: Path, kind: str, spec: ImageSpec
) -> None:
    photo = to_image(pattern(300, 400, 3))
    more = {"JPEG": saved(photo, "JPEG"), "MPO": saved(photo, "MPO", save_all=True, append_images=[photo])}
    data = (MODES | more)[kind]
    (tmp_path / "image").write_bytes(data)
    expected = pixels_of(str(tmp_path / "image"), spec)

    assert np.array_equal(expected, decode_image(data, spec).pixels)
    for image_like in (data, bytearray(data), memoryview(data), io.BytesIO(data), tmp_path / "image"):
        assert np.array_equal(pixels_of(image_like, spec), expected)
    for buffering in (-1, 0):
        with (tmp_path / "image").open("rb", buffering) as file:
            assert np.array_equal(pixels_of(file, spec), expected)
    for source in (tmp_path / "image", io.BytesIO(data)):
        with Image.open(source) as image:
            assert np.array_equal(pixels_of(image, spec), expected)
            assert np.array_equal(pixels_of(image, spec), expected)  # it can still be read


@pytest.mark.parametrize("spec", SPECS, ids=["gray", "RGB"])
@pytest.mark.parametrize("kind", MODES)
def test_decoded_images_of_exact_formats_have_the_pixels_of_their_file(kind: str, spec: ImageSpec) -> None:
    image = loaded(MODES[kind])

    assert np.array_equal(pixels_of(image, spec), decode_image(MODES[kind], spec).pixels)


@pytest.mark.parametrize("spec", SPECS, ids=["gray", "RGB"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 77])
def test_orientation_is_applied_once(orientation: int, format: str, spec: ImageSpec) -> None:
    photo = to_image(pattern(5, 7, 3)).resize((14, 10), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo, format, exif=exif, lossless=True)
    expected = decode_image(data, spec).pixels

    assert np.array_equal(pixels_of(Image.open(io.BytesIO(data)), spec), expected)
    if format != "JPEG" or spec.channels == 3:  # to gray, JPEG files are decoded without their colors
        assert np.array_equal(pixels_of(loaded(data), spec), expected)


JPEGS = {size: to_image(pattern(6, 8, 3)).resize(size, Image.Resampling.BICUBIC) for size in ((31, 45), (400, 300))}


@pytest.mark.parametrize("size", JPEGS)
@pytest.mark.parametrize("spec", SPECS, ids=["gray", "RGB"])
def test_a_decoded_jpeg_has_the_pixels_of_its_file_if_drafted_and_nearly_those_if_not(
    spec: ImageSpec, size: tuple[int, int]
) -> None:
    data = saved(JPEGS[size], "JPEG")
    expected = decode_image(data, spec).pixels
    drafted = Image.open(io.BytesIO(data))
    drafted.draft("L" if spec.channels == 1 else "RGB", (2 * 8, 2 * 8))
    drafted.load()

    decoded = pixels_of(np.asarray(loaded(data)), spec)

    assert np.array_equal(pixels_of(drafted, spec), expected)
    assert np.array_equal(pixels_of(loaded(data), spec), decoded)
    if spec.channels == 3 and min(size) < 4 * 8:
        assert np.array_equal(decoded, expected)
    assert np.abs(decoded.astype(int) - expected).mean() < 6  # of noise; less of a photo


shapes = st.tuples(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 2, 3, 4]))


@given(shapes, st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(0, 9))
def test_arrays_have_the_pixels_of_their_png_file(
    shape: tuple[int, int, int], height: int, width: int, channels: int, seed: int
) -> None:
    spec = ImageSpec(height, width, channels)
    array = pattern(*shape, seed)
    expected = decode_image(encode(array), spec).pixels
    mirrored = np.asfortranarray(array[:, ::-1])[:, ::-1]  # another order in memory

    found = [pixels_of(image, spec) for image in (array, mirrored, to_image(array))]
    if shape[2] == 1:
        found.append(pixels_of(array[:, :, 0], spec))

    for pixels in found:
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, expected)


def test_arrays_are_taken_over_as_they_are_at_that_moment() -> None:
    for spec in (ImageSpec(8, 6, 3), ImageSpec(4, 4, 1)):
        array = np.full((8, 6, 3), 200, np.uint8)
        (taken,) = take_images(array, spec)
        array[:] = 0
        assert pixels_of_taken(taken, spec).min() == 200


def test_an_image_of_the_caller_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(to_image(pattern(30, 40, 3)), "JPEG", exif=exif)
    opened, decoded = Image.open(io.BytesIO(data)), loaded(data)

    for image in (opened, decoded):
        pixels_of(image, SPECS[0])
        assert (image.size, image.mode, image.getexif()[0x0112]) == ((40, 30), "RGB", 6)
    assert np.array_equal(np.asarray(opened), np.asarray(decoded))


def test_a_later_frame_that_the_caller_chose_is_taken() -> None:
    frames = [to_image(np.full((8, 6, 3), value, np.uint8)) for value in (10, 200)]
    image = Image.open(io.BytesIO(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])))
    image.seek(1)

    assert pixels_of(image, SPECS[0]).min() == 200


def test_an_image_of_a_format_that_is_not_read_from_files_counts_by_its_pixels() -> None:
    photo = to_image(pattern(8, 6, 3))

    assert np.array_equal(pixels_of(Image.open(io.BytesIO(saved(photo, "TGA"))), SPECS[1]), np.asarray(photo))


def test_open_files_are_read_from_where_they_are() -> None:
    data = encode(pattern(8, 6, 1))
    file = io.BytesIO(b"header" + data)
    file.seek(6)

    assert np.array_equal(pixels_of(file, SPECS[0]), decode_image(data, SPECS[0]).pixels)
    assert not file.closed


def with_closed_file(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image


def at_its_end(data: bytes) -> io.BytesIO:
    file = io.BytesIO(data)
    file.read()
    return file


def closed(data: bytes) -> io.BytesIO:
    file = io.BytesIO(data)
    file.close()
    return file


class Damaged(io.RawIOBase):
    """A member of an archive that is damaged."""

    def read(self, _size: int = -1) -> bytes:
        raise zipfile.BadZipFile("Bad CRC-32 for file 'a.png'")


class Failing(io.RawIOBase):
    """A file on a disk that is broken."""

    def read(self, _size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


PNG = encode(pattern(8, 6, 1))


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "the file is empty"),
        (b"no image", "not an image"),
        (io.BytesIO(), "the file is empty"),
        (at_its_end(PNG), r"read to its end already\. Rewind it with seek\(0\)"),
        (closed(PNG), "I/O operation on closed file"),
        (Failing(), "^input/output error$"),
        (Damaged(), r"^can't be read \(BadZipFile: Bad CRC-32 for file 'a\.png'\)$"),
        (with_closed_file(PNG), "its file was closed before it was decoded"),
        (Image.open(io.BytesIO(PNG[:60])), "a damaged image"),
        (Image.new("L", (0, 5)), "has no pixels"),
        (Image.new("F", (5, 5)), "floating-point numbers"),
        (Image.new("I", (5, 5), -1), "from -1 to -1, some below 0"),
        (Image.new("I", (5, 5), 1 << 16), "more than 16 bits"),
        (Image.new("L", ((1 << 20) + 1, 1)), "a side of more than"),
        (np.empty((0, 5), np.uint8), "has no pixels"),
        (np.empty((1, (1 << 26) + 1), np.uint8), "more than 67108864 pixels"),
    ],
)
def test_an_image_that_cannot_be_used_is_an_image_error(image: ImageLike, problem: str) -> None:
    for spec in SPECS:
        with pytest.raises(ImageError, match=problem):
            pixels_of(image, spec)


def test_a_file_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnn_runtime.images.image_like.MAX_FILE_BYTES", 5 << 20)
    with open("/dev/zero", "rb") as file, pytest.raises(ImageError, match="more than 536870912 bytes"):  # noqa: PTH123
        pixels_of(file, SPECS[0])
