"""Loading a data set into memory: train, validation and test splits."""

import http.client
import math
import string
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rnn_runtime.errors import Argument, DataError, SettingsError
from rnn_runtime.images.fit import fit_pixels
from rnn_runtime.interruption import stop_if_signaled, wait_for
from rnn_runtime.model.spec import ImageSpec
from rnn_train.data.arrays import read_npz, read_pixel_table
from rnn_train.data.folders import load_image_files, name_classes
from rnn_train.data.idx import load_idx_files
from rnn_train.data.looks import border_color
from rnn_train.data.source import Data, DataSource, LabeledImages, check_memory
from rnn_train.settings import EMNIST, Dataset

_FITTED_TOGETHER = 256  # images, between two looks at signals
_CLOTHES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
_CAPITALS = string.digits + string.ascii_uppercase
_CLASSES: dict[Dataset, tuple[str, ...]] = {
    "mnist": tuple(string.digits),
    "fashion-mnist": tuple(_CLOTHES.split(", ")),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    # a small letter that looks like its capital is in the capital's class
    "emnist-balanced": tuple(_CAPITALS + "abdefghnqrt"),
    "emnist-bymerge": tuple(_CAPITALS + "abdefghnqrt"),
    "emnist-byclass": tuple(_CAPITALS + string.ascii_lowercase),
    "emnist-letters": tuple(string.ascii_lowercase),
    "emnist-digits": tuple(string.digits),
    "emnist-mnist": tuple(string.digits),
    "digits": tuple(string.digits),
}


def load_data(source: DataSource, *, download: bool = True) -> Data:
    """Load a data set into memory.

    Args:
        source: What to load.
        download: Whether torchvision may download what is missing.

    Raises:
        DataError: it is missing or damaged, is larger than the memory, or can't be downloaded or split.
    """
    try:
        return _load(source, download=download)
    except MemoryError:
        raise DataError(
            f"{source.name}: the images take more memory than there is, and all are held in it. Choose a smaller ",
            Argument("image_size"),
            ", or fewer images",
        ) from None


def _load(source: DataSource, *, download: bool) -> Data:
    if source.data is not None:
        data = _load_own(Path(source.data), source)
    elif source.dataset == "digits":
        data = _load_digits()
    else:
        data = _load_torchvision(source.dataset or "mnist", source.data_root, download)
    if source.fixed_depth_range:
        data = replace(data, depth_range=source.fixed_depth_range)
    try:
        if not data.train.paths:  # image files are fitted when they are decoded
            data = _fit(data, source)
        _ = data.image_spec
    except SettingsError as error:
        raise DataError(f"{source.name}: ", *error.args, ". Resize the images with ", Argument("image_size")) from None
    if source.val_split:
        data = _hold_out(data, source)
    return replace(data, notes=(*data.notes, *_check_variety(data, source), *_missing_classes(data)))


def _load_own(path: Path, source: DataSource) -> Data:
    """Load what someone brings: a folder, or a file of arrays."""
    is_file = path.is_file()
    if source.labels is not None and is_file:
        raise DataError(f"{path}: a file, and labels are for a folder of image files. Leave out ", Argument("labels"))
    if path.suffix in (".zip", ".gz", ".tgz", ".tar", ".rar", ".7z") and is_file:
        raise DataError(f"{path}: an archive. Unpack it, and point ", Argument("data"), " to the folder")
    if path.suffix.lower() == ".npz" and is_file:
        return _from_arrays(read_npz(path), path, source)
    if path.suffix.lower() == ".csv" and is_file:
        return _from_arrays(read_pixel_table(path), path, source)
    if not path.is_dir():
        raise DataError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}. Point ",
            Argument("data"),
            " to a folder with IDX files or with one folder of images per class, or to a file .npz or .csv",
        )
    splits = load_idx_files(path, source.dataset) if source.labels is None else None
    return load_image_files(path, source) if splits is None else _from_arrays(splits, path, source)


def _from_arrays(splits: Mapping[str, LabeledImages], path: Path, source: DataSource) -> Data:
    """Name the classes of images whose labels are numbers."""
    for name, is_given, problem in (
        ("channels", source.channels is not None, "channels can only be chosen for image files"),
        ("depth_range", source.depth_range == "auto", "its images have 8 bits, in which no depth range can be found"),
    ):
        if is_given:
            raise DataError(f"{path}: {problem}. Leave out ", Argument(name))
    if source.dataset in EMNIST:
        splits = {name: _upright(split, path, source.dataset) for name, split in splits.items()}
    train, test = splits["train"], splits.get("test")
    count = int(max(split.labels.max() for split in splits.values())) + 1
    names = source.class_names
    if names is None:
        names = _CLASSES[source.dataset] if source.dataset else tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(f"{path}: labels go up to {count - 1}, but only {len(names)} classes have names")
    if test and train.images.shape[1:] != test.images.shape[1:] and not source.image_size:
        raise DataError(f"{path}: training and test images differ in size. Resize them with ", Argument("image_size"))
    return Data(train, None, test, names)


def _upright(split: LabeledImages, place: Path | str, dataset: Dataset) -> LabeledImages:
    """EMNIST's images as they are read; in its files, rows are columns, and the labels of its letters begin with 1."""
    labels = split.labels - 1 if dataset == "emnist-letters" else split.labels
    if labels.min() < 0:
        raise DataError(f"{place}: a label is 0, and those of {dataset} begin with 1")
    return LabeledImages(np.ascontiguousarray(split.images.swapaxes(1, 2)), labels)


def _load_digits() -> Data:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fixed fifth of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # its values are 0 to 16
    labels = digits.target.astype(np.int64)
    # The same fifth whatever the seed, so that accuracies can be compared.
    splits = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return Data(LabeledImages(splits[0], splits[2]), None, LabeledImages(splits[1], splits[3]), _CLASSES["digits"])


def _load_torchvision(dataset: Dataset, root: str, download: bool) -> Data:
    """Load MNIST or a data set in its form from `root`, or download it to there."""
    from torchvision import datasets

    kinds: dict[str, Any] = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST,
        **{name: partial(datasets.EMNIST, split=name.removeprefix("emnist-")) for name in EMNIST},
    }
    try:
        splits = wait_for(lambda: [kinds[dataset](root, train=train, download=download) for train in (True, False)])
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError, http.client.HTTPException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise DataError(
            f"{dataset}: could not be downloaded to the folder {root!r}, or is damaged there: {reason}. Delete "
            "damaged files. Without a network, choose ",
            Argument("dataset", "digits"),
            ", or point ",
            Argument("data"),
            " to a folder with the IDX files of a data set or with one folder of images per class",
        ) from None
    train, test = (
        LabeledImages(split.data.numpy()[..., np.newaxis], split.targets.numpy().astype(np.int64)) for split in splits
    )
    if dataset in EMNIST:
        train, test = (_upright(split, root, dataset) for split in (train, test))
    return Data(train, None, test, _CLASSES[dataset])


def _fit(data: Data, source: DataSource) -> Data:
    """Bring images in memory to the model's input.

    Raises:
        SettingsError: they have a size that no model takes.
    """
    height, width, channels = data.train.images.shape[1:]
    aspect_ratio = width / height
    height, width = source.image_size or (height, width)
    background = source.fixed_background or border_color(data.train.images)
    spec = ImageSpec(height, width, channels, None, source.chosen_fit, background)

    def fit(split: LabeledImages) -> LabeledImages:
        if split.images.shape[1:] == spec.shape and spec.fit != "glyph":  # nothing to do, and no copy of all images
            return split
        fitted = np.empty((len(split), *spec.shape), np.uint8)
        for start in range(0, len(split), _FITTED_TOGETHER):
            stop_if_signaled()
            batch = slice(start, start + _FITTED_TOGETHER)
            fitted[batch] = fit_pixels(split.images[batch], spec)
        return replace(split, images=fitted)

    if spec.shape != data.train.images.shape[1:]:
        count = sum(len(split) for split in (data.train, *data.held_out.values()))
        check_memory(count * math.prod(spec.shape), f"{count:,} images of {spec.height}x{spec.width} take")
    validation, test = (split and fit(split) for split in (data.validation, data.test))
    return replace(
        data,
        train=fit(data.train),
        validation=validation,
        test=test,
        fit=spec.fit,
        background=spec.background,
        aspect_ratios=(aspect_ratio, aspect_ratio),
    )


def _check_variety(data: Data, source: DataSource) -> list[str]:
    """Check that the training images aren't all the same one, of which nothing can be learned.

    Returns:
        A sentence about those that are of one color; none if there are no such images.
    """
    images = data.train.images
    first = images[0]
    if len(images) > 1 and all(np.array_equal(image, first) for image in images[1:]):
        is_plain = not np.ptp(first, axis=(0, 1)).any()
        what = "all black" if not first.any() else "one color each" if is_plain else "the same"
        raise DataError(
            f"{source.name}: after decoding, all {len(data.train)} training images are {what}. Look at how they become "
            "the model's input, and choose another ",
            Argument("fit"),
        )
    pixels = images.reshape(len(images), -1, images.shape[3])
    plain = np.logical_and.reduce([np.ptp(channel, axis=1) == 0 for channel in np.moveaxis(pixels, 2, 0)])
    count = np.count_nonzero(plain)
    if not count:
        return []
    place = f", the first: {data.train.paths[plain.argmax()]}" if data.train.paths else ""
    return [
        f"{count:,} of {len(images):,} training images are of one color after decoding, which is of no use unless the "
        f"color tells the class{place}. Look at how they become the model's input: --fit"
    ]


def _hold_out(data: Data, source: DataSource) -> Data:
    from sklearn.model_selection import train_test_split

    labels = data.train.labels
    check_memory(data.train.images.nbytes, f"while some of {len(labels):,} images are held out, all take another")
    try:
        kept, held_out = train_test_split(
            np.arange(len(labels)), test_size=source.val_split, random_state=source.split_seed, stratify=labels
        )
    except ValueError as error:  # in scikit-learn's words: too few images, of a class or of a side
        raise DataError(
            f"{source.name}: ",
            Argument("val_split", source.val_split),
            f" of {len(labels)} images can't be held out: {str(error).rstrip('.')}. Each class needs "
            "an image on both sides: choose another share, or add images",
        ) from None
    return replace(data, train=data.train.select(kept), validation=data.train.select(held_out))


def _missing_classes(data: Data) -> list[str]:
    """Sentences about splits that lack classes which are trained."""
    trained = np.unique(data.train.labels)
    notes = []
    for name, split in (("validation", data.validation), ("test", data.test)):
        if split and len(missing := np.setdiff1d(trained, split.labels)):
            notes.append(f"No {name} images for {name_classes(data.class_names[label] for label in missing)}")
    return notes
