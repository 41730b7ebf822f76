"""What a model is: its cell and sizes, the image it takes and the classes it tells apart.

The three stages share this description: training makes it, the checkpoint and the model file carry it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from rnn_runtime.errors import SettingsError

Cell = Literal["rnn", "gru", "lstm"]
Nonlinearity = Literal["tanh", "relu"]

CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")
NONLINEARITIES: tuple[Nonlinearity, ...] = ("tanh", "relu")
MAX_IMAGE_SIDE = 4096  # pixels; a row is a time step, and nobody trains a recurrent net over more
MAX_HIDDEN_SIZE = 65536
MAX_LAYERS = 64
MAX_CLASSES = 100_000


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The image that a model takes: rows are time steps, a row's pixels and channels its features.

    Raises:
        SettingsError: a side isn't within 1 to `MAX_IMAGE_SIDE`, or channels is neither 1 (gray) nor 3 (RGB).
    """

    height: int
    width: int
    channels: int

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            _check_integer(f"image {name}", side, 1, MAX_IMAGE_SIDE)
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise SettingsError(f"image channels must be 1 (gray) or 3 (RGB), not {self.channels!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.height, self.width, self.channels

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {'gray' if self.channels == 1 else 'RGB'}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that fixes a model but its weights.

    `mean` and `std` normalize pixels that were scaled to 0..1, one value a channel.
    `nonlinearity` is that of the vanilla RNN; GRU and LSTM have their own and ignore it.

    Raises:
        SettingsError: a field has a wrong type, is out of range or doesn't fit another.
    """

    image_spec: ImageSpec
    class_names: tuple[str, ...]
    cell: Cell = "rnn"
    nonlinearity: Nonlinearity = "tanh"
    hidden_size: int = 128
    num_layers: int = 2
    bidirectional: bool = False
    dropout: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise SettingsError(f"cell must be one of {', '.join(CELLS)}, not {self.cell!r}")
        if self.nonlinearity not in NONLINEARITIES:
            raise SettingsError(f"nonlinearity must be one of {', '.join(NONLINEARITIES)}, not {self.nonlinearity!r}")
        _check_integer("hidden_size", self.hidden_size, 1, MAX_HIDDEN_SIZE)
        _check_integer("num_layers", self.num_layers, 1, MAX_LAYERS)
        if type(self.bidirectional) is not bool:
            raise SettingsError(f"bidirectional must be true or false, not {self.bidirectional!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be from 0 up to, not including, 1, not {self.dropout!r}")
        self._check_class_names()
        self._check_normalization()

    def _check_class_names(self) -> None:
        names = self.class_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise SettingsError("class names must be non-empty texts")
        if not 2 <= len(names) <= MAX_CLASSES:
            raise SettingsError(f"a model needs 2 to {MAX_CLASSES} classes, not {len(names)}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SettingsError(f"class names must differ, but {twice!r} stands twice")

    def _check_normalization(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or not all(map(_is_number, values)):
                raise SettingsError(f"{name} must hold finite numbers, not {values!r}")
            if len(values) != self.image_spec.channels:
                raise SettingsError(
                    f"{name} must have a value for each of {self.image_spec.channels} channels, not {len(values)}"
                )
        if min(self.std) <= 0:
            raise SettingsError(f"std must be above 0, not {self.std!r}")

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
        """For people: `RNN (tanh)`, `GRU`, `bidirectional LSTM`."""
        name = f"RNN ({self.nonlinearity})" if self.cell == "rnn" else self.cell.upper()
        return f"bidirectional {name}" if self.bidirectional else name

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for a checkpoint or JSON. `from_dict` takes it back."""
        plain = asdict(self)
        plain = {"image": plain.pop("image_spec"), **plain}  # the name in files
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: object) -> Self:
        """Rebuild a description that `to_dict` made.

        Raises:
            SettingsError: a field is missing, unknown, of a wrong type or out of range.
        """
        if isinstance(plain, Mapping) and "image" in plain:
            plain = {"image_spec" if name == "image" else name: value for name, value in plain.items()}
        values = _exact_fields(cls, plain)
        values["image_spec"] = ImageSpec(**_exact_fields(ImageSpec, values["image_spec"]))
        for name in ("class_names", "mean", "std"):
            if not isinstance(values[name], list | tuple):
                raise SettingsError(f"{name} must be a list, not {type(values[name]).__name__}")
            values[name] = tuple(values[name])
        return cls(**values)


def _exact_fields(cls: type, plain: object) -> dict[str, Any]:
    if not isinstance(plain, Mapping):
        raise SettingsError(f"{cls.__name__} must be a mapping, not {type(plain).__name__}")
    expected = {field.name for field in fields(cls)}
    if set(plain) != expected:
        odd = ", ".join(sorted(map(str, set(plain) ^ expected)))
        raise SettingsError(f"{cls.__name__} has missing or unknown fields: {odd}")
    return dict(plain)


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    # `type() is`, since True would pass as an int
    if type(value) is not int or not least <= value <= most:
        raise SettingsError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
