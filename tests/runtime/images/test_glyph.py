"""The fit `glyph`: one sign, whatever it is drawn on, looks as in MNIST."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rnn_runtime.images.decode import TakenImage, read_images
from rnn_runtime.images.fit import fit_image
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pixels_of

SPEC = ImageSpec(28, 28, 1, fit="glyph")
SIDE = 240
Gray = NDArray[np.floating[Any]]


def sign(left: float = 70, top: float = 60, height: float = 120, pen: int = 14, side: int = SIDE) -> Gray:
    """How much of each pixel is covered by a 4, whose three strokes no transposition leaves alone; 0 to 1."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    lines = [[(0.5, 0), (0, 0.65), (0.75, 0.65)], [(0.55, 0.35), (0.55, 1)]]
    for line in lines:
        draw.line([(left + x * height, top + y * height) for x, y in line], 255, pen, joint="curve")
    return np.asarray(canvas, np.float64) / 255


def on_paper(paper: Any, ink: float = 20, cover: Gray | None = None) -> Gray:
    cover = sign() if cover is None else cover
    return np.asarray(paper, np.float64) * (1 - cover) + ink * cover


def glyph(image: Gray | Image.Image) -> NDArray[np.uint8]:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.rint(np.clip(image, 0, 255)).astype(np.uint8))
    return fit_image(image, SPEC)[..., 0]


def jpeg(image: Gray, quality: int) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(np.rint(np.clip(image, 0, 255)).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return Image.open(file)


def likeness(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Correlation of two images, the best of shifts by one pixel."""
    shifted = (np.roll(found, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1))
    return max(float(np.corrcoef(image.ravel(), expected.ravel())[0, 1]) for image in shifted)


PLAIN = glyph(255 * sign())


def canvas_drawing() -> Image.Image:
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = np.rint(255 * sign())
    return Image.fromarray(pixels)


def uneven_light() -> Gray:
    across = np.arange(SIDE) / SIDE
    return 120 + 70 * across[:, np.newaxis] + 50 * across


def noise(deviation: float) -> Gray:
    return np.random.default_rng(0).normal(0, deviation, (SIDE, SIDE))


def shadow() -> Gray:
    down, right = np.mgrid[:SIDE, :SIDE]
    return on_paper(210, 60) * np.where(down + 2 * right > 1.4 * SIDE, 0.5, 1)


def squared(depth: float = 40) -> Gray:
    paper = np.full((SIDE, SIDE), 225.0)
    paper[5::24] = 225 - depth
    paper[:, 9::24] = 225 - depth
    return paper


def ruled(lines: int) -> Gray:
    paper = np.full((SIDE, SIDE), 225.0)
    for i in range(lines):
        paper[(i + 1) * SIDE // (lines + 1)] = 150
    return paper


def in_a_box(side: int, pen: int, corner: int = 0) -> Gray:
    """A sign in a box that is smaller than the image, as in a form."""
    image = Image.new("L", (SIDE, SIDE), 240)
    edges = (SIDE - side) // 2, (SIDE + side) // 2
    box = (edges[0], edges[0], edges[1], edges[1])
    ImageDraw.Draw(image).rounded_rectangle(box, corner, outline=20, width=pen)
    height = 0.65 * side
    return on_paper(np.asarray(image), cover=sign((SIDE - 0.75 * height) / 2, (SIDE - height) / 2, height, side // 12))


def in_lamplight() -> Gray:
    down, right = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    return np.asarray(225 - 240 * ((right - 0.1) ** 2 + (down + 0.1) ** 2))


def framed() -> Gray:
    image = on_paper(240)
    for edge in (4, SIDE - 8):
        image[edge : edge + 4, 4:-4] = 30
        image[4:-4, edge : edge + 4] = 30
    return image


def with_neighbor() -> Gray:
    image = on_paper(240)
    image[100:190, :18] = 20
    return image


def colored() -> Image.Image:
    cover = sign()[..., np.newaxis]
    red, green = np.array([200, 40, 40]), np.array([40, 120, 40])  # of nearly the same gray
    return Image.fromarray(np.rint(red * cover + green * (1 - cover)).astype(np.uint8))


def with_alpha(image: Gray, alpha: Gray) -> Image.Image:
    picture = Image.fromarray(np.rint(image).astype(np.uint8)).convert("RGB")
    picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return picture


def one_pixel_less_than_opaque() -> Image.Image:
    alpha = np.full((SIDE, SIDE), 255.0)
    alpha[9, 9] = 254
    return with_alpha(on_paper(240), alpha)


def in_shape(shape: str, corner: int = 0, margin: int = 0) -> Image.Image:
    """A sign on paper that ends in transparency."""
    mask = Image.new("L", (SIDE, SIDE))
    box = (margin, margin, SIDE - 1 - margin, SIDE - 1 - margin)
    if shape == "disc":
        ImageDraw.Draw(mask).ellipse(box, 255)
    else:
        ImageDraw.Draw(mask).rounded_rectangle(box, corner, 255)
    return with_alpha(on_paper(240, cover=sign(80, 80, 80, 10)), np.asarray(mask, np.float64))


def faint_wash() -> Image.Image:
    return with_alpha(255 * (1 - sign()), 60 + 195 * sign())


PICTURES: dict[str, Callable[[], Gray | Image.Image]] = {
    "dark on light": lambda: on_paper(245),
    "light on dark": lambda: 255 * sign(),
    "screenshot": lambda: Image.fromarray(on_paper(255, 0).astype(np.uint8)).convert("RGBA"),
    "canvas drawing": canvas_drawing,
    "uneven light": lambda: jpeg(on_paper(uneven_light(), 40) + noise(5), 80),
    "one pixel less than opaque": one_pixel_less_than_opaque,
    "evenly transparent": lambda: with_alpha(on_paper(240), np.full((SIDE, SIDE), 128.0)),
    "rounded corners": lambda: in_shape("rectangle", 30),
    "a card in a transparent margin": lambda: in_shape("rectangle", 10, 25),
    "a round picture": lambda: in_shape("disc"),
    "a drawing at half its opacity": lambda: with_alpha(np.zeros((SIDE, SIDE)), 128 * sign()),
    "strokes on a faint wash": faint_wash,
    "in a corner": lambda: 255 * sign(20, 15, 60, 7),
    "small": lambda: 255 * sign(400, 400, 96, 12, 960).reshape(240, 4, 240, 4).mean(axis=(1, 3)),
    "wide": lambda: 255 * sign()[50:190],
    "high": lambda: 255 * sign()[:, 60:180],
    "dim": lambda: 40 * sign(),
    "blue pen": lambda: Image.fromarray(
        np.rint(np.where(sign()[..., np.newaxis] > 0.5, (30, 50, 180), (240, 240, 235))).astype(np.uint8)
    ),
    "red on green": colored,
    "squared paper": lambda: on_paper(squared()),
    "paper with dark squares": lambda: on_paper(squared(120)),
    "paper with dark rules": lambda: on_paper(ruled(9)),
    "a form's box": lambda: in_a_box(150, 3),
    "a small box": lambda: in_a_box(100, 2),
    "a thick, round box": lambda: in_a_box(190, 7, 14),
    "shadow": shadow,
    "frame": framed,
    "a neighbor at the edge": with_neighbor,
    "JPEG noise": lambda: jpeg(on_paper(220, 40) + noise(8), 12),
    "touching the border": lambda: on_paper(240, 20, sign(top=-4)),
    "a small sign in a large image": lambda: np.kron(255 * sign(30, 200, 24, 3, 400), np.ones((4, 4))),
    "a tiny sign in a large image": lambda: on_paper(240, cover=sign(700, 400, 30, 4, 1000)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_sign_looks_the_same_whatever_it_is_drawn_on(name: str) -> None:
    assert likeness(glyph(PICTURES[name]()), PLAIN) > 0.85


def test_signs_that_differ_stay_different() -> None:
    assert likeness(glyph(255 * sign()[:, ::-1]), PLAIN) < 0.8


def test_a_thin_pen_is_made_thicker() -> None:
    thin = glyph(255 * sign(pen=2))

    assert thin.sum() > 0.6 * PLAIN.sum()
    assert likeness(thin, PLAIN) > 0.8


def test_the_sign_fills_a_box_of_20_pixels_around_its_center_of_mass() -> None:
    rows, columns = np.flatnonzero(PLAIN.any(axis=1)), np.flatnonzero(PLAIN.any(axis=0))
    down, right = (float(PLAIN.sum(axis=axis, dtype=float) @ np.arange(28)) / PLAIN.sum(dtype=float) for axis in (1, 0))

    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert max(abs(down - 14), abs(right - 14)) <= 0.75
    assert PLAIN.max() == 255


def test_images_that_have_the_form_already_stay_as_they_are() -> None:
    assert np.array_equal(glyph(PLAIN.astype(np.float64)), PLAIN)


def rounded_blank() -> Image.Image:
    picture = in_shape("rectangle", 20)
    picture.paste((240, 240, 240), (0, 0, SIDE, SIDE), picture.getchannel("A"))
    return picture


WITHOUT_A_SIGN: dict[str, Callable[[], Gray | Image.Image]] = {
    "black": lambda: np.zeros((40, 40)),
    "white": lambda: np.full((40, 40), 255.0),
    "gray": lambda: np.full((300, 200), 120.0),
    "even light from a side": lambda: uneven_light() - noise(0.3),
    "a gradient": lambda: np.tile(np.linspace(0, 255, SIDE), (SIDE, 1)),
    "half transparent": lambda: with_alpha(np.zeros((SIDE, SIDE)), np.full((SIDE, SIDE), 128.0)),
    "nearly opaque": lambda: with_alpha(np.full((SIDE, SIDE), 255.0), np.full((SIDE, SIDE), 254.0)),
    "invisible": lambda: with_alpha(255 * sign(), np.zeros((SIDE, SIDE))),
    "rounded corners": rounded_blank,
    "lamplight": in_lamplight,
    "noisy paper": lambda: jpeg(210 + noise(8), 85),
    "strong noise": lambda: 128 + noise(40),
    "noise in a small image": lambda: (200 + noise(10))[:28, :28],
    "a rule": lambda: ruled(1),
    "ruled paper": lambda: jpeg(ruled(9) + noise(3), 85),
    "squared paper": squared,
    "slanted rules": lambda: np.asarray(Image.fromarray(ruled(12)).rotate(5, fillcolor=225)),
}


@pytest.mark.parametrize("name", WITHOUT_A_SIGN)
def test_images_without_a_sign_become_black(name: str) -> None:
    assert not glyph(WITHOUT_A_SIGN[name]()).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (5000, 3)])
def test_images_of_any_size_become_the_models_input(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, size).astype(np.float64)

    assert glyph(image).shape == (28, 28)


def test_an_image_gives_the_same_pixels_in_any_batch() -> None:
    own_size = [PLAIN, 255 - PLAIN, np.roll(PLAIN, 5), PLAIN // 4, np.zeros_like(PLAIN)]
    files = [encode(pixels[..., np.newaxis]) for pixels in own_size]

    together = read_images([TakenImage("", data) for data in files], SPEC)

    for decoded, data in zip(together, files, strict=True):
        assert np.array_equal(decoded.pixels, pixels_of(data, SPEC))  # type: ignore[union-attr]
    assert likeness(together[1].pixels[..., 0], PLAIN) > 0.9  # type: ignore[union-attr]
