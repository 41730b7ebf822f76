"""How a model is trained: the settings, their ranges, and the presets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from rnn_runtime.errors import SettingsError
from rnn_runtime.model.spec import Cell, Nonlinearity

Dataset = Literal["mnist", "fashion-mnist", "kmnist", "digits"]
DATASETS: tuple[Dataset, ...] = ("mnist", "fashion-mnist", "kmnist", "digits")
Schedule = Literal["constant", "one-cycle"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "one-cycle")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The settings of a training run. The defaults are the article's.

    Attributes:
        cell: `rnn`, `gru` or `lstm`.
        nonlinearity: `tanh` or `relu`, of the vanilla RNN only.
        hidden_size: Width of the hidden state.
        num_layers: Recurrent layers, one upon the other.
        bidirectional: Read the rows upwards as well as downwards.
        dropout: Probability, between layers and before the linear layer.
        epochs: Passes over the training images.
        batch_size: Images an optimizer step.
        learning_rate: Of Adam; the highest one if the schedule changes it.
        schedule: `constant`, or `one-cycle` (torch's `OneCycleLR`: up along a cosine over the first 30 %
            of steps, then down to nothing).
        weight_decay: Decoupled from the gradient, as in AdamW.
        clip_norm: Largest norm of the gradient of all weights together; 0 for any.
        label_smoothing: Share of the target that is spread over all classes.
        normalize: Bring pixels to mean 0 and standard deviation 1 over the training images, by channel.
        shift: Move each training image by up to so many pixels on both axes; what is left bare is 0.
        flip: Mirror half of the training images from left to right; not for writing.
        seed: Of all that is drawn at random.

    Raises:
        SettingsError: a value has a wrong type or is out of range.
    """

    cell: Cell = "rnn"
    nonlinearity: Nonlinearity = "tanh"
    hidden_size: int = 128
    num_layers: int = 2
    bidirectional: bool = False
    dropout: float = 0.0
    epochs: int = 2
    batch_size: int = 100
    learning_rate: float = 0.001
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    normalize: bool = False
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        # The model's own settings are checked by ModelSpec, once the images are known.
        for name, least in (("epochs", 1), ("batch_size", 1), ("shift", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                raise SettingsError(f"{name} must be a whole number from {least} up, not {value!r}")
        ranges = (("dropout", 1), ("weight_decay", math.inf), ("clip_norm", math.inf), ("label_smoothing", 1))
        for name, below in ranges:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < below:
                raise SettingsError(f"{name} must be at least 0 and below {below}, not {value!r}")
        if type(self.learning_rate) not in (int, float) or not 0 < self.learning_rate < math.inf:
            raise SettingsError(f"learning_rate must be above 0, not {self.learning_rate!r}")
        if self.cell in ("gru", "lstm") and self.nonlinearity != "tanh":
            raise SettingsError(f"nonlinearity is for the cell rnn; {self.cell} has its own")
        if self.schedule not in SCHEDULES:
            raise SettingsError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        for name in ("normalize", "flip"):
            if type(getattr(self, name)) is not bool:
                raise SettingsError(f"{name} must be true or false, not {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for a checkpoint. `from_dict` takes it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: object) -> Self:
        """Rebuild settings that `to_dict` made.

        Raises:
            SettingsError: a field is missing, unknown, of a wrong type or out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, Mapping) or set(plain) != names:
            raise SettingsError("the training settings have missing or unknown fields")
        return cls(**plain)


Preset = Literal["article", "accurate"]
PRESETS: tuple[Preset, ...] = ("article", "accurate")


def preset_settings(preset: Preset, dataset: Dataset | None = None) -> TrainSettings:
    """The settings of a preset.

    Args:
        preset: `article`, or `accurate`, which was tuned on Fashion-MNIST (docs/design.md has the figures).
        dataset: The data set's name, if it has one. Clothes may be mirrored; writing may not, and of
            anyone's own images nobody knows.
    """
    if preset == "article":
        return TrainSettings()
    return TrainSettings(
        cell="gru",
        dropout=0.2,
        epochs=20,
        batch_size=128,
        learning_rate=0.004,
        schedule="one-cycle",
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        normalize=True,
        flip=dataset == "fashion-mnist",
    )
