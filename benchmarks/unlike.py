"""How many images of a data set count as unlike its training images, and how many of what people send instead?

    python -m benchmarks.unlike --dataset digits
    python -m benchmarks.unlike --data FOLDER --fit glyph

No model is trained: what training images look like depends on them alone. Signs of gray images are cut out, and drawn
in other ways.
"""

import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.drawings import KINDS, Random, encode, font_sign, place, to_image
from rnn_runtime.images.decode import Decoded, decode_image
from rnn_runtime.images.outliers import OutlierDetector
from rnn_runtime.model.spec import ImageSpec
from rnn_train.data import Data, DataSource, LabeledImages, load_data
from rnn_train.profile import fit_profile

Picture = Callable[[Image.Image, Random], Image.Image]

_HELD_OUT = 0.2  # of the training images, where there are no test images
_LEAST_SIDE = 112  # pixels, of the signs that drawings are made of
_INK = 40  # of 255, what a gray image's sign has at least


def variants(image: Image.Image, random: Random, dark: bool) -> Iterator[tuple[str, Image.Image]]:
    """What people send in place of an image like those in training: the same in other light, place, size or shape.

    Args:
        image: One of the held-out images, gray or RGB.
        random: Chooses among the pictures of a kind.
        dark: Whether a gray image shows dark signs on light.

    Yields:
        The kind, and the picture.
    """
    width, height = image.size
    yield "inverted", _invert(image)
    yield "dim", image.point(lambda value: value // 4)
    yield "half size", _on_canvas(image, 2 * width, 2 * height, width // 2, height // 2)
    yield "small, in a corner", _on_canvas(image, 3 * width, 3 * height, width // 8, height // 8)
    yield "3:1 picture", _on_canvas(image, 3 * width, height, width, 0)
    yield "9:16 portrait", _on_canvas(image, width, width * 16 // 9, 0, width * 7 // 18)
    if image.mode == "L":
        sign = _cut_out(_invert(image) if dark else image)
        for kind in KINDS:
            if kind not in {"as in MNIST", "inverted", "dim", "half size", "small, in a corner", *_SHAPES}:
                yield kind, KINDS[kind](sign, random)


_SHAPES = ("3:1 picture", "9:16 portrait")


def _invert(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 - value)


def _on_canvas(image: Image.Image, width: int, height: int, left: int, top: int) -> Image.Image:
    """An image on a canvas of the color of its border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color: Any = tuple(np.median(border, axis=0).astype(int).ravel().tolist())
    canvas = Image.new(image.mode, (width, height), color[0] if image.mode == "L" else color)
    canvas.paste(image, (left, top))
    return canvas


def _cut_out(image: Image.Image) -> Image.Image:
    """A gray image's sign, enlarged."""
    box = image.point(lambda value: 255 * (value >= _INK)).getbbox() or (0, 0, *image.size)
    sign = image.crop(box)
    scale = max(1.0, _LEAST_SIDE / max(sign.size))
    return sign.resize((round(sign.width * scale), round(sign.height * scale)), Image.Resampling.BICUBIC)


def _letter(random: Random, side: int) -> Image.Image:
    letter = string.ascii_letters[random.integers(52)]
    return to_image(255 * place(font_sign(letter, random), (side, side), side * 20 // 28))


def _photograph(random: Random, _: int) -> Image.Image:
    photograph = _photographs()[random.integers(2)]
    side = int(random.integers(60, 300))
    top, left = (int(random.integers(length - side)) for length in photograph.shape[:2])
    return Image.fromarray(photograph[top : top + side, left : left + side])


@cache
def _photographs() -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_images

    images: list[NDArray[np.uint8]] = load_sample_images().images
    return images


# Pictures that show none of the classes, whatever they are; the argument is the side of the model's input.
OTHERS: dict[str, Callable[[Random, int], Image.Image]] = {
    "black": lambda _, side: Image.new("L", (side, side)),
    "white": lambda _, side: Image.new("L", (side, side), 255),
    "noise": lambda random, side: Image.fromarray(random.integers(0, 256, (side, side), np.uint8)),
    "noise, large": lambda random, side: Image.fromarray(random.integers(0, 256, (8 * side, 8 * side), np.uint8)),
    "letters": _letter,
    "photographs": _photograph,
}


def find_unlike(data: Data, pictures: dict[str, list[Image.Image]]) -> dict[str, list[str | None]]:
    """Say of pictures in what they are unlike a data set's training images, after files and the fit.

    Args:
        data: The data set.
        pictures: By kind.

    Returns:
        By kind, the greatest difference of each; None for one like those in training.
    """
    profile, spec = fit_profile(data), data.image_spec
    assert profile is not None
    detector, own = OutlierDetector(profile), spec.width / spec.height
    found = {}
    for kind, images in pictures.items():
        decoded = [_decode(image, spec) for image in images]
        pixels = np.stack([image.pixels for image in decoded])
        found[kind] = detector.find(pixels, [image.aspect_ratio or own for image in decoded])
    return found


def _decode(image: Image.Image, spec: ImageSpec) -> Decoded:
    return decode_image(encode(image), spec)


def make_pictures(held_out: LabeledImages, count: int) -> dict[str, list[Image.Image]]:
    """The pictures of each kind, made of the first held-out images."""
    random = np.random.default_rng(0)
    rows = random.permutation(len(held_out))[:count]
    dark = bool(np.median(held_out.images[:, 0]) > 127)  # the upper edges of most are light
    pictures: dict[str, list[Image.Image]] = {}
    for row in rows:
        image = Image.fromarray(held_out.images[row].squeeze())
        for kind, picture in variants(image, random, dark):
            pictures.setdefault(kind, []).append(picture)
    side = min(held_out.images.shape[1:3])
    for kind, make in OTHERS.items():
        pictures[kind] = [make(random, side) for _ in range(count)]
    return pictures


@click.command()
@click.option("--dataset", help="A known data set.")
@click.option("--data", help="A folder with a data set.")
@click.option("--fit", type=click.Choice(["stretch", "pad", "crop", "glyph"]), help="How images become the input.")
@click.option("--image-size", type=(int, int), help="Height and width of the input.")
@click.option("--count", type=click.IntRange(10), default=100, help="Pictures of each kind.")
def main(count: int, **source: Any) -> None:
    """Print how many held-out images are unlike the training images, and how many pictures of each other kind."""
    data = load_data(DataSource(**source, val_split=_HELD_OUT))
    if data.test:
        held_out = data.test
    else:
        assert data.validation is not None
        held_out, data = data.validation, replace(data, validation=None)
    own = {"held-out images": [Image.fromarray(image.squeeze()) for image in held_out.images]}
    table = Table("pictures", "unlike", "greatest difference")
    for kind, differences in find_unlike(data, own | make_pictures(held_out, count)).items():
        names = Counter(filter(None, differences))
        share = 100 * names.total() / len(differences)
        table.add_row(f"{kind} ({len(differences):,})", f"{share:.1f} %", ", ".join(n for n, _ in names.most_common(2)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
