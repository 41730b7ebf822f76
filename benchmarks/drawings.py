"""What people send to a digit model: scans, drawings, photos of paper. How many of each kind does a model read right?

    python -m benchmarks.drawings model.onnx
    python -m benchmarks.drawings model.onnx --data FOLDER  # MNIST's test images as the signs, instead of fonts

The model is one that was trained on digits. Fonts are those that the machine has; Debian's packages fonts-* hold many.
"""

import io
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from rnn_runtime import Classifier
from rnn_train.data import read_idx

Values = NDArray[np.float64]
Random = np.random.Generator

_DIGITS = "0123456789"
_FONT_FOLDER = Path("/usr/share/fonts")
_FONT_SIZE = 160  # pixels
# Fonts whose digits aren't digits as people write them: symbols, key caps, ornaments, outlines.
_ODD_FONTS = ("Math", "Emoji", "Symbol", "Keyboard", "Initials", "Outline", "bwht", "SC")
_MNIST_SCALE = 6
_FOUND = 160  # of 255, the threshold by which an enlarged image of MNIST becomes a sign


def font_signs(count: int, random: Random) -> list[tuple[Image.Image, str]]:
    """Digits of fonts, as `(coverage in mode L, digit)`, each cut out; of Pillow's own font if there are no others."""
    return [(font_sign(_DIGITS[i % 10], random), _DIGITS[i % 10]) for i in range(count)]


def font_sign(character: str, random: Random) -> Image.Image:
    """A character of one of the fonts, cut out, in mode `L`."""
    fonts = _find_fonts()
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont
    font = ImageFont.load_default(_FONT_SIZE)
    if fonts:
        font = ImageFont.truetype(fonts[random.integers(len(fonts))], _FONT_SIZE)
    canvas = Image.new("L", (3 * _FONT_SIZE, 3 * _FONT_SIZE))
    ImageDraw.Draw(canvas).text((_FONT_SIZE, _FONT_SIZE), character, 255, font=font)
    return canvas.crop(canvas.getbbox())


@cache
def _find_fonts() -> list[Path]:
    return sorted(path for path in _FONT_FOLDER.rglob("*.[to]tf") if not any(odd in path.name for odd in _ODD_FONTS))


def mnist_signs(folder: Path, count: int) -> list[tuple[Image.Image, str]]:
    """MNIST's test images, enlarged and cut out, as `font_signs` gives digits of fonts."""
    images, labels = (read_idx(folder / f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
    signs = []
    for i in range(count):
        pixels = images[np.flatnonzero(labels == i % 10)[i // 10]]
        side = 28 * _MNIST_SCALE
        large = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        clear = large.point(lambda value: min(max(4 * (value - _FOUND // 2), 0), 255))
        signs.append((clear.crop(clear.getbbox()), _DIGITS[i % 10]))
    return signs


def place(sign: Image.Image, size: tuple[int, int], longest: int, center: tuple[float, float] | None = None) -> Values:
    """How much of each pixel of a canvas a sign covers, 0 to 1, with the sign's longer side and center given."""
    scale = longest / max(sign.size)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    scaled = sign.resize((max(1, round(sign.width * scale)), max(1, round(sign.height * scale))), method)
    x, y = center or (size[0] / 2, size[1] / 2)
    canvas = Image.new("L", size)
    canvas.paste(scaled, (round(x - scaled.width / 2), round(y - scaled.height / 2)))
    return np.asarray(canvas, np.float64) / 255


def as_in_mnist(sign: Image.Image) -> Values:
    """A sign as MNIST's authors made theirs: in a box of 20 pixels, its center of mass in the center of 28."""
    box = place(sign, (20, 20), 20)
    down, right = (float(box.sum(axis=axis) @ np.arange(20) / box.sum()) for axis in (1, 0))
    canvas = np.zeros((44, 44))
    top, left = 8 + round(14 - down), 8 + round(14 - right)
    canvas[top : top + 20, left : left + 20] = box
    return canvas[8:36, 8:36]


def paint(cover: Values, ink: object, paper: object) -> Image.Image:
    """An image in gray or RGB: `ink` where a sign covers `paper`, both a color or one per pixel."""
    ink_values, paper_values = np.asarray(ink, np.float64), np.asarray(paper, np.float64)
    if 3 in (ink_values.shape[-1:] + paper_values.shape[-1:]) or paper_values.ndim == 3:
        cover = cover[..., np.newaxis]
    return to_image(paper_values * (1 - cover) + ink_values * cover)


def to_image(values: Values) -> Image.Image:
    """Values, rounded and limited to 0 to 255, as an image."""
    return Image.fromarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))


def somewhere(random: Random, side: int, longest: int) -> tuple[float, float]:
    """A center for a sign in a square canvas, off the middle."""
    reach = (side - longest) / 4
    return side / 2 + random.uniform(-reach, reach), side / 2 + random.uniform(-reach, reach)


def noisy_jpeg(image: Image.Image, random: Random, deviation: float, quality: int) -> Image.Image:
    """An image with noise, after a JPEG file."""
    values = np.asarray(image, np.float64)
    file = io.BytesIO()
    to_image(values + random.normal(0, deviation, values.shape)).save(file, "JPEG", quality=quality)
    return Image.open(file)


def uneven_light(random: Random, side: int, low: float, high: float) -> Values:
    """Paper from `low` to `high`, lighter toward one side."""
    down, right = np.mgrid[:side, :side] / side
    along, across = random.uniform(-1, 1, 2)
    light = along * down + across * right - random.uniform(0, 0.6) * ((down - random.random()) ** 2 + right**2)
    return low + (high - low) * (light - light.min()) / np.ptp(light)  # type: ignore[no-any-return]


def thin_strokes(sign: Image.Image, pen: int) -> Image.Image:
    """A sign drawn along the middle of its strokes, with a pen of `pen` pixels."""
    layers = np.zeros((sign.height + 4, sign.width + 4))
    inked = np.pad((np.asarray(sign) > 127).astype(np.float64), 2)
    while inked.any():  # the distance from the edge, by erosion
        layers += inked
        inked = _window(inked, np.minimum)
    is_middle = (layers > 0) & (layers >= _window(layers, np.maximum))
    middle = np.where(is_middle & (layers >= np.median(layers[layers > 0]) / 2), 255.0, 0.0)
    for _ in range(pen // 2):
        middle = _window(middle, np.maximum)
    return to_image(middle)


def _window(values: Values, join: np.ufunc) -> Values:
    height, width = values.shape
    padded = np.pad(values, 1)
    shifted = [padded[down : down + height, right : right + width] for down in range(3) for right in range(3)]
    return join.reduce(shifted)  # type: ignore[no-any-return]


def _canvas(sign: Image.Image, random: Random) -> Image.Image:
    pixels = np.zeros((280, 280, 4))
    pixels[..., 3] = 255 * place(sign, (280, 280), 180, somewhere(random, 280, 180))
    return to_image(pixels)


def _photo(sign: Image.Image, random: Random) -> Image.Image:
    cover = place(sign, (320, 320), 150, somewhere(random, 320, 150))
    return noisy_jpeg(to_image(uneven_light(random, 320, 110, 225) * (1 - 0.75 * cover)), random, 5, 80)


def _squared(sign: Image.Image, random: Random) -> Image.Image:
    paper = uneven_light(random, 320, 190, 235)
    distance = random.integers(22, 40)
    paper[random.integers(distance) :: distance] -= 40
    paper[:, random.integers(distance) :: distance] -= 40
    cover = place(sign, (320, 320), 150, somewhere(random, 320, 150))
    return noisy_jpeg(paint(cover, 45, paper), random, 4, 80)


def _shadow(sign: Image.Image, random: Random) -> Image.Image:
    down, right = np.mgrid[:320, :320] - 160
    angle = random.uniform(0, 2 * np.pi)
    edge = right * np.cos(angle) + down * np.sin(angle) + random.uniform(-30, 30)
    paper = uneven_light(random, 320, 180, 230) * (1 - 0.5 / (1 + np.exp(-edge / 2)))
    cover = place(sign, (320, 320), 150, somewhere(random, 320, 150))
    return noisy_jpeg(to_image(paper * (1 - 0.75 * cover)), random, 4, 80)


def _frame(sign: Image.Image, random: Random) -> Image.Image:
    image = paint(place(sign, (240, 240), 120, somewhere(random, 240, 120)), 20, 240)
    inset = int(random.integers(2, 12))
    corners = (inset, inset, 239 - inset, 239 - inset)
    ImageDraw.Draw(image).rectangle(corners, outline=20, width=int(random.integers(2, 6)))
    return image


def _neighbor(sign: Image.Image, random: Random) -> Image.Image:
    other, _ = font_signs(10, random)[random.integers(10)]
    center = [(-10, 120), (250, 120), (120, -10), (120, 250)][random.integers(4)]
    return paint(np.maximum(place(sign, (240, 240), 120), place(other, (240, 240), 120, center)), 20, 240)


def _at_the_border(sign: Image.Image, random: Random) -> Image.Image:
    scale = 130 / max(sign.size)
    half = sign.width * scale / 2, sign.height * scale / 2
    center = [(half[0] - 1, 100), (201 - half[0], 100), (100, half[1] - 1), (100, 201 - half[1])][random.integers(4)]
    return paint(place(sign, (200, 200), 130, center), 20, 240)


KINDS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "as in MNIST": lambda sign, _: to_image(255 * as_in_mnist(sign)),
    "inverted": lambda sign, _: to_image(255 - 255 * as_in_mnist(sign)),
    "black on white scan": lambda sign, random: paint(
        place(sign, (240,) * 2, 140, somewhere(random, 240, 140)), 20, 245
    ),
    "RGBA screenshot": lambda sign, random: paint(
        place(sign, (300, 300), 180, somewhere(random, 300, 180)), 0, 255
    ).convert("RGBA"),
    "HTML canvas, transparent": _canvas,
    "photo of paper, uneven light": _photo,
    "small, in a corner": lambda sign, random: to_image(
        255 * place(sign, (112, 112), 36, (random.uniform(22, 25), random.uniform(22, 25)))
    ),
    "half size": lambda sign, _: to_image(255 * place(sign, (28, 28), 10)),
    "3:1 picture": lambda sign, _: to_image(255 * place(sign, (240, 80), 57)),
    "9:16 portrait": lambda sign, random: to_image(255 * place(sign, (180, 320), 110, somewhere(random, 180, 110))),
    "cropped tightly": lambda sign, _: sign.resize((max(2, sign.width // 4), max(2, sign.height // 4))),
    "thin pen": lambda sign, _: to_image(255 * place(thin_strokes(sign, 1), (240, 240), 170)),
    "dim": lambda sign, _: to_image(64 * as_in_mnist(sign)),
    "blue pen": lambda sign, random: paint(
        place(sign, (240, 240), 140, somewhere(random, 240, 140)), (30, 50, 180), (240, 240, 235)
    ),
    "red on green": lambda sign, random: paint(
        place(sign, (240, 240), 140, somewhere(random, 240, 140)), (200, 40, 40), (40, 120, 40)
    ),
    "squared paper": _squared,
    "shadow across": _shadow,
    "frame": _frame,
    "second sign at the edge": _neighbor,
    "JPEG noise": lambda sign, random: noisy_jpeg(
        paint(place(sign, (120, 120), 70, somewhere(random, 120, 70)), 40, 220), random, 8, 12
    ),
    "touching the border": _at_the_border,
}


def encode(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def count_right(
    classifier: Classifier, signs: Sequence[tuple[Image.Image, str]], kind: str, random: Random
) -> tuple[int, int, float]:
    """How many pictures of a kind a model reads right, how many are unlike those in training, and seconds for each."""
    files = [encode(KINDS[kind](sign, random)) for sign, _ in signs]
    start = time.perf_counter()
    predictions = classifier.predict(files)
    seconds = (time.perf_counter() - start) / len(files)
    pairs = zip(predictions, signs, strict=True)
    right = sum(prediction.label == digit for prediction, (_, digit) in pairs)
    return right, sum(prediction.unlike is not None for prediction in predictions), seconds


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="A folder with MNIST's IDX files.")
@click.option("--count", type=click.IntRange(10), default=100, help="Pictures of each kind.")
def main(model: Path, data: Path | None, count: int) -> None:
    """Print how many of each kind of picture MODEL reads right, and how many it finds unlike its training images."""
    random = np.random.default_rng(0)
    signs = mnist_signs(data, count) if data else font_signs(count, random)
    classifier = Classifier(model, "cpu")
    table = Table("what was sent", f"right of {count}", "unlike", "ms an image")
    for kind in KINDS:
        right, unlike, seconds = count_right(classifier, signs, kind, random)
        table.add_row(kind, str(right), str(unlike), f"{seconds * 1e3:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
