"""A data set as a folder of images for each class: its parts, its classes, and what would be odd about them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rnn_runtime.errors import DataError
from rnn_runtime.model.spec import ImageSpec
from rnn_train.data.image_folder import find_image_spec, folder_names, list_classes, load_images
from rnn_train.data.labeled_images import Data, LabeledImages
from rnn_train.data.source import DataSource

_PARTS = ("train", "test")  # folders of these names hold class folders


def load_class_folders(folder: Path, source: DataSource) -> Data:
    """Load `train/<class>/*` and, if it is there, `test/<class>/*`; or `<class>/*`, all to train on.

    Raises:
        DataError: there are fewer than two classes, one without images, one in test alone; images that can't be
            decoded; or images of several sizes without one to bring them to.
    """
    if source.class_names is not None or source.dataset is not None:
        raise DataError(f"{folder}: no IDX files here, and a class folder's name is the class's: give --data only")
    parts, notes = _find_parts(folder)
    files = {name: list_classes(path) for name, path in parts.items()}
    class_names = tuple(files["train"])
    _check_classes(parts, files, class_names)
    spec = _choose_spec([path for classes in files.values() for paths in classes.values() for path in paths], source)
    images = {}
    for name, classes in files.items():
        images[name], left_out = _load_part(parts[name], classes, class_names, spec, source.skip_unreadable)
        notes += left_out
    if "test" in files and (missing := set(class_names) - set(files["test"])):
        notes.append(f"{parts['test']}: no test images for the class {min(missing)!r}")
    return Data(images["train"], None, images.get("test"), class_names, tuple(notes))


def _find_parts(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders that hold class folders, and what is said of other folders beside them."""
    folders = folder_names(folder)
    if "train" not in folders:
        return {"train": folder}, []
    others = [name for name in folders if name not in _PARTS]
    notes = [f"{folder / name}: left out, since beside train only test is looked at" for name in others]
    return {name: folder / name for name in _PARTS if name in folders}, notes


def _choose_spec(paths: list[str], source: DataSource) -> ImageSpec:
    if source.image_size and source.channels:
        return ImageSpec(*source.image_size, source.channels)
    spec = find_image_spec(paths, source.image_size)
    return replace(spec, channels=source.channels or spec.channels)


def _load_part(
    folder: Path, classes: Mapping[str, list[str]], class_names: tuple[str, ...], spec: ImageSpec, skip_unreadable: bool
) -> tuple[LabeledImages, list[str]]:
    """The images of a part, and what is said of those that were left out."""
    labels = np.repeat(np.arange(len(class_names)), [len(classes.get(name, ())) for name in class_names])
    paths = [path for name in class_names for path in classes.get(name, ())]
    images, errors = load_images(paths, spec, skip_unreadable=skip_unreadable)
    kept = np.delete(labels, list(errors))
    if lost := set(labels) - set(kept):
        raise DataError(f"{folder}: of the class {class_names[min(lost)]!r}, no image can be decoded")
    if not errors:
        return LabeledImages(images, kept), []
    first = min(errors)
    note = (
        f"Left out {len(errors)} of {len(paths)} images that can't be decoded, the first: "
        f"{paths[first]}: {errors[first]}"
    )
    return LabeledImages(images, kept), [note]


def _check_classes(
    parts: Mapping[str, Path], files: Mapping[str, Mapping[str, list[str]]], class_names: tuple[str, ...]
) -> None:
    if len(class_names) < 2:
        raise DataError(f"{parts['train']}: only one class folder, {class_names[0]!r}; a classifier needs two or more")
    if {name.lower() for name in class_names} <= {"train", "training", "test", "testing", "val", "valid", "validation"}:
        raise DataError(
            f"{parts['train']}: are {' and '.join(class_names)} parts, not classes? Name them train and test, in small "
            "letters; validation images are held out of train with --val-split"
        )
    if unknown := set(files.get("test", ())) - set(class_names):
        raise DataError(f"{parts['test']}: no training images for the class {min(unknown)!r}")
