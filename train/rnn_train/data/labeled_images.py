"""A data set in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.model.spec import DepthRange, ImageSpec

_CLASSES_SHOWN = 10  # in a line that describes a data set


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Images and their classes.

    Attributes:
        images: uint8, shape `(images, height, width, channels)`.
        labels: The class of each, int64, shape `(images,)`.
        paths: The file of each; empty if they weren't read from image files.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> "LabeledImages":
        """The images of these rows, in their order."""
        paths = tuple(self.paths[row] for row in rows) if self.paths else ()
        return LabeledImages(self.images[rows], self.labels[rows], paths)


@dataclass(frozen=True, slots=True)
class Data:
    """A data set in memory. `validation` and `test` are None if it has none.

    `depth_range` is how images of more than 8 bits were read, as in `ImageSpec`. `notes` are sentences about what was
    left out or is missing.
    """

    train: LabeledImages
    validation: LabeledImages | None
    test: LabeledImages | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    depth_range: DepthRange | None = None

    @property
    def image_spec(self) -> ImageSpec:
        """Size and channels of the images, and how they were read."""
        height, width, channels = self.train.images.shape[1:]
        return ImageSpec(height, width, channels, self.depth_range)

    def describe(self) -> str:
        """Counts, size and classes, in one line."""
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items() if split is not None)
        names = ", ".join(self.class_names[:_CLASSES_SHOWN]) + (
            " ..." if len(self.class_names) > _CLASSES_SHOWN else ""
        )
        return f"{counts} images of {self.image_spec}, {len(self.class_names)} classes: {names}"
