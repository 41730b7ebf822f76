"""Bring one sign (a digit, a character, a symbol, a drawing) to the form of MNIST's images, whatever it is drawn on.

MNIST's authors scaled each digit, with its aspect ratio, into a box of 20 x 20 pixels, and placed its center of mass in
the center of 28 x 28 (Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits"). Here the same
is done for any size, after the background was taken away, so that the sign is light on black.

All of it is NumPy and Pillow, in float64: processors give other pixels in rare ties only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.float64]  # (height, width), one value per pixel
_Extreme = Callable[..., Any]  # np.maximum or np.minimum

BOX = 20 / 28  # of the model's height and width, the box that the sign fills
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in a gray value (ITU-R BT.601), as in Pillow
_WORKING_SIDE = 192  # pixels; a larger image is made smaller before its background is estimated
_MIDDLE_GRAY = 128.0
_FAINTEST = 12.0  # of 255; what differs less from the background is no sign
_BRIGHTEST = 8  # pixels; as many must reach a contrast, as few as a small sign has
_INVISIBLE = 0.1  # of the largest opacity
_PICTURE = 0.6  # of a box around what is visible; if that fills more, its colors may be a picture
_OPAQUE = 0.9  # of the same; if that fills more, there is no picture but in its colors
_SMALL = 30  # pixels; in smaller images, the border is no sample of the background's texture
_BACKGROUND, _INK = 0.25, 0.8  # of the sign's contrast: what is black, and what is white
_UNEVEN = 0.15  # of the sign's contrast; where the border differs more from a plane, the background isn't one
_FAINTEST_STROKE = 20.0  # of 255, of the light that the paper around it has
_NOISE = 17.0  # steps between pixels of a background; what stands out less from it is noise
_STEPS_PER_SIDE = 48  # so far apart are the pixels between which noise is measured
_BLURRED = 9.0  # times its contrast over the image's longer side, the slope of an edge that still is one
_EDGES_PER_SIDE = 64  # so wide is an edge
_SHARP = 0.25  # of its contrast; what differs so much from pixel to pixel is an edge in small images
_FAINT_LINE = 0.25  # of the contrast; what differs more may be a line
_RULED = 0.85  # of a row or column, the share that a line over all of the paper covers
_FEWEST_RULES = 3  # such lines
_WIDEST_RULE = 0.025  # of the height or width
_WIDEST_STROKE = 0.3  # of the shorter side; wider things belong to an uneven background
_DARKEST_PAPER = 48.0  # of 255; a shadow that is darker hides the sign
_LEVEL = 90.0  # of 255; brighter pixels count as ink
_COARSE_SIDE = 48  # cells; the parts of an image are told apart on this grid
_SMALLEST_PART = 0.03  # of the main part's ink; smaller parts are dust
_RULE = 2.5  # cells, the mean thickness of a slanted rule on that grid
_MOST_PARTS = 16  # more belong to a texture, such as noise
_FRAME = 0.85  # of the height and width; a part that spans both is a frame
_EDGE_OF_BOX = 0.08  # of a box's height or width, the strip in which one of its edges runs
_IN_A_BOX = 0.25  # of a box's height or width, the least that a sign in it has
_CENTER = 0.2  # of the height and width, standard deviation of the weight by which the main part is chosen
_THINNEST, _THICKENED = 1.6, 2.0  # pixels in the box: thinner strokes are made that thick

# An image that already has this form isn't touched.
_BLACK = 8  # of 255, the brightest that pixels outside of the box may be
_PEAK = 192  # of 255, what its brightest pixel must reach
_OFF_CENTER = 0.75  # pixels, the farthest that its center of mass may be from the center


def to_glyph(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Make a sign light on black, scale it into the inner box with its aspect ratio, and center it by mass.

    Polarity, size, place, color and slow changes of the background are gone after that. So are frames along the border,
    and other signs that the border cuts.

    Args:
        image: A decoded image, upright, in mode `L`, `LA`, `RGB` or `RGBA`.
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        uint8, shape `(height, width)`: black without contrast, the image's own pixels if `are_glyphs` says so.
    """
    if image.mode == "L" and image.size == (width, height):
        (glyph,) = make_glyphs(np.asarray(image)[np.newaxis])
        return glyph  # type: ignore[no-any-return]
    return _to_glyph(image, height, width, is_crop=False)


def make_glyphs(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Do what `to_glyph` does with gray images that have the model's size.

    Most images that were stored for training have that form. To ask so of all at once takes a tenth of the time.

    Args:
        images: uint8, shape `(images, height, width)`.

    Returns:
        The same shape. The same array if all images have that form.
    """
    height, width = images.shape[1:]
    others = np.flatnonzero(~are_glyphs(images))
    if not len(others):
        return images
    glyphs = images.copy()
    for i in others:
        glyphs[i] = _to_glyph(Image.fromarray(images[i]), height, width, is_crop=False)
    return glyphs


def are_glyphs(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which images already are as `to_glyph` would make them: black, but for a sign that fills the box.

    Args:
        images: uint8, shape `(images, height, width)`.

    Returns:
        bool, shape `(images,)`.
    """
    height, width = images.shape[1:]
    ink = images.astype(np.float64)
    by_row, by_column = ink @ np.ones(width), np.ones(height) @ ink
    total = np.maximum(by_row.sum(axis=1), 1)
    down = by_row @ np.arange(height) / total - height / 2
    right = by_column @ np.arange(width) / total - width / 2
    centered = np.maximum(np.abs(down), np.abs(right)) <= _OFF_CENTER
    np.greater(images, _BLACK, out=ink)
    rows, columns = ink @ np.ones(width), np.ones(height) @ ink
    fills = np.maximum(_extent(rows) - height * BOX, _extent(columns) - width * BOX)
    brightest = images.reshape(len(images), -1).max(axis=1)
    found: NDArray[np.bool_] = (brightest >= _PEAK) & (np.abs(fills) <= 1) & centered
    return found


def _extent(inked: Plane) -> NDArray[np.int64]:
    """From the first to the last row or column of each image with any ink, in pixels."""
    found = inked > 0
    extent: NDArray[np.int64] = inked.shape[1] - found.argmax(axis=1) - found[:, ::-1].argmax(axis=1)
    return extent


def _to_glyph(image: Image.Image, height: int, width: int, *, is_crop: bool) -> NDArray[np.uint8]:
    glyph = np.zeros((height, width), np.uint8)
    ink = _find_sign(_find_ink(image))
    inked: NDArray[np.bool_] = ink > _LEVEL
    if not inked.any():
        return glyph
    top, bottom = _span(inked, 0)
    left, right = _span(inked, 1)
    scale = min(height * BOX / (bottom - top), width * BOX / (right - left))
    shrunk = max(image.size) / _WORKING_SIDE
    if shrunk > 1 and scale > 0.7 and not is_crop:  # a small sign in a large image: look at it closely
        margin = 0.4 * max(bottom - top, right - left)
        region = (left - margin, top - margin, right + margin, bottom + margin)
        return _to_glyph(_crop(image, [side * shrunk for side in region]), height, width, is_crop=True)
    sign = _thicken(ink[top:bottom, left:right], scale)
    scale = min(height * BOX / sign.shape[0], width * BOX / sign.shape[1])
    size = max(1, round(sign.shape[1] * scale)), max(1, round(sign.shape[0] * scale))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    scaled = np.asarray(_to_image(sign).resize(size, method), np.float64)
    scaled = scaled * (255 / scaled.max())
    top, left = _corner(scaled.sum(axis=1), height), _corner(scaled.sum(axis=0), width)
    glyph[top : top + size[1], left : left + size[0]] = np.rint(scaled)
    return glyph


def _span(inked: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """The first row (axis 0) or column (axis 1) with ink, and the one behind the last."""
    found = np.flatnonzero(inked.any(axis=1 - axis))
    return int(found[0]), int(found[-1]) + 1


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The first row and the one behind the last, and the same of the columns."""
    return *_span(mask, 0), *_span(mask, 1)


def _corner(mass: Plane, side: int) -> int:
    """Where a sign's first row or column comes, so that its center of mass is at `side / 2`, as in MNIST."""
    center = float(mass @ np.arange(len(mass)) / mass.sum())
    return min(max(round(side / 2 - center), 0), side - len(mass))


def _crop(image: Image.Image, region: list[float]) -> Image.Image:
    left, top, right, bottom = map(int, region)
    return image.crop((max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)))


def _to_image(values: Plane) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _find_ink(image: Image.Image) -> Plane:
    """How much each pixel differs from the background: 0 for all that is background, 255 for the sign's strokes."""
    colors, background = _colors(_shrink(image, _WORKING_SIDE))
    border = _border(*colors.shape[:2])
    noise = 0.0
    if background is not None:
        difference = np.abs(colors - background).max(axis=2)
        contrast = _contrast(difference)
    else:
        difference, contrast = _subtract_background(colors, border)
        if min(border.shape) > _SMALL:
            contrast = 0.0 if _is_noise(difference, contrast) else contrast
            difference = _erase_rules(difference, contrast)
            contrast = min(contrast, _contrast(difference))
            contrast = 0.0 if _is_noise(difference, contrast) else contrast
            noise = float(np.percentile(difference[border], 95))
        if not _has_edges(difference, contrast):
            contrast = 0.0
    if contrast < _FAINTEST:
        return np.zeros(border.shape)
    black = max(_BACKGROUND * contrast, min(noise, 0.5 * contrast))
    ink: Plane = np.clip((difference - black) / (_INK * contrast - black), 0, 1) * 255
    return ink


def _shrink(image: Image.Image, side: int) -> Image.Image:
    factor = max(image.size) / side
    if factor <= 1:
        return image
    size = max(1, round(image.width / factor)), max(1, round(image.height / factor))
    return image.resize(size, Image.Resampling.BOX)


def _subtract_background(colors: Plane, border: NDArray[np.bool_]) -> tuple[Plane, float]:
    """The difference of each pixel from an unknown background, and its contrast; 0 without one."""
    channels = np.moveaxis(colors, 2, 0)
    from_plane = [_subtract_plane(channel, border) for channel in channels]
    difference: Plane = np.max([np.abs(channel) for channel, _ in from_plane], axis=0)
    contrast = _contrast(difference)
    is_plane = max(unevenness for _, unevenness in from_plane) <= _UNEVEN * contrast
    if is_plane or contrast < _FAINTEST or min(border.shape) <= _SMALL:
        return difference, contrast
    difference = np.max([_strokes(channel) for channel in channels], axis=0)
    contrast = _contrast(difference)
    return difference, contrast if contrast >= _FAINTEST_STROKE else 0.0


def _contrast(difference: Plane) -> float:
    """What the brightest pixels differ from the background by, without the very brightest, which may be noise."""
    rank = _rank(difference.size)
    brightest = difference[difference > difference.max() / 2]  # mostly the sign's: all take much longer
    if len(brightest) < rank:
        brightest = difference.ravel()
    return float(np.partition(brightest, -rank)[-rank])


def _rank(pixels: int) -> int:
    """How many of the pixels must reach a value, so that it isn't noise."""
    return min(max(pixels // 1000, 1), _BRIGHTEST)


def _steps(values: Plane, distance: int) -> list[Plane]:
    """How much pixels differ that are `distance` apart, down and to the right; only where the image is that large."""
    steps = [values[distance:] - values[:-distance], values[:, distance:] - values[:, :-distance]]
    return [np.abs(step) for step in steps if step.size]


def _has_edges(difference: Plane, contrast: float) -> bool:
    """Whether it changes anywhere as fast as at a stroke's edge, and not as slowly as light does."""
    side = max(difference.shape)
    distance = max(1, side // _EDGES_PER_SIDE)
    steep = contrast * min(_BLURRED * distance / side, _SHARP)
    return any(np.count_nonzero(step > steep) >= _rank(step.size) for step in _steps(difference, distance))


def _is_noise(difference: Plane, contrast: float) -> bool:
    """Whether pixels differ nearly everywhere, so that noise alone has that contrast."""
    steps = _steps(difference, max(1, min(difference.shape) // _STEPS_PER_SIDE))
    return contrast < _NOISE * max(float(np.percentile(step, 30)) for step in steps)


def _colors(image: Image.Image) -> tuple[Plane, float | None]:
    """The image's values, `(height, width, channels)`, and the background where it is known: behind transparency.

    That is white or black, whichever makes the visible pixels stand out. It isn't known where a picture with its own
    background has transparent pixels around it, such as rounded corners. These get the median of the visible colors.
    """
    values = np.asarray(image, np.float64)
    if image.mode in ("L", "RGB"):
        return values.reshape(image.height, image.width, -1), None
    color, alpha = values[..., :-1], values[..., -1:] / max(values[..., -1].max(), 1)
    is_visible = alpha[..., 0] > _INVISIBLE
    share = _share_of_its_box(is_visible)
    if share >= _PICTURE:
        paper = np.median(color[is_visible], axis=0)
        on_paper = color * alpha + paper * (1 - alpha)
        fills_image = share >= _OPAQUE and is_visible[_border(*is_visible.shape)].mean() > 0.5
        if fills_image or _contrast(np.abs(on_paper - paper).max(axis=2)) >= _FAINTEST:
            return on_paper, None
    background = 255.0 if visible_gray(color, alpha[..., 0]) < _MIDDLE_GRAY else 0.0
    return color * alpha + background * (1 - alpha), background


def _share_of_its_box(mask: NDArray[np.bool_]) -> float:
    """How much of its bounding box a mask fills; 0 if it is empty."""
    if not mask.any():
        return 0.0
    return float(mask[slice(*_span(mask, 0)), slice(*_span(mask, 1))].mean())


def visible_gray(color: Plane, alpha: Plane) -> float:
    """The mean gray of an image's visible pixels, 0 to 255, each counted by its opacity; 0 if none is visible.

    Args:
        color: 0 to 255, shape `(height, width, 1 or 3)`.
        alpha: 0 to 1, shape `(height, width)`.
    """
    gray = color @ (_LUMA if color.shape[2] == 3 else (1.0,))
    return float((gray * alpha).sum() / max(alpha.sum(), 1 / 255))


def _border(height: int, width: int) -> NDArray[np.bool_]:
    """The outermost pixels, which mostly show the background."""
    depth = max(1, min(height, width) // 14)
    border = np.ones((height, width), np.bool_)
    border[depth : height - depth, depth : width - depth] = False
    return border


def _subtract_plane(values: Plane, border: NDArray[np.bool_]) -> tuple[Plane, float]:
    """An image's difference from a plane through its border, and how much most of the border differs from that.

    The plane is fitted by least squares, twice, to the three quarters of the border that are nearest to it.
    """
    height, width = values.shape
    terms = np.ones((height, width, 3))
    terms[..., 1] = np.arange(width) / width - 0.5
    terms[..., 2] = (np.arange(height) / height - 0.5)[:, np.newaxis]
    here, there = terms[border], values[border]
    away = np.abs(there - np.median(there))
    for _ in range(2):
        near = away <= np.percentile(away, 75) + 1
        plane = np.linalg.lstsq(here[near], there[near], rcond=None)[0]
        away = np.abs(here @ plane - there)
    return values - terms @ plane, float(np.percentile(away, 75))


def _strokes(values: Plane) -> Plane:
    """What is narrow and differs from its surroundings, on a background that may have shadows or be a photograph.

    A morphological closing removes dark strokes, an opening light ones (J. Serra, "Image Analysis and Mathematical
    Morphology", 1982). Ink takes a share of the light, so dark strokes count as that share.
    """
    window = int(min(values.shape) * _WIDEST_STROKE) | 1
    if _is_light_on_dark(values):
        return values - _extreme(_extreme(values, window, np.minimum), window, np.maximum)
    closed = _extreme(_extreme(values, window, np.maximum), window, np.minimum)
    return (closed - values) * (255 / np.maximum(closed, _DARKEST_PAPER))


def _is_light_on_dark(values: Plane) -> bool:
    """Whether what differs from the median of its surroundings is mostly light, near the center."""
    coarse = _shrink(_to_image(values), _COARSE_SIDE)
    surroundings = coarse.filter(ImageFilter.MedianFilter(15))
    difference = np.asarray(coarse, np.float64) - np.asarray(surroundings, np.float64)
    return bool((difference * np.abs(difference) * _central_weights(*difference.shape)).sum() > 0)


def _extreme(values: Plane, window: int, extreme: _Extreme) -> Plane:
    """The largest or smallest value within a square window around each pixel, whose side is odd."""
    return _extreme_along(_extreme_along(values, window, extreme).T, window, extreme).T


def _extreme_along(values: Plane, window: int, extreme: _Extreme) -> Plane:
    length, reach = len(values), 1
    values = np.pad(values, ((window // 2, window // 2), (0, 0)), mode="edge")
    while 2 * reach <= window:  # each value now is that of `reach` pixels from there on
        values = extreme(values[:-reach], values[reach:])
        reach *= 2
    joined: Plane = extreme(values[:length], values[window - reach : window - reach + length])
    return joined


def _central_weights(height: int, width: int) -> Plane:
    """A bell around the center, `(height, width)`."""
    down, right = (
        np.exp(-(((np.arange(side) + 0.5) / side - 0.5) ** 2) / (2 * _CENTER**2)) for side in (height, width)
    )
    return np.outer(down, right)


def _erase_rules(difference: Plane, contrast: float) -> Plane:
    """Take away thin lines from border to border, as of ruled or squared paper; strokes across them stay.

    One or two lines may be strokes of a sign that was cropped tightly, unless they are all there is.
    """
    erased, rows = _erase_ruled_rows(difference, _FAINT_LINE * contrast)
    erased, columns = _erase_ruled_rows(erased.T, _FAINT_LINE * contrast)
    if rows + columns == 0:
        return difference
    is_ruled = rows + columns >= _FEWEST_RULES or _contrast(erased) < _FAINTEST
    return erased.T if is_ruled else difference


def _erase_ruled_rows(difference: Plane, level: float) -> tuple[Plane, int]:
    """Take away thin lines across the width that differ by `level`, and count them without those along the border."""
    height = len(difference)
    is_ruled = np.pad((difference > level).mean(axis=1) >= _RULED, 1)
    first, last = np.flatnonzero(is_ruled[1:] & ~is_ruled[:-1]), np.flatnonzero(is_ruled[:-1] & ~is_ruled[1:])
    is_thin = last - first <= max(2, height * _WIDEST_RULE)
    count = int(np.count_nonzero(is_thin & (first > 0) & (last < height)))
    if not count:
        return difference, 0
    erased = difference.copy()
    for top, bottom in zip(
        first[is_thin] - 2, last[is_thin] + 1, strict=True
    ):  # the rows beside it, with blurred edges
        sides = [difference[row] for row in (top, bottom) if 0 <= row < height]
        erased[max(top + 1, 0) : bottom] = np.min(sides, axis=0)
    return erased, count


def _find_sign(ink: Plane) -> Plane:
    """The ink without dust, frames, and what the border cuts, unless that is the main part itself.

    Black if there are so many parts that it is a texture.
    """
    height, width = ink.shape
    cell = -(-max(height, width) // _COARSE_SIDE)
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.pad(ink, ((0, rows * cell - height), (0, columns * cell - width)))
    cells = padded.reshape(rows, cell, columns, cell)
    labels, count = _label_parts(cells.max(axis=(1, 3)) > _LEVEL)
    if count < 2:
        return ink
    mass = cells.sum(axis=(1, 3))
    masses = np.bincount(labels.ravel(), mass.ravel())[1:]
    large = np.flatnonzero(masses >= _SMALLEST_PART * masses.max())
    if len(large) > _MOST_PARTS:
        return np.zeros_like(ink)
    central = np.bincount(labels.ravel(), (mass * _central_weights(rows, columns)).ravel())[1:]
    rules = _find_slanted_rules(labels, large)
    central[rules + _find_boxes(labels, large)] = 0
    main = int(central.argmax())
    is_kept = (masses >= _SMALLEST_PART * masses[main]) & (central > 0)
    if not is_kept.any():
        return np.zeros_like(ink)
    parts = np.flatnonzero(is_kept)
    top, bottom, left, right = np.array([_bounds(labels == part + 1) for part in parts]).T
    is_cut = (top == 0) | (left == 0) | (bottom == rows) | (right == columns)
    if rules and is_cut[parts == main]:  # a rule's end, in a corner
        return np.zeros_like(ink)
    is_frame = (bottom - top >= _FRAME * rows) & (right - left >= _FRAME * columns)
    is_kept[parts] = ~(is_frame | (is_cut & ~is_cut[parts == main]))
    is_kept[main] = True
    kept = np.concatenate([[False], is_kept])[labels]
    # Blurred edges lie in the cells around a part.
    wanted = (_extreme(kept.astype(np.float64), 3, np.maximum) > 0) & (kept | (labels == 0))
    sign: Plane = ink * np.kron(wanted, np.ones((cell, cell)))[:height, :width]
    return sign


def _find_slanted_rules(labels: NDArray[np.int64], parts: NDArray[np.int64]) -> list[int]:
    """Which of the parts, counted from 0 on, are thin and go from border to border; none if it is but one."""
    rows, columns = labels.shape
    found = []
    for part in parts:
        mask = labels == part + 1
        top, bottom, left, right = _bounds(mask)
        across = left == 0 and right == columns and 2 * (bottom - top) < rows and mask.sum() <= _RULE * columns
        down = top == 0 and bottom == rows and 2 * (right - left) < columns and mask.sum() <= _RULE * rows
        if across or down:
            found.append(int(part))
    return found if len(found) > 1 else []


def _find_boxes(labels: NDArray[np.int64], parts: NDArray[np.int64]) -> list[int]:
    """Which of the parts, counted from 0 on, are rectangles around another one, as of a form's fields."""
    bounds = [_bounds(labels == part + 1) for part in parts]
    return [int(part) for part in parts if _is_box(labels == part + 1, bounds)]


def _is_box(part: NDArray[np.bool_], others: list[tuple[int, int, int, int]]) -> bool:
    top, bottom, left, right = _bounds(part)
    box = part[top:bottom, left:right]
    height, width = box.shape
    deep, wide = max(1, round(height * _EDGE_OF_BOX)), max(1, round(width * _EDGE_OF_BOX))
    edges = box[:deep].any(axis=0), box[-deep:].any(axis=0), box[:, :wide].any(axis=1), box[:, -wide:].any(axis=1)
    if min(float(edge.mean()) for edge in edges) < _RULED:
        return False
    return any(
        top < first
        and last < bottom
        and left < start
        and end < right
        and (last - first >= _IN_A_BOX * height or end - start >= _IN_A_BOX * width)
        and not part[first:last, start:end].any()
        for first, last, start, end in others
    )


def _label_parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Number the connected parts of a mask (8 neighbors) from 1 on; 0 is outside. Returns them and their count."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        largest = np.where(mask, _extreme(labels, 3, np.maximum), 0)
        largest = np.concatenate([[0], largest.ravel()])[largest]  # that pixel's own label is larger still
        if np.array_equal(largest, labels):
            break
        labels = largest
    names, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(mask.shape)
    return (numbers, len(names) - 1) if names[0] == 0 else (numbers + 1, len(names))


def _thicken(sign: Plane, scale: float) -> Plane:
    """Make strokes thicker that would be thin in the box, as of a fine pen in a large drawing."""
    if scale >= 1:
        return sign
    inked = np.pad(sign > 127, 1)
    edges = int(np.count_nonzero(inked[1:] != inked[:-1]) + np.count_nonzero(inked[:, 1:] != inked[:, :-1]))
    # A stroke has two edges, and steps along the axes are 4/pi times as long as a slanted edge, on average.
    thickness = 8 / np.pi * np.count_nonzero(inked) / max(edges, 1) * scale
    if thickness >= _THINNEST:
        return sign
    more = round((_THICKENED - thickness) / (2 * scale))  # pixels at each edge
    return _extreme(np.pad(sign, more), 2 * more + 1, np.maximum) if more else sign
