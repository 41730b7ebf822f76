"""The data sets to train on: where they come from, and their train, validation and test parts in memory."""

import contextlib
import http.client
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.decode import resize_image
from rnn_runtime.errors import DataError, SettingsError
from rnn_runtime.model_spec import ImageSpec
from rnn_train.idx import read_idx
from rnn_train.image_folder import find_image_spec, folder_names, list_classes, load_images
from rnn_train.settings import DATASETS, Dataset

DIGITS = tuple("0123456789")
_PARTS = ("train", "test")  # folders of these names hold class folders
_CLASSES_SHOWN = 10  # in a line that describes a data set


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where images come from and how they are split. A checkpoint remembers it.

    Attributes:
        dataset: A data set's name. With `data`, the name of the data set whose IDX files `data` holds,
            which gives the classes their names. Default: `mnist`, if `data` isn't given either.
        data: A folder of IDX files, or with a folder a class.
        data_root: Where torchvision keeps what it downloads.
        class_names: Names for the classes of IDX files; default: their numbers.
        image_size: `(height, width)` to resize to; default: the images' own.
        channels: 1 or 3, for a folder a class; default: 3 if any image is in colour.
        val_split: Share of the training images that is held out for validation, stratified by class.
        split_seed: Fixes which ones.
        skip_unreadable: Leave out image files that can't be decoded, instead of stopping.

    Raises:
        SettingsError: values out of range or that contradict each other.
    """

    dataset: Dataset | None = None
    data: str | None = None
    data_root: str = "data"
    class_names: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    val_split: float = 0.0
    split_seed: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.dataset not in (None, *DATASETS):
            raise SettingsError(f"dataset must be one of {', '.join(DATASETS)}, not {self.dataset!r}")
        if self.data is not None and self.dataset == "digits":
            raise SettingsError("the digits data set comes with scikit-learn: leave out --data")
        if self.class_names is not None and self.data is None:
            raise SettingsError("class names are for IDX files in --data: a named data set has its own")
        if self.channels is not None and self.data is None:
            raise SettingsError("channels can be chosen for a folder of images only: give it with --data")
        if type(self.val_split) not in (int, float) or not 0 <= self.val_split < 1:
            raise SettingsError(f"val_split must be from 0 up to, not including, 1, not {self.val_split!r}")
        # scikit-learn's range
        if type(self.split_seed) is not int or (self.val_split and not 0 <= self.split_seed < 2**32):
            raise SettingsError(f"with a validation split, seed must be from 0 to {2**32 - 1}, not {self.split_seed!r}")
        self._check_types()

    def _check_types(self) -> None:
        """A checkpoint's source comes from a file, where anything may stand."""
        if not isinstance(self.data, str | None) or not isinstance(self.data_root, str):
            raise SettingsError(f"data and data_root must be folders' names, not {self.data!r} and {self.data_root!r}")
        names = self.class_names
        if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise SettingsError(f"class_names must be texts, not {names!r}")
        if not isinstance(self.image_size, tuple | None) or len(self.image_size or (0, 0)) != 2:
            raise SettingsError(f"image_size must be (height, width), not {self.image_size!r}")
        if type(self.skip_unreadable) is not bool:
            raise SettingsError(f"skip_unreadable must be true or false, not {self.skip_unreadable!r}")
        ImageSpec(*(self.image_size or (1, 1)), 1 if self.channels is None else self.channels)  # checks their ranges

    @property
    def name(self) -> str:
        """For people: the folder or the data set's name."""
        return self.data or self.dataset or "mnist"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for a checkpoint. `from_dict` takes it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: object) -> Self:
        """Rebuild a source that `to_dict` made.

        Raises:
            SettingsError: a field is missing, unknown or out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, Mapping) or set(plain) != names:
            raise SettingsError("the data source has missing or unknown fields")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """`images` uint8 `(images, height, width, channels)`, and `labels` int64 `(images,)`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Data:
    """A data set in memory. `validation` and `test` are None where there are none.

    `notes` are sentences about what was left out or looks odd.
    """

    train: LabeledImages
    validation: LabeledImages | None
    test: LabeledImages | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def image(self) -> ImageSpec:
        """Size and channels of the images."""
        return ImageSpec(*self.train.images.shape[1:])

    def describe(self) -> str:
        """How many images of what, in a line."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
        names = ", ".join(self.class_names[:_CLASSES_SHOWN]) + (
            " ..." if len(self.class_names) > _CLASSES_SHOWN else ""
        )
        return f"{counts} images of {self.image}, {len(self.class_names)} classes: {names}"


def load_data(source: DataSource, *, download: bool = True) -> Data:
    """Load a data set into memory.

    Args:
        source: What to load.
        download: Whether torchvision may fetch what isn't there yet.

    Raises:
        DataError: it is missing, damaged, can't be downloaded, or can't be split as asked.
    """
    if source.data is not None:
        folder = Path(source.data)
        if not folder.is_dir():
            problem = "not a folder" if folder.exists() else "no such folder"
            raise DataError(f"{folder}: {problem}; --data takes one with IDX files or with a folder a class")
        load = _load_idx_folder if _find_idx(folder, "train-images-idx3-ubyte") else _load_class_folders
        data = load(folder, source)
    elif source.dataset == "digits":
        data = _load_digits()
    else:
        data = _load_torchvision(source.dataset or "mnist", source.data_root, download)
    if source.image_size:
        data = _map_parts(data, lambda part: _resize(part, source.image_size))
    try:
        _ = data.image
    except SettingsError as error:
        raise DataError(f"{source.name}: {error}; resize them, such as with --image-size 64") from None
    return _hold_out(data, source) if source.val_split else data


def _load_digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]  # its values are 0 to 16
    labels = digits.target.astype(np.int64)
    # The same fifth for everyone, whatever the seed, so that accuracies can be compared.
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return Data(LabeledImages(parts[0], parts[2]), None, LabeledImages(parts[1], parts[3]), DIGITS)


def _load_torchvision(dataset: Dataset, root: str, download: bool) -> Data:
    from torchvision import datasets

    kind: Callable[..., Any] = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST,
    }[dataset]
    # torchvision prints each mirror that it fails at; the error below says it once
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            parts = [kind(root, train=train, download=download) for train in (True, False)]
        except (RuntimeError, OSError, EOFError, ValueError, AssertionError, http.client.HTTPException) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise DataError(
                f"{dataset}: could not be downloaded to the folder {root!r}, or is damaged there: {reason}. Remove "
                "what is damaged; without network, use --dataset digits, or --data DIR with the data set's IDX files "
                "or a folder of images a class"
            ) from None
    train, test = (
        LabeledImages(part.data.numpy()[..., np.newaxis], part.targets.numpy().astype(np.int64)) for part in parts
    )
    return Data(train, None, test, _dataset_classes(dataset))


def _dataset_classes(dataset: Dataset) -> tuple[str, ...]:
    if dataset == "mnist":
        return DIGITS  # torchvision's "7 - seven" says it twice
    from torchvision import datasets

    return tuple({"fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[dataset].classes)


def _find_idx(folder: Path, name: str) -> Path | None:
    # some mirrors write train-images.idx3-ubyte
    candidates = [folder / f"{form}{ending}" for form in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")]
    return next(filter(Path.is_file, candidates), None)


def _load_idx_folder(folder: Path, source: DataSource) -> Data:
    if source.channels is not None:
        raise DataError(f"{folder}: IDX files have their own number of channels; leave out --channels")
    train, test = (_load_idx_part(folder, prefix) for prefix in ("train", "t10k"))
    count = int(max(train.labels.max(), test.labels.max())) + 1
    if source.class_names is not None:
        names = source.class_names
    else:
        names = _dataset_classes(source.dataset) if source.dataset else tuple(map(str, range(count)))
    if count > len(names):
        raise DataError(f"{folder}: labels go up to {count - 1}, but there are names for {len(names)} classes")
    if train.images.shape[1:] != test.images.shape[1:] and not source.image_size:
        raise DataError(f"{folder}: the training and the test images differ in size; choose one with --image-size")
    return Data(train, None, test, names)


def _load_idx_part(folder: Path, prefix: str) -> LabeledImages:
    arrays = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = _find_idx(folder, name)
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


def _load_class_folders(folder: Path, source: DataSource) -> Data:
    if source.class_names is not None or source.dataset is not None:
        raise DataError(f"{folder}: no IDX files here, and a class folder's name is the class's: give --data only")
    folders = folder_names(folder)
    parts = {name: folder / name for name in _PARTS if name in folders} if "train" in folders else {"train": folder}
    extra = [name for name in folders if name not in _PARTS] if "train" in folders else []
    notes = [f"{folder / name}: left out, since beside train only test is looked at" for name in extra]
    files = {name: list_classes(path) for name, path in parts.items()}
    class_names = tuple(files["train"])
    _check_class_folders(parts, files, class_names)
    every = [path for classes in files.values() for paths in classes.values() for path in paths]
    if source.image_size and source.channels:
        spec = ImageSpec(*source.image_size, source.channels)
    else:
        spec = find_image_spec(every, source.image_size)
        spec = replace(spec, channels=source.channels or spec.channels)

    def load(classes: Mapping[str, list[str]]) -> LabeledImages:
        labels = np.repeat(np.arange(len(class_names)), [len(classes.get(name, ())) for name in class_names])
        paths = [path for name in class_names for path in classes.get(name, ())]
        images, errors = load_images(paths, spec, skip_unreadable=source.skip_unreadable)
        kept = np.delete(labels, list(errors))
        if lost := set(labels) - set(kept):
            raise DataError(f"{folder}: of the class {class_names[min(lost)]!r}, no image can be decoded")
        if errors:
            first = min(errors)
            notes.append(
                f"Left out {len(errors)} of {len(paths)} images that can't be decoded, the first: "
                f"{paths[first]}: {errors[first]}"
            )
        return LabeledImages(images, kept)

    train = load(files["train"])
    test = load(files["test"]) if "test" in files else None
    if test is not None and (missing := set(class_names) - set(files["test"])):
        notes.append(f"{parts['test']}: no test images for the class {min(missing)!r}")
    return Data(train, None, test, class_names, tuple(notes))


def _check_class_folders(
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


def _map_parts(data: Data, change: Callable[[LabeledImages], LabeledImages]) -> Data:
    return replace(data, train=change(data.train), test=change(data.test) if data.test else None)


def _resize(part: LabeledImages, size: tuple[int, int] | None) -> LabeledImages:
    assert size is not None
    spec = ImageSpec(*size, part.images.shape[3])
    if part.images.shape[1:] == spec.shape:
        return part
    return LabeledImages(np.stack([resize_image(image, spec) for image in part.images]), part.labels)


def _hold_out(data: Data, source: DataSource) -> Data:
    from sklearn.model_selection import train_test_split

    labels = data.train.labels
    counts = np.bincount(labels, minlength=len(data.class_names))
    held_out_count = int(np.ceil(source.val_split * len(labels)))  # as scikit-learn rounds
    classes = int((counts > 0).sum())
    if 1 in counts:
        alone = data.class_names[int(counts.tolist().index(1))]
        raise DataError(f"{source.name}: the class {alone!r} has 1 training image; --val-split needs 2 of each class")
    if not classes <= held_out_count <= len(labels) - classes:
        raise DataError(
            f"{source.name}: can't hold out {source.val_split:g} of the images: {held_out_count} of {len(labels)}; "
            f"with {classes} classes, from {classes} to {len(labels) - classes} are needed for each to be in both parts"
        )
    kept, held_out = train_test_split(
        np.arange(len(labels)), test_size=held_out_count, random_state=source.split_seed, stratify=labels
    )
    train, validation = (LabeledImages(data.train.images[i], labels[i]) for i in (kept, held_out))
    return replace(data, train=train, validation=validation)
