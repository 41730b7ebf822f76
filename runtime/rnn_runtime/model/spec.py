"""The description of a model: its cell and sizes, its input images and its classes.

Training creates it; the checkpoint and the model file contain it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from rnn_runtime.errors import SettingsError
from rnn_runtime.model.values import Finite, FromZero, PlainFields, Positive, Share, check_fields

Cell = Literal["rnn", "gru", "lstm"]
Nonlinearity = Literal["tanh", "relu"]
Fit = Literal["stretch", "pad", "crop", "glyph"]

CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")
NONLINEARITIES: tuple[Nonlinearity, ...] = ("tanh", "relu")
MAX_IMAGE_SIDE = 4096  # pixels; a row is a time step, and recurrent nets aren't trained over more
MAX_HIDDEN_SIZE = 65536
MAX_LAYERS = 64
MAX_CLASSES = 100_000
DEEPEST = (-(1 << 15), (1 << 16) - 1)  # values of 16 bits, signed and unsigned
MEASURES = {1: 11, 3: 13}  # by channels, the numbers in an `ImageProfile`
_MOST_PROFILE = 1e6  # of a profile's values, and of one by its deviations: products of them stay finite
FEWEST_GRAYS = 17  # a sensor of 12 bits whose values are read as 16 bits leaves 16

Side = Annotated[int, Meta(ge=1, le=MAX_IMAGE_SIDE)]
HiddenSize = Annotated[int, Meta(ge=1, le=MAX_HIDDEN_SIZE)]
Layers = Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
DepthValue = Annotated[int, Meta(ge=DEEPEST[0], le=DEEPEST[1])]
DepthRange = tuple[DepthValue, DepthValue]
Byte = Annotated[int, Meta(ge=0, le=255)]


@dataclass(frozen=True, slots=True)
class ImageSpec(PlainFields):
    """The images that a model takes. Rows are time steps; a row's pixels and channels are its features.

    `depth_range` is for gray images of more than 8 bits: the values that become black and white, `(least, most)`. With
    it, `value` becomes `(value - least) * 256 // (most - least + 1)`, after being limited to the range. None stands for
    all values that the bits of a file can hold; images that keep less than `FEWEST_GRAYS` of 256 grays by that are
    refused. So are, with a range, images of which no value lies within it.

    `fit` is how an image of another size is brought to this one:

    - `stretch` changes its aspect ratio
    - `pad` scales it as a whole, and fills what is left with the background
    - `crop` takes the largest centered part that has this aspect ratio
    - `glyph` is for one sign on a background: see `rnn_runtime.images.glyph.to_glyph`

    `background` is what is behind transparent pixels and what `pad` adds: red, green and blue. `glyph` doesn't use it.
    `invert` exchanges light and dark, before the image is fitted. Models are trained without it.

    Raises:
        SettingsError: a side isn't within 1 to `MAX_IMAGE_SIDE`, channels is neither 1 (gray) nor 3 (RGB), or 3 with
            `glyph`, or the range is empty or beyond 16 bits.
    """

    height: Side
    width: Side
    channels: int
    depth_range: DepthRange | None = None
    fit: Fit = "stretch"
    background: tuple[Byte, Byte, Byte] = (0, 0, 0)
    invert: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "image ")
        if self.channels not in (1, 3):
            raise SettingsError(f"image channels must be 1 (gray) or 3 (RGB), not {self.channels!r}")
        if self.fit == "glyph" and self.channels != 1:
            raise SettingsError("glyph gives gray images, so image channels must be 1 with it")
        if self.depth_range and self.depth_range[0] >= self.depth_range[1]:
            raise SettingsError(
                "the depth range must go from a smaller value to a larger one, not {} to {}".format(*self.depth_range)
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.height, self.width, self.channels

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {'gray' if self.channels == 1 else 'RGB'}"


@dataclass(frozen=True, slots=True)
class ImageProfile(PlainFields):
    """What the training images of a model look like. Training makes it, and it is part of the model's description.

    Attributes:
        mean: The mean of each number that `rnn_runtime.images.outliers.measure` gives.
        whitening: A lower triangular matrix: differences from the mean, times it, are uncorrelated, of deviation 1.
        threshold: The largest squared distance of an image like those in training.
        aspect_ratios: The least and the largest of width / height before the images were fitted; None where that
            doesn't matter, as for `glyph`.

    Raises:
        SettingsError: the sizes don't fit each other, or a value is of a wrong type or not finite.
    """

    mean: tuple[Finite, ...]
    whitening: tuple[tuple[Finite, ...], ...]
    threshold: FromZero
    aspect_ratios: tuple[Positive, Positive] | None = None

    def __post_init__(self) -> None:
        PlainFields.__post_init__(self)
        size = len(self.mean)
        if len(self.whitening) != size or any(len(row) != size for row in self.whitening):
            raise SettingsError(f"a profile of {size} numbers needs a whitening matrix of that size")
        if any(row[i] <= 0 or any(row[i + 1 :]) for i, row in enumerate(self.whitening)):
            raise SettingsError("a profile's whitening matrix must be lower triangular, with a positive diagonal")
        diagonal = [row[i] for i, row in enumerate(self.whitening)]
        values = [abs(value) for row in (self.mean, *self.whitening) for value in row]
        if min(diagonal, default=1.0) < 1 / _MOST_PROFILE or max(values, default=0.0) > _MOST_PROFILE:
            raise SettingsError(f"a profile's values must be below {_MOST_PROFILE:,.0f}, and its deviations, too")
        if self.aspect_ratios and self.aspect_ratios[0] > self.aspect_ratios[1]:
            raise SettingsError("a profile's aspect ratios must be the least and the largest")


@dataclass(frozen=True, slots=True)
class ModelSpec(PlainFields):
    """Everything that defines a model, except its weights.

    `mean` and `std` normalize pixels that were scaled to 0..1, with one value per channel. `nonlinearity` is that of
    the vanilla RNN; GRU and LSTM have their own and ignore it. `profile` is what the training images look like; None if
    there were too few to say. It is rounded as the processor rounds, and doesn't count when specs are compared.

    Raises:
        SettingsError: a field has a wrong type, is out of range or doesn't fit another.
    """

    image_spec: ImageSpec
    class_names: tuple[str, ...]
    cell: Cell = "rnn"
    nonlinearity: Nonlinearity = "tanh"
    hidden_size: HiddenSize = 128
    num_layers: Layers = 2
    bidirectional: bool = False
    dropout: Share = 0.0
    mean: tuple[Finite, ...] = (0.0,)
    std: tuple[Positive, ...] = (1.0,)
    profile: ImageProfile | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        names, channels = self.class_names, self.image_spec.channels
        if not all(names):
            raise SettingsError("class names must be non-empty texts")
        if not 2 <= len(names) <= MAX_CLASSES:
            raise SettingsError(f"a model needs 2 to {MAX_CLASSES} classes, not {len(names)}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SettingsError(f"class names must differ, but {twice!r} occurs twice")
        if self.image_spec.invert:
            raise SettingsError("models are trained without invert")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise SettingsError(f"{name} must have a value for each of {channels} channels, not {len(values)}")
        if self.profile and len(self.profile.mean) != MEASURES[channels]:
            raise SettingsError(f"a profile of {len(self.profile.mean)} numbers isn't for {channels} channels")

    @property
    def input_size(self) -> int:
        """Features of a time step: the pixels of a row times their channels."""
        return self.image_spec.width * self.image_spec.channels

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def cell_name(self) -> str:
        """The cell for people: `RNN (tanh)`, `GRU`, `bidirectional LSTM`."""
        name = f"RNN ({self.nonlinearity})" if self.cell == "rnn" else self.cell.upper()
        return f"bidirectional {name}" if self.bidirectional else name
