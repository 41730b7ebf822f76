"""The image files of a folder a class: finding, decoding and writing them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.errors import DataError, ImageError, InputError, SettingsError
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.images.class_folders import class_folders
from rnn_runtime.images.decode import image_shape, read_bytes, read_image, to_image
from rnn_runtime.images.find import find_images
from rnn_runtime.model.spec import ImageSpec


def list_classes(folder: Path) -> dict[str, list[str]]:
    """The image files of each class folder, both sorted by name.

    Args:
        folder: Its folders are the classes; images in their folders count too. Hidden ones are left out.

    Raises:
        DataError: there is no class folder, or one without images.
    """
    names = folder_names(folder)
    if not names:
        raise DataError(
            f"{folder}: no folders in it; it needs one for each class (train and test are parts, no classes)"
        )
    try:
        return {name: list(find_images([str(folder / name)], recursive=True)) for name in names}
    except InputError as error:
        raise DataError(f"{error}; each class needs images, so fill the folder or remove it") from None


def folder_names(folder: Path) -> list[str]:
    """The folders in a folder, and links to folders, sorted; hidden ones are left out.

    Raises:
        DataError: it can't be listed.
    """
    try:
        with os.scandir(folder) as entries:
            # isdir, since the entry's own is_dir doesn't stand a link that leads to itself
            return sorted(entry.name for entry in entries if entry.name[0] != "." and os.path.isdir(entry.path))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; give a folder with a folder of images for each class") from None


def find_image_spec(paths: Sequence[str], size: tuple[int, int] | None = None) -> ImageSpec:
    """The size that all images share, and 3 channels if any of them is in colour, else 1.

    Images that can't be read are left to `load_images` to report.

    Args:
        paths: The files.
        size: `(height, width)` if it is already settled, and only the channels are in question.

    Raises:
        DataError: the images differ in size, or none can be read.
    """

    def shape(path: str) -> tuple[int, int, int] | None:
        try:
            return image_shape(read_bytes(path))
        except ImageError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes = {path: found for path, found in zip(paths, pool.map(shape, paths), strict=True) if found}
    if not shapes:
        raise DataError(f"{paths[0]} and {len(paths) - 1} more: none is an image that can be decoded")
    (first, (height, width, _)), *rest = shapes.items()
    for path, other in rest:
        if size is None and other[:2] != (height, width):
            raise DataError(
                f"images differ in size, {height}x{width} in {first} and {other[0]}x{other[1]} in {path}; "
                "choose the height and width to resize them to, such as --image-size 64x64"
            )
    try:
        return ImageSpec(*(size or (height, width)), max(found[2] for found in shapes.values()))
    except SettingsError as error:
        raise DataError(f"{first}: {error}; resize all, such as with --image-size 64") from None


def load_images(
    paths: Sequence[str], spec: ImageSpec, *, skip_unreadable: bool = False
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode images just as the runtime does, by several threads.

    Args:
        paths: The files.
        spec: Size and channels to bring them to.
        skip_unreadable: Leave out files that can't be decoded, instead of raising.

    Returns:
        The images that could be read, uint8 `(images, height, width, channels)`, and what is wrong with
        the other files, by their place in `paths`.

    Raises:
        DataError: a file can't be decoded.
    """
    images = np.empty((len(paths), *spec.shape), np.uint8)

    def load(row: int) -> str | None:
        try:
            images[row] = read_image(paths[row], spec)
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(load, range(len(paths)))
        errors = {row: problem for row, problem in enumerate(problems) if problem}
    if errors and not skip_unreadable:
        first = min(errors)
        raise DataError(
            f"{len(errors)} of {len(paths)} images can't be read, the first: {paths[first]}: {errors[first]}; "
            "mend or remove them, or add --skip-unreadable"
        )
    return (np.delete(images, list(errors), axis=0) if errors else images), errors


def write_image_folder(
    folder: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Write images as PNG files, `folder/<class>/00042.png`, numbered by their place in `images`.

    Args:
        folder: Made if it isn't there; in it, a folder a class, as `class_folders` names them.
        images: uint8, shape `(images, height, width, channels)`.
        labels: The class of each, an index into `class_names`.
        class_names: One name a class.

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
