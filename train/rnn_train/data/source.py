"""What to train on: which data set, and how it is split."""

from dataclasses import dataclass

from rnn_runtime.errors import SettingsError
from rnn_runtime.model.fields import PlainFields, check_fields
from rnn_runtime.model.spec import ImageSpec, Share
from rnn_train.settings import Dataset


@dataclass(frozen=True, slots=True)
class DataSource(PlainFields):
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
    val_split: Share = 0.0
    split_seed: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
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
        # scikit-learn's range
        if self.val_split and not 0 <= self.split_seed < 2**32:
            raise SettingsError(
                f"with a validation split, the seed must be from 0 to {2**32 - 1}, not {self.split_seed!r}"
            )
        ImageSpec(*(self.image_size or (1, 1)), 1 if self.channels is None else self.channels)  # checks their ranges

    @property
    def name(self) -> str:
        """For people: the folder or the data set's name."""
        return self.data or self.dataset or "mnist"
