"""Data sets with a name: digits, which comes with scikit-learn, and those that torchvision downloads."""

import http.client
from collections.abc import Callable
from typing import Any

import numpy as np

from rnn_runtime.errors import DataError
from rnn_train.data.labeled_images import Data, LabeledImages
from rnn_train.settings import Dataset

DIGITS = tuple("0123456789")


def load_digits_dataset() -> Data:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fixed fifth of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # its values are 0 to 16
    labels = digits.target.astype(np.int64)
    # The same fifth whatever the seed, so that accuracies can be compared.
    splits = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return Data(LabeledImages(splits[0], splits[2]), None, LabeledImages(splits[1], splits[3]), DIGITS)


def load_torchvision_dataset(dataset: Dataset, root: str, download: bool) -> Data:
    """Load MNIST, Fashion-MNIST or KMNIST from `root`, or download it to there.

    Raises:
        DataError: it is missing or damaged, or can't be downloaded.
    """
    from torchvision import datasets

    kind: Callable[..., Any] = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST,
    }[dataset]
    try:
        splits = [kind(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError, http.client.HTTPException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise DataError(
            f"{dataset}: could not be downloaded to the folder {root!r}, or is damaged there: {reason}. Delete "
            'damaged files. Without a network, choose `dataset="digits"`, or point `data` to a folder with the IDX '
            "files of a data set or with one folder of images per class"
        ) from None
    train, test = (
        LabeledImages(split.data.numpy()[..., np.newaxis], split.targets.numpy().astype(np.int64)) for split in splits
    )
    return Data(train, None, test, dataset_classes(dataset))


def dataset_classes(dataset: Dataset) -> tuple[str, ...]:
    """The names of a data set's classes, in the order of its labels."""
    if dataset == "mnist":
        return DIGITS  # torchvision names them "7 - seven"
    from torchvision import datasets

    return tuple({"fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[dataset].classes)
