"""Writing the images of a data set as PNG files, in one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.images.class_folders import class_folders
from rnn_runtime.images.decode import to_image


def write_image_folder(
    folder: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Write images as PNG files, `folder/<class>/00042.png`, numbered by index in `images`.

    Args:
        folder: Created if it doesn't exist. Its folders are named by `class_folders`.
        images: uint8, shape `(images, height, width, channels)`.
        labels: The class of each, an index into `class_names`.
        class_names: One name per class.

    Raises:
        InputError: two classes would share a folder.
        OSError: a folder or file can't be written.
    """
    folders = class_folders(class_names)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = Path(folder) / folders[label] / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb", sync=False) as file:  # syncing thousands would take minutes
            to_image(image).save(file, "PNG")
