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
_ONE_THREAD = 1 << 18  # multiplications; up to so many, OpenBLAS starts no threads (its interface/gemm.c)
_BRIGHT = 2.0  # standard deviations; what differs less in brightness isn't meant the other way round
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
    ("darker dark parts", "lighter dark parts", 0.02),
    ("darker light parts", "lighter light parts", 0.02),
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
            aspect_ratios: Width / height of each before it was fitted, or not a number; empty where none is known.

        Returns:
            The greatest difference of each image, such as `light where those are dark`; None for an image like those.
        """
        differences: list[str | None] = [None] * len(images)
        if not len(images):
            return differences
        measured = measure(images)
        distances = self.distances(measured)
        for row in np.flatnonzero(distances > self._threshold):
            constant = (images[row] == images[row, 0, 0]).all()
            differences[row] = SINGLE_COLOR if constant else self._name(measured[row], float(distances[row]))
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
        deviations = (measured - self._mean) / self._deviations
        brightness = max(deviations[[_MEAN, _BORDER]], key=abs)
        if abs(brightness) > _BRIGHT and self.distances(_inverted(measured)[np.newaxis])[0] < _NEARER * distance:
            return LIGHT if brightness > 0 else DARK
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
    size = max(1, _BLOCK // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), size):
        yield _measure_block(images[start : start + size])


def _measure_block(images: NDArray[np.uint8]) -> Numbers:
    length, height, width, channels = images.shape
    in_rows, of_rows, weights, on_border = _weights(height, width)
    # Each channel is held against its own border: that of a solid color is even, though its channels differ.
    values = np.moveaxis(images, 3, 1).astype(np.float64, order="C").reshape(length * channels, height * width)
    count = channels * height * width

    def sum_up() -> Numbers:
        by_row = _product(values.reshape(-1, width), in_rows)
        return _product(by_row.reshape(len(values), -1), of_rows).reshape(length, channels, -1)

    sums = sum_up()
    joined = values.reshape(length, count)
    neighbors = np.einsum("ij,ij->i", joined[:, 1:], joined[:, :-1])
    np.multiply(values, values, out=values)
    square_sums = sum_up()
    mean, borders = sums[..., 0].sum(axis=1) / count, sums[..., 1] / on_border
    variance = np.maximum(square_sums[..., 0].sum(axis=1) / count - mean**2, 0)
    border_variance = np.maximum(square_sums[..., 1] / on_border - borders**2, 0).mean(axis=1)
    # The content is what differs from the mean border. Its place is weighted by the squared difference.
    level = borders[..., np.newaxis]
    content = (square_sums - 2 * level * sums + level**2 * weights).sum(axis=1)
    mass = np.maximum(content[:, 0], 0) + count / 4
    right, down = content[:, 2] / mass, content[:, 3] / mass
    wide = np.sqrt(np.maximum(content[:, 4] / mass - right**2, 0))
    high = np.sqrt(np.maximum(content[:, 5] / mass - down**2, 0))
    pixels = images.reshape(length, -1)
    measures = [
        mean / 255,
        borders.mean(axis=1) / 255,
        np.log(variance + 1) / 2,
        np.sqrt(border_variance) / 255,
        right / width,
        down / height,
        np.log(wide / width + _LEAST_EXTENT),
        np.log(high / height + _LEAST_EXTENT),
        pixels.min(axis=1) / 255,
        pixels.max(axis=1) / 255,
        (neighbors / (count - 1 or 1) - mean**2) / (variance + 1),
    ]
    if channels == 3:
        measures += [(channels * sums[:, color, 0] / count - mean) / 255 for color in (0, 2)]  # red, blue
    return np.stack(measures, axis=1)


def _product(values: Numbers, weights: Numbers) -> Numbers:
    """`values @ weights`, in one thread: NumPy's would get in the way of onnxruntime's, and of other processes."""
    result = np.empty((len(values), weights.shape[1]))
    size = max(1, _ONE_THREAD // weights.size)
    for start in range(0, len(values), size):
        np.matmul(values[start : start + size], weights, out=result[start : start + size])
    return result


@cache
def _weights(height: int, width: int) -> tuple[Numbers, Numbers, Numbers, int]:
    """What the pixels of a channel are multiplied with to measure it.

    Returns:
        The weights in a row, `(width, 4)`; those of all rows, `(height * 4, 6)`; what the six sums are for a channel of
        ones; and how many pixels are on the border. The sums are those of the values, of the values on the border, of
        the values times their place to the right and down, in half pixels from the center, and times the squares of
        both.
    """
    depth = max(1, min(height, width) // 14)
    right, down = (2.0 * np.arange(side) - (side - 1) for side in (width, height))
    inner_columns, inner_rows = (
        ((np.arange(side) >= depth) & (np.arange(side) < side - depth)).astype(np.float64) for side in (width, height)
    )
    ones, none = np.ones(height), np.zeros(height)
    in_rows = np.stack([np.ones(width), right, right**2, inner_columns], axis=1)
    # For each kind of sum in a row, what it contributes to the sums of the channel.
    of_rows = [
        [ones, ones, none, down, none, down**2],
        [none, none, ones, none, none, none],
        [none, none, none, none, ones, none],
        [none, -inner_rows, none, none, none, none],
    ]
    joined = np.transpose(np.array(of_rows), (2, 0, 1)).reshape(height * len(of_rows), -1)
    whole = np.tile(in_rows.sum(axis=0), height) @ joined
    return in_rows, joined, whole, int(whole[1])


def _inverted(measured: Numbers) -> Numbers:
    """What `measure` gives for an image with light and dark exchanged."""
    other = measured.copy()
    for number in (_MEAN, _BORDER):
        other[number] = 1 - measured[number]
    other[_DARKEST], other[_LIGHTEST] = 1 - measured[_LIGHTEST], 1 - measured[_DARKEST]
    other[len(_MEASURES) :] = -measured[len(_MEASURES) :]
    return other
