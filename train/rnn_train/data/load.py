"""Loading a data set into memory: train, validation and test splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rnn_runtime.errors import DataError, SettingsError
from rnn_runtime.images.decode import resize_image
from rnn_runtime.model.spec import ImageSpec
from rnn_train.data.idx import find_idx, load_idx_folder
from rnn_train.data.image_folders import load_class_folders
from rnn_train.data.labeled_images import Data, LabeledImages
from rnn_train.data.named import load_digits_dataset, load_torchvision_dataset
from rnn_train.data.source import DataSource
from rnn_train.data.split_folders import name_classes


def load_data(source: DataSource, *, download: bool = True) -> Data:
    """Load a data set into memory.

    Args:
        source: What to load.
        download: Whether torchvision may download what is missing.

    Raises:
        DataError: it is missing or damaged, or can't be downloaded or split.
    """
    if source.data is not None:
        folder = Path(source.data)
        if not folder.is_dir():
            problem = "not a folder" if folder.exists() else "no such folder"
            raise DataError(
                f"{folder}: {problem}. Point `data` to a folder with IDX files or with one folder of images per class"
            )
        load = load_idx_folder if find_idx(folder, "train-images-idx3-ubyte") else load_class_folders
        data = load(folder, source)
    elif source.dataset == "digits":
        data = load_digits_dataset()
    else:
        data = load_torchvision_dataset(source.dataset or "mnist", source.data_root, download)
    if source.fixed_depth_range:
        data = replace(data, depth_range=source.fixed_depth_range)
    if source.image_size:
        data = _resize(data, source.image_size)
    try:
        _ = data.image_spec
    except SettingsError as error:
        raise DataError(f"{source.name}: {error}. Resize the images with `image_size`") from None
    if source.val_split:
        data = _hold_out(data, source)
    return replace(data, notes=(*data.notes, *_missing_classes(data)))


def _resize(data: Data, size: tuple[int, int]) -> Data:
    def resize(split: LabeledImages) -> LabeledImages:
        spec = ImageSpec(*size, split.images.shape[3])
        if split.images.shape[1:] == spec.shape:
            return split
        return replace(split, images=np.stack([resize_image(image, spec) for image in split.images]))

    validation, test = (split and resize(split) for split in (data.validation, data.test))
    return replace(data, train=resize(data.train), validation=validation, test=test)


def _hold_out(data: Data, source: DataSource) -> Data:
    from sklearn.model_selection import train_test_split

    labels = data.train.labels
    counts = np.bincount(labels, minlength=len(data.class_names))
    held_out_count = int(np.ceil(source.val_split * len(labels)))  # as scikit-learn rounds
    classes = int((counts > 0).sum())
    if 1 in counts:
        alone = name_classes(data.class_names[label] for label in np.flatnonzero(counts == 1))
        raise DataError(
            f"{source.name}: only 1 training image of {alone}, and `val_split` needs at least 2 of each class. "
            "Add images, or leave out `val_split`"
        )
    most = len(labels) - classes
    if not classes <= held_out_count <= most:
        raise DataError(
            f"{source.name}: `val_split={source.val_split:g}` would hold out {held_out_count} of {len(labels)} images. "
            f"For each of {classes} classes to be on both sides, hold out {classes} to {most}: choose `val_split` from "
            f"{np.ceil(1000 * classes / len(labels)) / 1000:g} to {np.floor(1000 * most / len(labels)) / 1000:g}, "
            "or add images"
        )
    kept, held_out = train_test_split(
        np.arange(len(labels)), test_size=held_out_count, random_state=source.split_seed, stratify=labels
    )
    train, validation = (data.train.select(rows) for rows in (kept, held_out))
    return replace(data, train=train, validation=validation)


def _missing_classes(data: Data) -> list[str]:
    """Sentences about splits that lack classes which are trained."""
    trained = np.unique(data.train.labels)
    missing = {
        split: np.setdiff1d(trained, images.labels)
        for split, images in (("validation", data.validation), ("test", data.test))
        if images is not None
    }
    return [
        f"No {split} images for {name_classes(data.class_names[label] for label in labels)}"
        for split, labels in missing.items()
        if len(labels)
    ]
