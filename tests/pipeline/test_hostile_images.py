"""Odd, broken and hostile image files: each kind has one result, in the decoder and in both commands that use it."""

import builtins
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from starlette.testclient import TestClient

from rnn_runtime import Classifier
from rnn_runtime.cli import main as infer
from rnn_runtime.errors import ImageError, InputError
from rnn_runtime.images import ahead, decode
from rnn_runtime.images.decode import convert_image, image_shape
from rnn_runtime.images.find import find_images
from rnn_runtime.images.limits import MAX_FILE_BYTES
from rnn_runtime.model.spec import ImageSpec
from rnn_runtime.serve.app import make_app
from rnn_train.cli import main as train
from rnn_train.data.folders import list_classes, load_images
from tests.support.commands import Run
from tests.support.encoded_images import encode, pattern, pixels_of, to_image
from tests.support.hostile_images import (
    BOMBS,
    DAMAGED,
    NOT_AN_IMAGE,
    UNSUPPORTED_TIFF,
    deep_tiff,
    float_tiff,
    gray_gif,
    palette_tiff,
    premultiplied_tiff,
    save,
)
from tests.support.results import read_results

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, which the runtime silences itself

TOO_LARGE = f"the file has more than {MAX_FILE_BYTES} bytes, the limit"
NOBODY = 65534
SPEC = ImageSpec(8, 8, 1)  # of the model

PIXELS = pattern(8, 8, 1)  # of the size that the model takes, so that nothing is resized
COLOUR = np.repeat(PIXELS, 3, axis=2)
HALVES = np.repeat(np.array([[[0]], [[255]]], np.uint8), 32, axis=0).reshape(8, 8, 1)
DEEP = np.random.default_rng(1).integers(0, 1 << 16, (8, 8), np.uint16)
UPPER_BITS = (DEEP >> 8).astype(np.uint8)[:, :, np.newaxis]
GRAYS = np.repeat(np.arange(256)[:, np.newaxis], 3, axis=1)
NO_COLOUR = to_image(np.full((8, 8, 1), 128, np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # by 90 degrees clockwise to view


@dataclass(frozen=True)
class Readable:
    """A file, and the pixels that it gives, which may be off by `tolerance` where the format is lossy."""

    data: bytes
    pixels: NDArray[np.uint8]
    tolerance: int = 0


def _on_black(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(pixels * (alpha / 255)).astype(np.uint8)


def _with_palette(**options: Any) -> bytes:
    image = to_image(PIXELS)
    image.putpalette([255 - value for value in range(256) for _ in "rgb"])
    return save(image, "PNG", **options)


def _animated(style: str, **options: Any) -> bytes:
    return save(to_image(PIXELS), style, save_all=True, append_images=[to_image(255 - PIXELS)], **options)


def _turned(pixels: NDArray[np.uint8], style: str, **options: Any) -> bytes:
    return save(to_image(np.rot90(pixels)), style, exif=TURNED, **options)


READABLE = {
    "gray.png": Readable(encode(PIXELS), PIXELS),
    "no image by its name.tif": Readable(encode(PIXELS), PIXELS),
    "16-bit.png": Readable(save(Image.fromarray(DEEP), "PNG"), UPPER_BITS),
    "16-bit.tif": Readable(save(Image.fromarray(DEEP), "TIFF"), UPPER_BITS),
    "black-and-white.png": Readable(save(to_image(HALVES).convert("1"), "PNG"), HALVES),
    "palette.png": Readable(_with_palette(), 255 - PIXELS),
    "palette-transparent.png": Readable(
        _with_palette(transparency=bytes(range(256))), _on_black(255 - PIXELS, PIXELS), tolerance=1
    ),
    "gray-alpha.png": Readable(
        save(Image.merge("LA", [to_image(PIXELS), to_image(255 - PIXELS)]), "PNG"),
        _on_black(PIXELS, 255 - PIXELS),
        tolerance=1,
    ),
    "alpha.png": Readable(
        encode(np.concatenate([COLOUR, 255 - PIXELS], axis=2)), _on_black(PIXELS, 255 - PIXELS), tolerance=1
    ),
    "alpha.webp": Readable(
        encode(np.concatenate([COLOUR, PIXELS | 1], axis=2), ".webp"), _on_black(PIXELS, PIXELS | 1), tolerance=1
    ),
    "cmyk.jpg": Readable(save(to_image(HALVES).convert("CMYK"), "JPEG", quality=100), HALVES, tolerance=3),
    # Of a gray pixel, a and b of LAB are in the middle. L is the perceived lightness, which is near the gray value.
    "lab.tif": Readable(
        save(Image.merge("LAB", [to_image(PIXELS), NO_COLOUR, NO_COLOUR]), "TIFF"), PIXELS, tolerance=25
    ),
    "premultiplied.tif": Readable(premultiplied_tiff(PIXELS), PIXELS),
    "palette-of-16-bits.tif": Readable(palette_tiff(PIXELS, (255 - GRAYS) * 257), 255 - PIXELS),
    "palette-of-8-bits.tif": Readable(palette_tiff(PIXELS, 255 - GRAYS), 255 - PIXELS),
    "cmyk.tif": Readable(save(to_image(COLOUR).convert("CMYK"), "TIFF"), PIXELS),
    "animated.gif": Readable(_animated("GIF"), PIXELS),
    "gray-palette.gif": Readable(gray_gif(PIXELS), PIXELS),
    "animated.png": Readable(_animated("PNG"), PIXELS),
    "animated.webp": Readable(_animated("WEBP", lossless=True), PIXELS),
    "pages.tif": Readable(_animated("TIFF"), PIXELS),
    "turned.png": Readable(_turned(PIXELS, "PNG"), PIXELS),
    "turned.webp": Readable(_turned(COLOUR, "WEBP", lossless=True), PIXELS),
    "turned.tif": Readable(_turned(PIXELS, "TIFF"), PIXELS),
    "turned.jpg": Readable(_turned(HALVES, "JPEG", quality=100), HALVES, tolerance=3),
    "1x1.png": Readable(encode(PIXELS[:1, :1]), np.broadcast_to(PIXELS[:1, :1], (8, 8, 1))),
    "10000x1.png": Readable(encode(np.full((1, 10_000, 1), 77, np.uint8)), np.full((8, 8, 1), 77, np.uint8)),
    "1x10000.png": Readable(encode(np.full((10_000, 1, 1), 77, np.uint8)), np.full((8, 8, 1), 77, np.uint8)),
}
ODD_NAMES = (
    "a b.png",
    "line\nbreak.png",
    "carriage\rreturn.png",
    "\x1b[31mred.png",
    "-x.png",
    'comma, "quotes".png',
    os.fsdecode(b"no UTF-8 \xff\xfe.png"),
)

_LARGE = pattern(40, 40, 3)
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"hello, I am a text", NOT_AN_IMAGE),
    "zeros.jpg": (bytes(10_000), NOT_AN_IMAGE),
    "only-a-signature.png": (b"\x89PNG\r\n\x1a\n", NOT_AN_IMAGE),
    **{
        f"truncated{suffix}": (encode(_LARGE, suffix)[:-1000], DAMAGED)
        for suffix in (".png", ".jpg", ".bmp", ".gif", ".ppm", ".tif")
    },
    "truncated.webp": (encode(_LARGE, ".webp")[:-1000], NOT_AN_IMAGE),
    "floats.tif": (
        save(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "its pixels are floating-point numbers of unknown range",
    ),
    **{
        name: (data, UNSUPPORTED_TIFF)
        for name, data in {
            "floats-of-16-bits.tif": float_tiff(16),
            "floats-of-64-bits.tif": float_tiff(64),
            "floats-in-color.tif": float_tiff(32, channels=3),
            "10-bit.tif": deep_tiff(DEEP >> 8, bits=10),
            "16-bit-white-is-zero-big-endian.tif": deep_tiff(DEEP, white_is_zero=True, order=">"),
            "12-bit-big-endian.tif": deep_tiff(DEEP >> 4, bits=12, order=">"),
            "12-bit-white-is-zero.tif": deep_tiff(DEEP >> 4, bits=12, white_is_zero=True),
            "signed-white-is-zero.tif": deep_tiff(DEEP >> 1, signed=True, white_is_zero=True),
        }.items()
    },
    "32-bit.tif": (
        save(Image.fromarray(np.full((8, 8), 1 << 20, np.int32)), "TIFF"),
        "its pixels have more than 16 bits",
    ),
}


# Those of the bombs that take little time.
BEYOND_LIMITS = ("claim.jpg", "scans.jpg", "claim.gif", "wide.bmp", "claim.tif", "tiles-lzw.tif", "comments.ppm")


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _sparse(path: Path) -> None:
    path.write_bytes(encode(PIXELS))
    os.truncate(path, MAX_FILE_BYTES + 1)


# Files that bytes alone don't make.
SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "loop.png": (_link("loop.png"), "too many levels of symbolic links"),
    "dangling.png": (_link("nowhere.png"), "no such file or directory"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "device.png": (_link("/dev/null"), "not a regular file"),
    "of-no-size.png": (_link("/proc/self/maps"), NOT_AN_IMAGE),
    "huge.png": (_sparse, TOO_LARGE),
}


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, provider="cpu")


@pytest.mark.parametrize("name", READABLE, ids=ascii)
def test_each_odd_kind_has_its_pixels(name: str) -> None:
    kind = READABLE[name]

    pixels = pixels_of(kind.data, SPEC)

    assert np.abs(pixels.astype(int) - kind.pixels).max() <= kind.tolerance


@pytest.mark.parametrize("name", UNREADABLE)
def test_each_broken_kind_has_its_reason(name: str) -> None:
    data, problem = UNREADABLE[name]

    with pytest.raises(ImageError, match=f"^{re.escape(problem)}$"):
        pixels_of(data, SPEC)


@pytest.mark.parametrize("name", BEYOND_LIMITS)
def test_an_image_beyond_the_limits_says_which(name: str) -> None:
    make, problem = BOMBS[name]
    assert problem

    for function in (partial(pixels_of, make(), SPEC), partial(image_shape, make())):
        with pytest.raises(ImageError, match=f"^{re.escape(problem)}$"):
            function()


@pytest.mark.parametrize("name", SPECIAL)
def test_each_special_file_has_its_reason(tmp_path: Path, name: str) -> None:
    make, problem = SPECIAL[name]
    make(tmp_path / name)

    with pytest.raises(ImageError, match=f"^{re.escape(problem)}$"):
        pixels_of(tmp_path / name, SPEC)


def test_link_to_an_image_is_that_image(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(encode(PIXELS))
    (tmp_path / "a.png").symlink_to("target")

    assert np.array_equal(pixels_of(tmp_path / "a.png", SPEC), PIXELS)


@pytest.mark.parametrize(("height", "channels"), [(8, 3), (5, 1), (11, 3)])
def test_a_gif_with_a_gray_palette_beside_colors_is_gray_at_any_size(height: int, channels: int) -> None:
    spec = ImageSpec(height, 6, channels)
    expected = pixels_of(encode(PIXELS), spec)

    assert np.array_equal(pixels_of(gray_gif(PIXELS), spec), expected)
    with Image.open(io.BytesIO(gray_gif(PIXELS))) as image:
        image.load()
        assert np.array_equal(convert_image(image, spec).pixels, expected)


def _exceptions() -> Iterator[Exception]:
    """One of each kind that Python has, and of some that decoders have."""
    kinds = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    arguments: dict[type, tuple[Any, ...]] = {
        UnicodeDecodeError: ("utf-8", b"", 0, 1, "?"),
        UnicodeEncodeError: ("ascii", "", 0, 1, "?"),
    }
    arguments |= {UnicodeTranslateError: ("", 0, 1, "?"), ExceptionGroup: ("several", [ValueError("one")])}
    for kind in [*kinds, zlib.error, struct.error, Image.DecompressionBombError, UnidentifiedImageError]:
        yield kind(*arguments.get(kind, ("of a decoder",)))


STEPS = {
    "open": (Image, "open"),
    "reduce": (Image.Image, "draft"),
    "load": (ImageFile.ImageFile, "load"),
    "turn": (ImageOps, "exif_transpose"),
    "convert": (Image.Image, "convert"),
}


@pytest.mark.parametrize("step", STEPS)
def test_whatever_pillow_raises_is_an_error_of_the_image(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    data = encode(_LARGE, ".gif")

    def raising(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(*STEPS[step], raising)

    for error in _exceptions():
        with pytest.raises(ImageError) as found:
            pixels_of(data, SPEC)
        assert found.value.__cause__ is error


@pytest.mark.parametrize("kind", [NameError, TypeError, AttributeError, ValueError])
def test_a_bug_of_ours_is_no_damaged_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: Classifier, kind: type[Exception]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [str(tmp_path / folder / f"{i}.gif") for folder in "ab" for i in range(30)]
    for path in paths:
        Path(path).write_bytes(encode(_LARGE, ".gif"))

    def raising(*_: object) -> Any:
        raise kind("a bug")

    monkeypatch.setattr(decode, "fit_image", raising)
    monkeypatch.setattr(ahead, "PEEKED", len(paths))  # enough for the command to start processes

    with Image.open(paths[0]) as opened:
        for images in (paths[0], paths, _LARGE, opened, opened.convert("L"), Path(paths[0]).read_bytes()):
            with pytest.raises(kind, match=r"^a bug$"):
                classifier.predict(images)
    with pytest.raises(kind, match=r"^a bug$"):
        load_images(paths, (8, 8), 1, skip_unreadable=True)
    with TestClient(make_app(classifier), raise_server_exceptions=False) as client:
        assert client.post("/classify", content=Path(paths[0]).read_bytes()).status_code == 500
    for command, arguments in {
        infer: ["--model", str(classifier.path), "--provider", "cpu", *paths],
        train: [
            "--data",
            str(tmp_path),
            "--image-size",
            "8",
            "--skip-unreadable",
            "--no-plots",
            "--output",
            str(tmp_path / "model.pt"),
        ],
    }.items():
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, kind)


def test_the_cause_of_a_damaged_image_is_shown_for_debugging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(encode(_LARGE, ".gif")[:-1000])
    monkeypatch.setenv("RNN_DEBUG", "1")

    for use in (partial(classifier.predict, path), partial(load_images, [str(path)], (8, 8), 1, skip_unreadable=True)):
        use()
        shown = capsys.readouterr().err
        assert shown.startswith(f"{path}: Traceback")
        assert "OSError: image file is truncated" in shown
        assert shown.endswith(f"ImageError: {DAMAGED}\n")


@pytest.mark.parametrize("step", STEPS)
def test_an_interruption_within_a_file_is_no_error_of_that_file(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*STEPS[step], interrupted)

    with pytest.raises(KeyboardInterrupt):
        pixels_of(encode(_LARGE, ".gif"), SPEC)


@pytest.fixture
def all_kinds(tmp_path: Path) -> dict[str, str | None]:
    """A working folder with every kind, in two folders of `photos`; gives what is wrong with each by its path."""
    for folder in ("photos/a", "photos/b/a.png", "photos/b/more"):
        (tmp_path / folder).mkdir(parents=True)
    for name, kind in READABLE.items():
        (tmp_path / "photos/a" / name).write_bytes(kind.data)
    for name in ODD_NAMES:
        (tmp_path / "photos/a" / name).write_bytes(encode(PIXELS))
    for name, (data, _) in UNREADABLE.items():
        (tmp_path / "photos/b/more" / name).write_bytes(data)
    for name, (make, _) in SPECIAL.items():
        make(tmp_path / "photos/b" / name)
    (tmp_path / "photos/b/a.png/good.png").write_bytes(encode(PIXELS))
    (tmp_path / "photos/b/link.png").symlink_to(tmp_path)
    (tmp_path / "photos/link").symlink_to("link")
    return (
        {f"photos/a/{name}": None for name in (*READABLE, *ODD_NAMES)}
        | {f"photos/b/more/{name}": problem for name, (_, problem) in UNREADABLE.items()}
        | {f"photos/b/{name}": problem for name, (_, problem) in SPECIAL.items()}
        | {"photos/b/a.png/good.png": None}
    )


def test_rnn_infer_tells_of_every_file_in_a_folder(
    run: Run, tmp_path: Path, digits_model: Path, all_kinds: dict[str, str | None]
) -> None:
    result = run("rnn-infer", "--model", digits_model, "--recursive", "--output", "out.csv", "photos")

    rows = read_results(tmp_path / "out.csv")
    assert {row["path"]: row["error"] or None for row in rows} == all_kinds
    assert [row["path"] for row in rows] == sorted(all_kinds)
    assert all(bool(row["label"]) != bool(row["error"]) for row in rows)
    bad = sum(map(bool, all_kinds.values()))
    assert result.returncode == 1
    assert f"{len(all_kinds)} images, {bad} unreadable, " in result.stderr
    assert "Traceback" not in result.stderr


def test_rnn_train_leaves_out_what_rnn_infer_cannot_read(
    run: Run, tmp_path: Path, all_kinds: dict[str, str | None]
) -> None:
    bad = {path: problem for path, problem in all_kinds.items() if problem}
    line = ("rnn-train", "--data", "photos", "--image-size", "8", "--epochs", "1", "--no-plots")

    refused = run(*line)
    assert refused.returncode == 2
    assert f"{len(bad)} of {len(all_kinds)} images can't be read, the first: photos/b/" in refused.stderr
    assert not (tmp_path / "model.pt").exists()
    result = run(*line, "--skip-unreadable")

    first = min(bad)
    note = f"Left out {len(bad)} of {len(all_kinds)} images that can't be decoded, the first: {first}: {bad[first]}\n"
    assert result.returncode == 0, result.stderr
    assert note in result.stderr
    assert f"{len(all_kinds) - len(bad)} training images" in result.stderr
    assert (tmp_path / "model.pt").exists()


def test_training_finds_the_size_of_images_among_broken_ones(tmp_path: Path) -> None:
    files = [b"", b"a text", encode(PIXELS)[:-40], encode(PIXELS)[:20], encode(PIXELS)]
    for i, data in enumerate(files):
        (tmp_path / f"{i}.png").write_bytes(data)

    pixels, _, errors = load_images([f"{tmp_path}/{i}.png" for i in range(len(files))], skip_unreadable=True)

    assert np.array_equal(pixels, [PIXELS])
    assert [*errors] == [0, 1, 2, 3]


def error_of(path: str) -> str | None:
    """What is wrong with an image file."""
    try:
        pixels_of(path, SPEC)
    except ImageError as error:
        return str(error)
    return None


def test_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a/a.png").mkdir(parents=True)
    (tmp_path / "a/a.png/inner.png").touch()
    (tmp_path / "a/b.png").touch()
    (tmp_path / "a/c.png").symlink_to(tmp_path)

    assert list(find_images([f"{tmp_path}/a"])) == [f"{tmp_path}/a/b.png"]
    expected = [f"{tmp_path}/a/a.png/inner.png", f"{tmp_path}/a/b.png"]
    assert list(find_images([f"{tmp_path}/a"], recursive=True)) == expected
    assert list_classes(tmp_path) == {"a": expected}


def test_files_that_vanish_after_listing_are_told(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png", "c/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(PIXELS))

    found = find_images([str(tmp_path)], recursive=True)
    errors = {path: error_of(path) for path in itertools.islice(found, 1)}
    os.unlink(tmp_path / "a/2.png")
    shutil.rmtree(tmp_path / "b")
    errors |= {path: error_of(path) for path in found}

    gone = "no such file or directory"
    assert errors == {
        f"{tmp_path}/a/1.png": None, f"{tmp_path}/a/2.png": gone, f"{tmp_path}/b/": gone, f"{tmp_path}/c/4.png": None
    }  # fmt: skip


def as_an_ordinary_user(folder: Path, function: Callable[[], Any]) -> Any:
    """What a function gives in a process that permissions hold for, as they don't for root, working in `folder`."""

    def child() -> None:
        os.chdir(folder)  # the folders above it may be closed to others
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        sender.send(function())

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder of two classes; in one are a file and two folders without permission, one can't be listed itself."""
    for name in ("data/a/good.png", "data/a/secret.png", "data/a/locked/1.png", "data/a/names only/2.png", "c/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(PIXELS))
    shutil.copytree(tmp_path / "data/a", tmp_path / "data/b")
    modes = {"data/a/secret.png": 0o000, "data/a/locked": 0o000, "data/a/names only": 0o444, "c": 0o000}
    tmp_path.chmod(0o755)
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    yield tmp_path
    for name in modes:
        (tmp_path / name).chmod(0o755)


def test_a_named_file_without_permission_gets_its_row(closed: Path, digits_model: Path) -> None:
    def attempt() -> tuple[int, str]:
        arguments = ["--provider", "cpu", "--model", "model.onnx", "data/a/secret.png", "data/a/good.png"]
        result = CliRunner().invoke(infer, arguments)
        return result.exit_code, result.stdout

    shutil.copy(digits_model, closed / "model.onnx")

    code, printed = as_an_ordinary_user(closed, attempt)

    assert code == 1
    assert "data/a/secret.png,,,permission denied\n" in printed
    assert re.search(r"data/a/good\.png,\d,", printed)


def test_no_permission_is_told_of_each_file_and_folder(closed: Path) -> None:
    def attempt() -> tuple[dict[str, str | None], dict[str, str | None]]:
        listed = [path for paths in list_classes(Path("data")).values() for path in paths]
        found = find_images(["data"], recursive=True)
        return {path: error_of(path) for path in found}, {path: error_of(path) for path in listed}

    for_inference, for_training = as_an_ordinary_user(closed, attempt)

    denied = {f"data/a/{name}": "permission denied" for name in ("locked/", "names only/2.png", "secret.png")}
    good = [
        "data/a/good.png",
        *(f"data/b/{name}" for name in ("good.png", "locked/1.png", "names only/2.png", "secret.png")),
    ]
    assert for_inference == denied | dict.fromkeys(good)
    assert for_training == for_inference


def test_named_folder_without_permission_is_an_error(closed: Path) -> None:
    def attempt() -> str:
        with pytest.raises(InputError) as error:
            list(find_images(["c"]))
        return str(error.value)

    assert as_an_ordinary_user(closed, attempt) == "c: can't list this folder: Permission denied"


@pytest.mark.slow
def test_each_of_10000_files_is_predicted_or_has_its_error(
    run: Run, tmp_path: Path, digits_model: Path, digits_images: Path, classifier: Classifier
) -> None:
    (tmp_path / "images").mkdir()
    digits = sorted(digits_images.glob("*/*.png"))
    broken = sorted(UNREADABLE)[::4]
    expected: dict[str, str] = {}
    for i in range(10_000):
        path = tmp_path / "images" / f"{i:05}.png"
        if i % 100 == 42:
            data, expected[f"images/{path.name}"] = UNREADABLE[broken[i // 100 % len(broken)]]
            path.write_bytes(data)
        else:
            path.hardlink_to(digits[i % len(digits)])
    labels = {prediction.path: prediction.label for prediction in classifier.predict(digits)}

    result = run("rnn-infer", "--model", digits_model, "--output", "out.csv", "--summary", "summary.json", "images")

    rows = {row["path"]: row for row in read_results(tmp_path / "out.csv")}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert result.returncode == 1
    assert "10,000 images, 100 unreadable, " in result.stderr
    assert (summary["images"], summary["unreadable"]) == (10_000, 100)
    assert sorted(rows) == [f"images/{i:05}.png" for i in range(10_000)]
    assert {path: row["error"] for path, row in rows.items() if row["error"]} == expected
    for i in range(10_000):
        name = f"images/{i:05}.png"
        assert rows[name]["label"] == ("" if name in expected else labels[str(digits[i % len(digits)])])
