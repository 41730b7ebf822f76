"""What to train on: which data set, and how it is split."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from rnn_runtime.errors import SettingsError
from rnn_runtime.model.spec import ImageSpec
from rnn_train.settings import DATASETS, Dataset


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
            raise SettingsError("the digits data set comes with scikit-learn. Leave out `data`")
        if self.class_names is not None and self.data is None:
            raise SettingsError(
                "class names are for IDX files in a folder: a named data set has its own. "
                "Leave out `class_names`, or give `data`"
            )
        if self.channels is not None and self.data is None:
            raise SettingsError(
                "channels can be chosen for a folder of images only. Leave out `channels`, or give `data`"
            )
        if type(self.val_split) not in (int, float) or not 0 <= self.val_split < 1:
            raise SettingsError(f"val_split must be from 0 up to, not including, 1, not {self.val_split!r}")
        # scikit-learn's range
        if type(self.split_seed) is not int or (self.val_split and not 0 <= self.split_seed < 2**32):
            raise SettingsError(
                f"with a validation split, the seed must be from 0 to {2**32 - 1}, not {self.split_seed!r}"
            )
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
