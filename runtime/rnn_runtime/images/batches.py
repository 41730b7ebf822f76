"""Images in batches, decoded ahead of the model that takes them, in bounded memory."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import ImageError
from rnn_runtime.images.decode import read_image, result_or_error
from rnn_runtime.images.image_like import TakenImage
from rnn_runtime.images.pool import map_files
from rnn_runtime.model.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Decoded images.

    Attributes:
        names: The path or name of each image, readable or not; empty for an image without one.
        readable: Places in `names` of the images that were decoded.
        images: uint8 `(len(readable), height, width, channels)`.
        errors: What is wrong with the other images, by their place in `names`.
    """

    names: list[str]
    readable: list[int]
    images: NDArray[np.uint8]
    errors: dict[int, str]


def decode_images(
    images: Iterable[str | TakenImage],
    spec: ImageSpec,
    *,
    batch_size: int,
    threads: int,
) -> Generator[ImageBatch, None, None]:
    """Read and decode images, in their order; at most a few batches are in memory at a time.

    Args:
        images: Paths, and images that were taken over from the caller. Drawn only as far ahead as is decoded.
        spec: Size and channels to bring them to.
        batch_size: Images per batch. The first batch is smaller, to time one image.
        threads: The most threads to use. Small images are decoded by one.
    """
    for results in map_files(partial(_read, spec=spec), images, batch_size=batch_size, threads=threads):
        yield _to_batch(results, spec)


def decode_here(images: Iterable[str | TakenImage], spec: ImageSpec) -> ImageBatch:
    """Read and decode images in the calling thread; starting another would take longer than most single images do."""
    read = partial(_read, spec=spec)
    return _to_batch([(image, result_or_error(read, image)) for image in images], spec)


def _read(image: str | TakenImage, spec: ImageSpec) -> NDArray[np.uint8]:
    return image.read(spec) if isinstance(image, TakenImage) else read_image(image, spec)


def _to_batch(
    results: Sequence[tuple[str | TakenImage, NDArray[np.uint8] | ImageError]], spec: ImageSpec
) -> ImageBatch:
    pixels = {row: found for row, (_, found) in enumerate(results) if not isinstance(found, ImageError)}
    errors = {row: str(found) for row, (_, found) in enumerate(results) if isinstance(found, ImageError)}
    stacked = np.empty((0, *spec.shape), np.uint8)
    if pixels:
        stacked = np.stack(list(pixels.values()))
    names = [image.name if isinstance(image, TakenImage) else image for image, _ in results]
    return ImageBatch(names, list(pixels), stacked, errors)
