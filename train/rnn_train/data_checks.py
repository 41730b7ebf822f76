"""What in a data set will disappoint, told before training: doubles, wrong labels, odd images, names that are alike."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.images.outliers import Numbers, least_deviations, measure
from rnn_train.data import Data, LabeledImages
from rnn_train.evaluation import LEAST_IMAGES

_SHOWN = 8  # images of a finding
_FEWEST = 20  # images of a class, of which it can be told what they look like
_FAR = 6.0  # times the distance that nine of ten images of a class have at most
_USUAL = 0.9
_PLAIN_BORDER, _STANDS_OUT = 0.05, 0.05  # deviation of a border, and difference from it, in parts of the range
_MOST_PLAIN = 0.8  # share of the training images with a plain border, which makes polarity mean something
_FEW_OF_OTHER_POLARITY = 0.02
_MEAN, _BORDER, _BORDER_DEVIATION = 0, 1, 3  # what `measure` gives


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a data set that a user should know.

    Attributes:
        text: What it is, and an example.
        images: Some of the images, uint8 `(images, height, width, channels)`; empty if it is about something else.
        names: The path of each, or its split and number.
    """

    text: str
    images: NDArray[np.uint8] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    split: str
    row: int


def check_data(data: Data) -> tuple[Finding, ...]:
    """Look for what will disappoint in a data set.

    Args:
        data: The data set, as it is trained on: images of the same pixels are those that are the same after decoding.

    Returns:
        The findings; empty if there are none.
    """
    splits: dict[str, LabeledImages] = {"training": data.train}
    splits |= dict(data.held_out.items())
    found, measured = _Findings(splits, data.class_names), measure(data.train.images)
    return (
        *found.of_doubles(),
        *found.of_odd_images(measured),
        *_of_polarity(data, measured, found),
        *_of_names(data.class_names),
        *_of_validation(data),
    )


class _Findings:
    def __init__(self, splits: dict[str, LabeledImages], class_names: Sequence[str]) -> None:
        self._splits, self._class_names = splits, class_names

    def of_doubles(self) -> Iterator[Finding]:
        """Images that are there more than once."""
        groups = list(self._same())
        labeled = [places for places in groups if len({self._label(place) for place in places}) > 1]
        across = [places for places in groups if len({place.split for place in places}) > 1]
        within = [places for places in groups if sum(place.split == "training" for place in places) > 1]
        if labeled:
            pair = self._pair(labeled, lambda one, other: self._label(one) != self._label(other))
            names = [repr(self._class_names[self._label(place)]) for place in pair]
            yield self._finding(
                f"{_count(labeled, 'image is', 'images are')} in more than one class, such as "
                f"{self.name(pair[0])} in {names[0]} and {self.name(pair[1])} in {names[1]}",
                pair,
            )
        if across:
            pair = self._pair(across, lambda one, other: one.split != other.split)
            yield self._finding(
                f"{_count(across, 'image is', 'images are')} in more than one split, so figures on held-out images are "
                f"too good, such as {self.name(pair[0])} and {self.name(pair[1])}",
                pair,
            )
        if within:
            pair = self._pair(within, lambda one, other: one.split == other.split == "training")
            more = sum(sum(place.split == "training" for place in places) - 1 for places in within)
            repeats = "training image repeats" if more == 1 else "training images repeat"
            yield self._finding(
                f"{more:,} {repeats} others, pixel by pixel, such as {self.name(pair[0])} and {self.name(pair[1])}",
                pair,
            )

    def _same(self) -> Iterator[list[_Place]]:
        """Groups of images with the same pixels."""
        hashes = np.concatenate([_hashes(images.images) for images in self._splits.values()])
        order = np.argsort(hashes, kind="stable")
        _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
        for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True):
            yield [self._place(int(row)) for row in order[start : start + count]]

    def _place(self, row: int) -> _Place:
        """The image of this number, if those of all splits are counted one after another."""
        for split, images in self._splits.items():
            if row < len(images):
                return _Place(split, row)
            row -= len(images)
        raise IndexError(row)

    def of_odd_images(self, measured: Numbers) -> Iterator[Finding]:
        """Training images that are unlike the others of their class."""
        train = self._splits["training"]
        least = least_deviations(train.images.shape[3])
        odd: list[tuple[float, _Place]] = []
        for label in range(len(self._class_names)):
            rows = np.flatnonzero(train.labels == label)
            if len(rows) < _FEWEST:
                continue
            own = measured[rows]
            middle = np.median(own, axis=0)
            # The median of the distances from the median, which odd images don't move, as a standard deviation.
            spread = 1.4826 * np.median(np.abs(own - middle), axis=0)
            distances = (((own - middle) / np.sqrt(spread**2 + least**2)) ** 2).sum(axis=1)
            far = distances > _FAR * np.quantile(distances, _USUAL)
            odd += [(float(distances[i]), _Place("training", int(rows[i]))) for i in np.flatnonzero(far)]
        if odd:
            places = [place for _, place in sorted(odd, key=lambda pair: -pair[0])]
            first = f"{self.name(places[0])} in {self._class_names[self._label(places[0])]!r}"
            text = f"{_count(places, 'training image is', 'training images are')} unlike the others of the same class"
            yield self._finding(f"{text}, the most {first}", places)

    def name(self, place: _Place) -> str:
        """The path of an image, or its split and number."""
        paths = self._splits[place.split].paths
        return paths[place.row] if paths else f"{place.split} image {place.row}"

    def _label(self, place: _Place) -> int:
        return int(self._splits[place.split].labels[place.row])

    def _finding(self, text: str, places: Sequence[_Place]) -> Finding:
        shown = places[:_SHOWN]
        images = np.stack([self._splits[place.split].images[place.row] for place in shown])
        return Finding(text, images, tuple(map(self.name, shown)))

    @staticmethod
    def _pair(groups: list[list[_Place]], differ: Callable[[_Place, _Place], bool]) -> list[_Place]:
        """The first two images of a group of which something holds."""
        return next([a, b] for places in groups for i, a in enumerate(places) for b in places[i + 1 :] if differ(a, b))


def _hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A hash of 64 bits of each image, a sum of products modulo 2**64: by NumPy, ten times as fast as one by one."""
    pixels = images.reshape(len(images), -1)
    pixels = np.pad(pixels, ((0, 0), (0, -pixels.shape[1] % 8)))
    words = np.ascontiguousarray(pixels).view(np.uint64)
    factors = np.random.default_rng(0).integers(0, 1 << 64, words.shape[1], np.uint64) | np.uint64(1)
    mixed = words ^ (words >> np.uint64(29))
    return (mixed * factors).sum(axis=1, dtype=np.uint64)  # type: ignore[no-any-return]


def _of_polarity(data: Data, measured: Numbers, found: _Findings) -> Iterator[Finding]:
    """Whether some images are dark on light, and others light on dark."""
    if data.fit == "glyph":
        return
    contrast = measured[:, _MEAN] - measured[:, _BORDER]
    tells = (measured[:, _BORDER_DEVIATION] < _PLAIN_BORDER) & (np.abs(contrast) > _STANDS_OUT)
    if tells.mean() < _MOST_PLAIN:
        return
    dark, light = np.flatnonzero(tells & (contrast < 0)), np.flatnonzero(tells & (contrast > 0))
    fewer = min(dark, light, key=len)
    if len(fewer) < _FEW_OF_OTHER_POLARITY * tells.sum():
        return
    name = found.name(_Place("training", int(fewer[0])))
    yield Finding(
        f"{len(dark):,} training images are dark on light, and {len(light):,} light on dark, such as {name}. "
        "Consider --fit glyph, which makes them alike",
        data.train.images[fewer[:_SHOWN]],
        tuple(found.name(_Place("training", int(row))) for row in fewer[:_SHOWN]),
    )


def _of_names(class_names: Sequence[str]) -> Iterator[Finding]:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in class_names:
        alike[re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield Finding(
                f"The classes {' and '.join(map(repr, names))} differ only in case, spaces or the form of letters. Are "
                "they one?"
            )


def _of_validation(data: Data) -> Iterator[Finding]:
    if data.validation and len(data.validation) < LEAST_IMAGES:
        yield Finding(
            f"{len(data.validation):,} validation images are too few to calibrate probabilities, which takes "
            f"{LEAST_IMAGES}, and to choose the best epoch well"
        )


def _count(things: Sequence[object], one: str, several: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else several}"
