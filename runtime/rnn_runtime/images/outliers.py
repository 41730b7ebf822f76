"""Images that are unlike a model's training images, told by a few numbers.

A model says nothing of images of another kind: it gives them one of its classes, often with a high probability. So
each image is held against the training images: brightness, contrast, border, size and place of its content, noise,
colors. One distance joins these numbers. It knows how much each varies among the training images, and which vary
together (P. C. Mahalanobis, "On the generalised distance in statistics", 1936).
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.model.spec import MEASURES, ImageProfile

Numbers = NDArray[np.float64]

LIGHT, DARK = "light where those are dark", "dark where those are light"  # what `invert` is for
SINGLE_COLOR = "a single color"
_WIDER, _HIGHER = "wider in proportion", "higher in proportion"
CERTAIN = {LIGHT, DARK, SINGLE_COLOR, _WIDER, _HIGHER}  # differences that images like those in training don't have
_RATIO = 1.25  # by which an image may be wider or higher than the training images
_NEARER = 0.5  # of the squared distance; an inverted image that is so near is meant the other way round
_BLOCK = 1 << 18  # values that are worked on at a time: 2 MiB, which stay in a processor's cache

# What `measure` tells of an image: the words for less and for more of it, and the least that counts as a deviation, so
# that training images that are all the same in it leave some room. Brightness is from 0 to 1, places and sizes are in
# parts of the height and width.
_MEASURES = (
    ("darker", "lighter", 0.02),
    ("a darker border", "a lighter border", 0.02),
    ("less contrast", "more contrast", 0.1),
    ("a more even border", "a less even border", 0.02),
    ("content farther left", "content farther right", 0.02),
    ("content farther up", "content farther down", 0.02),
    ("narrower content", "wider content", 0.05),
    ("lower content", "higher content", 0.05),
    ("darker dark parts", "no dark parts", 0.02),
    ("no light parts", "lighter light parts", 0.02),
    ("noise, or finer detail", "less detail", 0.02),
)
_COLORS = (("less red", "more red", 0.02), ("less blue", "more blue", 0.02))
_MEAN, _BORDER, _DARKEST, _LIGHTEST = 0, 1, 8, 9
_LEAST_EXTENT = 0.02  # of the height and width, added to the content's, whose logarithm is taken


class OutlierDetector:
    """Finds the images that are unlike a model's training images.

    Args:
        profile: What those look like.
    """

    def __init__(self, profile: ImageProfile) -> None:
        self._mean, self._whitening = np.array(profile.mean), np.array(profile.whitening)
        self._threshold, self._aspect_ratios = profile.threshold, profile.aspect_ratios
        # The matrix's inverse is a root of the covariance.
        self._deviations = np.sqrt((np.linalg.inv(self._whitening) ** 2).sum(axis=0))

    def find(self, images: NDArray[np.uint8], aspect_ratios: Sequence[float] = ()) -> list[str | None]:
        """Say of each image in what it is unlike the training images.

        Args:
            images: The model's input, uint8 `(images, height, width, channels)`.
            aspect_ratios: Width / height of each before it was fitted; empty where it isn't known.

        Returns:
            The greatest difference of each image, such as `light where those are dark`; None for an image like those.
        """
        differences: list[str | None] = [None] * len(images)
        if not len(images):
            return differences
        measured = measure(images)
        distances = self.distances(measured)
        for row in np.flatnonzero(distances > self._threshold):
            differences[row] = self._name(measured[row], float(distances[row]))
        if self._aspect_ratios and len(aspect_ratios):
            least, most = self._aspect_ratios
            ratios = np.asarray(aspect_ratios)
            for row in np.flatnonzero((ratios > most * _RATIO) | (ratios < least / _RATIO)):
                if differences[row] not in (LIGHT, DARK, SINGLE_COLOR):
                    differences[row] = _WIDER if ratios[row] > most else _HIGHER
        return differences

    def distances(self, measured: Numbers) -> Numbers:
        """The squared distance from the training images, of what `measure` gave."""
        # einsum: a product by BLAS depends on how many rows there are, in its last bits.
        whitened = np.einsum("ij,jk->ik", measured - self._mean, self._whitening)
        return np.einsum("ij,ij->i", whitened, whitened)  # type: ignore[no-any-return]

    def _name(self, measured: Numbers, distance: float) -> str:
        if measured[_DARKEST] == measured[_LIGHTEST]:
            return SINGLE_COLOR
        deviations = (measured - self._mean) / self._deviations
        if self.distances(_inverted(measured)[np.newaxis])[0] < _NEARER * distance:
            return LIGHT if deviations[_BORDER] + deviations[_MEAN] > 0 else DARK
        largest = int(np.abs(deviations).argmax())
        less, more, _ = (*_MEASURES, *_COLORS)[largest]
        return more if deviations[largest] > 0 else less


def least_deviations(channels: int) -> Numbers:
    """For each number that `measure` gives, the least that counts as a standard deviation."""
    return np.array([least for _, _, least in (*_MEASURES, *_COLORS)[: MEASURES[channels]]])


def measure(images: NDArray[np.uint8]) -> Numbers:
    """Measure what images look like.

    All sums are of whole numbers, exact in float64 up to 2**53: an image is measured the same alone and among others.

    Args:
        images: uint8, shape `(images, height, width, 1 or 3)`.

    Returns:
        Shape `(images, MEASURES[channels])`.
    """
    return np.concatenate([*_measure_blocks(images)])


def _measure_blocks(images: NDArray[np.uint8]) -> Iterator[Numbers]:
    shape = images.shape[1:]
    size = max(1, _BLOCK // int(np.prod(shape)))
    for start in range(0, len(images), size):
        yield _measure_block(images[start : start + size], shape)


def _measure_block(images: NDArray[np.uint8], shape: tuple[int, ...]) -> Numbers:
    height, width, channels = shape
    weights, on_border = _weights(height, width, channels)
    pixels = images.reshape(len(images), -1)
    count = pixels.shape[1]
    values = pixels.astype(np.float64)
    sums = values @ weights
    neighbors = np.einsum("ij,ij->i", values[:, channels:], values[:, :-channels])  # of one channel
    np.multiply(values, values, out=values)
    square_sums = values @ weights[:, :6]
    mean, border = sums[:, 0] / count, sums[:, 1] / on_border
    variance = np.maximum(square_sums[:, 0] / count - mean**2, 0)
    border_variance = np.maximum(square_sums[:, 1] / on_border - border**2, 0)
    # The content is what differs from the mean border. Its place is weighted by the squared difference.
    level = border[:, np.newaxis]
    content = square_sums - 2 * level * sums[:, :6] + level**2 * weights[:, :6].sum(axis=0)
    mass = np.maximum(content[:, 0], 0) + count / 4
    right, down = content[:, 2] / mass, content[:, 3] / mass
    wide = np.sqrt(np.maximum(content[:, 4] / mass - right**2, 0))
    high = np.sqrt(np.maximum(content[:, 5] / mass - down**2, 0))
    measures = [
        mean / 255,
        border / 255,
        np.log(variance + 1) / 2,
        np.sqrt(border_variance) / 255,
        right / width,
        down / height,
        np.log(wide / width + _LEAST_EXTENT),
        np.log(high / height + _LEAST_EXTENT),
        pixels.min(axis=1) / 255,
        pixels.max(axis=1) / 255,
        (neighbors / (count - channels or 1) - mean**2) / (variance + 1),
    ]
    if channels == 3:
        red, blue = (3 * sums[:, 6] / count - mean, 3 * sums[:, 7] / count - mean)
        measures += [red / 255, blue / 255]
    return np.stack(measures, axis=1)


@cache
def _weights(height: int, width: int, channels: int) -> tuple[Numbers, int]:
    """What pixels are multiplied with to measure an image, and how many values are on its border.

    The columns: 1, whether it is on the border, its place to the right and down, from the center, in half pixels, and
    the squares of both; for RGB, whether it is red, and whether it is blue.
    """
    down, right = np.mgrid[:height, :width].astype(np.float64)
    down, right = 2 * down - (height - 1), 2 * right - (width - 1)
    depth = max(1, min(height, width) // 14)
    border = np.ones((height, width))
    border[depth : height - depth, depth : width - depth] = 0
    planes = np.stack([np.ones((height, width)), border, right, down, right**2, down**2], axis=2)
    columns = np.repeat(planes.reshape(height * width, -1), channels, axis=0)
    if channels == 3:
        colors = np.tile(np.eye(3)[:, [0, 2]], (height * width, 1))
        columns = np.concatenate([columns, colors], axis=1)
    return columns, int(columns[:, 1].sum())


def _inverted(measured: Numbers) -> Numbers:
    """What `measure` gives for an image with light and dark exchanged."""
    other = measured.copy()
    for number in (_MEAN, _BORDER):
        other[number] = 1 - measured[number]
    other[_DARKEST], other[_LIGHTEST] = 1 - measured[_LIGHTEST], 1 - measured[_DARKEST]
    other[len(_MEASURES) :] = -measured[len(_MEASURES) :]
    return other
