"""Image files in batches, decoded ahead of the model that takes them, in bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import ImageError
from rnn_runtime.images.decode import read_image
from rnn_runtime.images.pool import map_files
from rnn_runtime.model.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Decoded files.

    Attributes:
        paths: All files, readable or not.
        readable: Places in `paths` of the files that were decoded.
        images: uint8 `(len(readable), height, width, channels)`.
        errors: What is wrong with the other files, by their place in `paths`.
    """

    paths: list[str]
    readable: list[int]
    images: NDArray[np.uint8]
    errors: dict[int, str]


def decode_files(paths: Iterable[str], spec: ImageSpec, *, batch_size: int, threads: int) -> Iterator[FileBatch]:
    """Read and decode image files, in their order; at most a few batches are in memory at a time.

    Args:
        paths: Any number of files; taken only as far ahead as is decoded.
        spec: Size and channels to bring them to.
        batch_size: Files per batch. The first is smaller, to see how long a file takes.
        threads: How many to use where that pays; small files are decoded by one.
    """
    for results in map_files(partial(read_image, spec=spec), paths, batch_size=batch_size, threads=threads):
        pixels = {row: found for row, (_, found) in enumerate(results) if not isinstance(found, ImageError)}
        errors = {row: str(found) for row, (_, found) in enumerate(results) if isinstance(found, ImageError)}
        images = np.stack(list(pixels.values())) if pixels else np.empty((0, *spec.shape), np.uint8)
        yield FileBatch([path for path, _ in results], list(pixels), images, errors)
