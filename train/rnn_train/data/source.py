"""A data set: where it comes from, and its images in memory."""

import math
import re
import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from rnn_runtime.cores import usable_memory
from rnn_runtime.errors import Argument, DataError, SettingsError
from rnn_runtime.images.fit import Color
from rnn_runtime.model.spec import DEEPEST, FEWEST_GRAYS, DepthRange, Fit, ImageSpec, Side
from rnn_runtime.model.values import PlainFields, Share, check_fields
from rnn_train.settings import EMNIST, Dataset

HeldOut = Literal["test", "validation"]
_CLASSES_SHOWN = 10  # in a line that describes a data set


@dataclass(frozen=True, slots=True)
class DataSource(PlainFields):
    """Where images come from and how they are split. It is part of a checkpoint.

    Attributes:
        dataset: A data set's name; `mnist` if neither this nor `data` is given. With `data`, the data set that is in
            `data` as IDX files, `.npz` or `.csv`, for the names of the classes.
        data: A folder of IDX files, or with one folder of images per class, or with `train/` and, if you like, `val/`
            and `test/`, which hold these; or a file: `.npz` with `x_train`, `y_train`, `x_test` and `y_test`, or `.csv`
            with a label and the pixels of a square gray image in each row.
        labels: A CSV with the columns path and label, which says the classes of the image files in the folder `data`,
            wherever in it they are. Paths are relative to that folder.
        data_root: Where torchvision keeps its downloads.
        class_names: Names for the classes of IDX files, `.npz` and `.csv`; by default their numbers.
        image_size: `(height, width)` to resize to; by default the images' own.
        channels: 1 or 3, for folders of images; by default 3 if any image is in color.
        val_split: Share of the training images to hold out for validation, stratified by class.
        split_seed: Seed of that choice.
        depth_range: How gray images of more than 8 bits become 8 bits: `"0-4095"` takes these values for black and
            white, `"full"` 0 to 65535, `"auto"` the smallest and largest value of the training images. By default
            all values that the bits of a file can hold; an image that loses most of its grays by that is an error.
        skip_unreadable: Leave out image files that can't be decoded, instead of stopping.
        fit: How an image becomes the model's input, as in `ImageSpec`; by default `glyph` for the data sets of signs,
            mnist, kmnist and EMNIST's, else `stretch`. `glyph` reads colors itself and gives gray images.
        background: A color behind transparent pixels, such as `white` or `#ffe0b0`. By default, it is black for a data
            set with a name. In folders of images, it is what their visible pixels stand out from, or what is at their
            borders.

    Raises:
        SettingsError: a value is out of range, or two contradict each other.
    """

    dataset: Dataset | None = None
    data: str | None = None
    labels: str | None = None
    data_root: str = "data"
    class_names: tuple[str, ...] | None = None
    image_size: tuple[Side, Side] | None = None
    channels: int | None = None
    val_split: Share = 0.0
    split_seed: int = 0
    depth_range: str | None = None
    skip_unreadable: bool = False
    fit: Fit | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.data is not None and self.dataset == "digits":
            raise SettingsError("digits comes with scikit-learn, not from a folder. Leave out ", Argument("data"))
        for name, is_given, problem in (
            ("class_names", self.class_names is not None, "class names are for data whose classes are numbers"),
            ("labels", self.labels is not None, "labels are for image files in a folder"),
            ("channels", self.channels is not None, "channels can only be chosen for folders of images"),
            ("depth_range", self.depth_range == "auto", "a depth range can only be found in folders of images"),
        ):
            if is_given and self.data is None:
                raise SettingsError(f"{problem}. Leave out ", Argument(name), ", or add ", Argument("data"))
        # scikit-learn's range
        if self.val_split and not 0 <= self.split_seed < 2**32:
            raise SettingsError(
                f"with a validation split, the seed must be from 0 to {2**32 - 1}, not {self.split_seed!r}"
            )
        # checks their ranges
        channels = 1 if self.channels is None else self.channels
        size, background = self.image_size or (1, 1), self.fixed_background or (0, 0, 0)
        ImageSpec(*size, channels, self.fixed_depth_range, self.chosen_fit, background)
        if self.background is not None and self.chosen_fit == "glyph":
            raise SettingsError(
                Argument("background"),
                " does nothing with ",
                Argument("fit", "glyph"),
                ", which finds it by itself. Leave it out",
            )

    @property
    def chosen_fit(self) -> Fit:
        """How an image becomes the model's input, also where nothing was chosen."""
        is_of_signs = self.dataset in ("mnist", "kmnist", *EMNIST) or (self.dataset is None and self.data is None)
        return self.fit or ("glyph" if is_of_signs and self.channels != 3 else "stretch")

    @property
    def fixed_background(self) -> Color | None:
        """The color behind transparent pixels, unless it is to be found in the data."""
        if self.background is None:
            return (0, 0, 0) if self.dataset or not self.data else None
        with suppress(ValueError):
            color = ImageColor.getrgb(self.background)
            if len(color) == 3 and max(color) <= 255:
                return color
        raise SettingsError(
            Argument("background"),
            f" must be a color without transparency, such as white, black or #ffe0b0, not {self.background!r}",
        )

    @property
    def fixed_depth_range(self) -> DepthRange | None:
        """The depth range, unless it is to be found in the data or there is none."""
        if self.depth_range in (None, "auto"):
            return None
        text = "0-65535" if self.depth_range == "full" else self.depth_range
        found = re.fullmatch(r"(-?\d{1,9})-(-?\d{1,9})", text or "", re.ASCII)
        if not found:
            raise SettingsError(
                Argument("depth_range"),
                f" must be full, auto or the values of black and white, such as 0-4095, not {text!r}",
            )
        least, most = int(found[1]), int(found[2])
        if min(least, most) < DEEPEST[0] or max(least, most) > DEEPEST[1]:
            raise SettingsError(
                Argument("depth_range"), f" must have values from {DEEPEST[0]} to {DEEPEST[1]}, not {text!r}"
            )
        if least >= most:
            raise SettingsError(
                Argument("depth_range"), f" must go from a smaller value to a larger one, not {least} to {most}"
            )
        if most < least + FEWEST_GRAYS - 1:
            raise SettingsError(
                Argument("depth_range"),
                f" must hold {FEWEST_GRAYS} values or more, one for each gray that is left, not {text!r}",
            )
        return least, most

    @property
    def name(self) -> str:
        """The folder or the data set's name, for messages."""
        return self.data or self.dataset or "mnist"


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Images and their classes.

    Attributes:
        images: uint8, shape `(images, height, width, channels)`.
        labels: The class of each, int64, shape `(images,)`.
        paths: The file of each; empty if they weren't read from image files.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> "LabeledImages":
        """The images of these rows, in their order."""
        paths = tuple(self.paths[row] for row in rows) if self.paths else ()
        return LabeledImages(self.images[rows], self.labels[rows], paths)


@dataclass(frozen=True, slots=True)
class Data:
    """A data set in memory.

    Attributes:
        train: What to train on.
        validation: None if there are no such images.
        test: None if there are no such images.
        class_names: The classes, in the order of their labels.
        notes: Sentences about what was left out or is missing.
        depth_range: How images of more than 8 bits were read, as in `ImageSpec`.
        fit: How they were brought to the model's input, as in `ImageSpec`.
        background: The color behind transparent pixels, as in `ImageSpec`.
        aspect_ratios: The least and the largest width / height of the training images before they were fitted, but for
            odd ones; None if it isn't known.
    """

    train: LabeledImages
    validation: LabeledImages | None
    test: LabeledImages | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    depth_range: DepthRange | None = None
    fit: Fit = "stretch"
    background: Color = (0, 0, 0)
    aspect_ratios: tuple[float, float] | None = None

    @property
    def image_spec(self) -> ImageSpec:
        """Size and channels of the images, and how they were read."""
        height, width, channels = self.train.images.shape[1:]
        return ImageSpec(height, width, channels, self.depth_range, self.fit, self.background)

    @property
    def held_out(self) -> dict[HeldOut, LabeledImages]:
        """The splits that aren't trained on, those for tests first."""
        splits: dict[HeldOut, LabeledImages | None] = {"test": self.test, "validation": self.validation}
        return {name: split for name, split in splits.items() if split is not None}

    def describe(self) -> str:
        """Counts, size and classes, in one line."""
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items() if split is not None)
        more = " ..." if len(self.class_names) > _CLASSES_SHOWN else ""
        names = ", ".join(self.class_names[:_CLASSES_SHOWN]) + more
        return f"{counts} images of {self.image_spec}, {len(self.class_names)} classes: {names}"


def new_images(count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array for images of this shape.

    Raises:
        DataError: there isn't as much memory. (The system would grant it, and end the process later.)
    """
    check_memory(count * math.prod(shape), f"{count:,} images of {shape[0]}x{shape[1]} take")
    return np.empty((count, *shape), np.uint8)


def check_memory(needed: int, what: str) -> None:
    """Check that as much memory is left as images take.

    Args:
        needed: Bytes.
        what: What takes them, and the verb, for the error.

    Raises:
        DataError: there isn't.
    """
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    left = max(0, usable_memory() - used)
    if needed > left:
        raise DataError(
            f"{what} {needed / 1e9:,.1f} GB, and all images are held in the memory, of which {left / 1e9:,.1f} GB are "
            "left for this process. Choose a smaller ",
            Argument("image_size"),
            ", or fewer images",
        )
