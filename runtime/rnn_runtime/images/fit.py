"""How a decoded image becomes the model's input: transparency, polarity, and its way to the model's size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from rnn_runtime.images.glyph import make_glyphs, to_glyph
from rnn_runtime.model.spec import ImageSpec

Color = tuple[int, int, int]

_BAND = 256  # rows
_VISIBLE = 12  # of 255; what differs less from the background can't be seen
_MIDDLE_GRAY = 128


def fit_image(image: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Bring an image to the model's input, by `spec.fit`, `spec.background` and `spec.invert`.

    Args:
        image: A decoded image, upright, in mode `L` or `RGB`; where some pixels aren't opaque, `LA` or `RGBA`.
        spec: The model's input.

    Returns:
        uint8, shape `spec.shape`.
    """
    if spec.invert:
        image = _invert(image)
    if spec.fit == "glyph":
        return to_glyph(image, spec.height, spec.width).reshape(spec.shape)
    mode = "L" if spec.channels == 1 else "RGB"
    image = image.convert(mode) if image.mode in ("L", "RGB") else _flatten(image, spec.background, mode)
    size = spec.width, spec.height
    if image.size != size:
        shrinks = image.height >= spec.height and image.width >= spec.width
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        if spec.fit == "pad":
            color = spec.background if image.mode == "RGB" else _luma(spec.background)
            image = ImageOps.pad(image, size, method, color)
        elif spec.fit == "crop":
            image = ImageOps.fit(image, size, method)
        else:
            image = image.resize(size, method)
    return np.asarray(image).reshape(spec.shape)


def fit_pixels(images: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    """Bring several images of one size to the model's input, as `fit_image` does with each.

    Args:
        images: uint8, shape `(images, height, width, channels)`, gray or RGB.
        spec: The model's input.

    Returns:
        uint8, shape `(images, *spec.shape)`. The same array if no image needs a change.
    """
    if images.shape[1:] != spec.shape:
        return np.stack([fit_image(to_image(image), spec) for image in images])
    if spec.invert:
        images = 255 - images
    return make_glyphs(images[..., 0])[..., np.newaxis] if spec.fit == "glyph" else images


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """A PIL image of uint8 pixels `(height, width, channels)`, with 1 to 4 channels."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _flatten(image: Image.Image, background: Color, mode: str) -> Image.Image:
    """Put an image with transparency onto a background.

    What the model couldn't see on it, such as black strokes on black, or for a gray model red ones on a green of the
    same gray, comes onto white or black, whichever the background is farther from. Then it is still a picture.

    Args:
        image: In mode `LA` or `RGBA`.
        background: Red, green and blue.
        mode: `L` or `RGB`, that of the model's input and of the result.
    """
    flat, largest_difference = _compose(image, background, mode)
    if largest_difference < _VISIBLE:
        opposite = (0, 0, 0) if _luma(background) >= _MIDDLE_GRAY else (255, 255, 255)
        flat, _ = _compose(image, opposite, mode)
    return flat


def _compose(image: Image.Image, background: Color, mode: str) -> tuple[Image.Image, int]:
    """An image on a background, in `mode`, and its largest difference from that. Band by band, to save memory."""
    flat, largest = Image.new(mode, image.size), 0
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        below = Image.new("RGB", band.size, background)
        on_background = below.copy()
        on_background.paste(band.convert("RGB"), mask=band.getchannel("A"))
        seen = on_background.convert(mode)
        flat.paste(seen, (0, top))
        extremes = ImageChops.difference(seen, below.convert(mode)).getextrema()
        largest = max(largest, int(np.max(extremes)))
    return flat, largest


def _luma(color: Color) -> int:
    """A color's gray value, as Pillow converts it."""
    return int(np.asarray(Image.new("RGB", (1, 1), color).convert("L"))[0, 0])


def _invert(image: Image.Image) -> Image.Image:
    """Exchange light and dark; transparency stays."""
    if image.mode in ("L", "RGB"):
        return ImageChops.invert(image)
    *colors, alpha = image.split()
    return Image.merge(image.mode, [*map(ImageChops.invert, colors), alpha])
