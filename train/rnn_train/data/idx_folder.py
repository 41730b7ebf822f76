"""A data set as the four IDX files of the MNIST family in a folder."""

from pathlib import Path

import numpy as np

from rnn_runtime.errors import DataError
from rnn_train.data.idx import read_idx
from rnn_train.data.labeled_images import Data, LabeledImages
from rnn_train.data.named import dataset_classes
from rnn_train.data.source import DataSource


def find_idx(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in a folder, plain or gzipped."""
    # some mirrors write train-images.idx3-ubyte
    candidates = [folder / f"{form}{ending}" for form in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")]
    return next(filter(Path.is_file, candidates), None)


def load_idx_folder(folder: Path, source: DataSource) -> Data:
    """Load `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the two of `t10k`, which is the test part.

    Raises:
        DataError: a file is missing or damaged, or files don't fit each other or the classes' names.
    """
    if source.channels is not None:
        raise DataError(f"{folder}: IDX files have their own number of channels; leave out --channels")
    train, test = (_load_idx_part(folder, prefix) for prefix in ("train", "t10k"))
    count = int(max(train.labels.max(), test.labels.max())) + 1
    if source.class_names is not None:
        names = source.class_names
    else:
        names = dataset_classes(source.dataset) if source.dataset else tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(f"{folder}: labels go up to {count - 1}, but there are names for {len(names)} classes")
    if train.images.shape[1:] != test.images.shape[1:] and not source.image_size:
        raise DataError(f"{folder}: the training and the test images differ in size; choose one with --image-size")
    return Data(train, None, test, names)


def _load_idx_part(folder: Path, prefix: str) -> LabeledImages:
    arrays = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = find_idx(folder, name)
        if path is None:
            raise DataError(f"{folder}: {name} (or {name}.gz) is missing beside the other IDX files")
        arrays.append(read_idx(path))
    images, labels = arrays
    images = images[..., np.newaxis] if images.ndim == 3 else images
    if (
        images.ndim != 4
        or 0 in images.shape[1:]
        or images.shape[3] not in (1, 3)
        or labels.ndim != 1
        or len(images) != len(labels)
    ):
        raise DataError(
            f"{folder}: {prefix} images of shape {images.shape} and labels of shape {labels.shape} don't fit; "
            "expected (images, height, width) and (images,)"
        )
    if not len(images):
        raise DataError(f"{folder}: the {prefix} part holds no images")
    return LabeledImages(images, labels.astype(np.int64))
