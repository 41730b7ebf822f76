"""The settings of a training run, their ranges, and the presets."""

from dataclasses import dataclass
from typing import Literal, get_args

from rnn_runtime.errors import Argument, SettingsError
from rnn_runtime.model.spec import Cell, HiddenSize, Layers, Nonlinearity
from rnn_runtime.model.values import Count, CountFromZero, FromZero, PlainFields, Positive, Share, check_fields

Dataset = Literal[
    "mnist",
    "fashion-mnist",
    "kmnist",
    "emnist-balanced",
    "emnist-letters",
    "emnist-digits",
    "emnist-mnist",
    "emnist-bymerge",
    "emnist-byclass",
    "digits",
]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
EMNIST: tuple[Dataset, ...] = tuple(name for name in DATASETS if name.startswith("emnist-"))
Schedule = Literal["constant", "one-cycle"]
ClassWeights = Literal["none", "balanced"]
AugmentPart = Literal["rotation", "scale", "crop", "color", "invert", "blur"]
AUGMENT_PARTS: tuple[AugmentPart, ...] = get_args(AugmentPart)


@dataclass(frozen=True, slots=True)
class TrainSettings(PlainFields):
    """The settings of a training run. The defaults are the article's.

    Attributes:
        cell: `rnn`, `gru` or `lstm`.
        nonlinearity: `tanh` or `relu`, for `rnn` only.
        hidden_size: Width of the hidden state.
        num_layers: Number of stacked recurrent layers.
        bidirectional: Read the rows from bottom to top as well.
        dropout: Probability of dropout between layers and before the linear layer.
        epochs: Passes over the training images.
        patience: Stop after this many epochs without a higher validation accuracy; 0 to train all epochs. For the
            constant schedule only: `one-cycle` lowers the learning rate in the last epochs of its plan, and these
            bring the largest gain.
        batch_size: Images per optimizer step.
        learning_rate: Of Adam; the highest one if the schedule changes it.
        schedule: `constant`, or `one-cycle` (torch's `OneCycleLR`: up along a cosine over the first 30 %
            of steps, then down to almost 0).
        weight_decay: Decoupled from the gradient, as in AdamW.
        clip_norm: Largest norm of the gradient of all weights together; 0 for no limit.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: `none`, or `balanced`: the loss of an image of a class with `count` of the `n` training images
            counts `n / (classes * count)` times, so that each class counts the same
            (scikit-learn's `compute_class_weight`). Validation loss and accuracy stay unweighted.
        amp: Compute each step's logits in bfloat16 where that is accurate enough (torch's autocast); for CUDA. Weights,
            optimizer, loss and evaluation stay float32.
        normalize: Bring pixels to mean 0 and standard deviation 1 over the training images, per channel.
        shift: Move each training image by up to this many pixels on both axes; uncovered pixels become 0.
        flip: Mirror half of the training images from left to right; not for writing.
        augment: How each training image is changed at random. `rotation`: by up to 10 degrees. `scale`: by a factor of
            0.8 to 1.25. `crop`: to 60 to 100 % of its area, for photos; it cuts characters off. `color`: brightness,
            contrast and saturation by up to 30 %. `invert`: light and dark of every second image. `blur`: by a Gaussian
            with a standard deviation of up to 1 pixel.
        calibrate: With validation images, fit a temperature at the end, which makes the probabilities of the exported
            model mean what they say (`rnn_train.evaluation`).
        seed: Seed of all random numbers.

    Raises:
        SettingsError: a value has a wrong type or is out of range.
    """

    cell: Cell = "rnn"
    nonlinearity: Nonlinearity = "tanh"
    hidden_size: HiddenSize = 128
    num_layers: Layers = 2
    bidirectional: bool = False
    dropout: Share = 0.0
    epochs: Count = 2
    patience: CountFromZero = 0
    batch_size: Count = 100
    learning_rate: Positive = 0.001
    schedule: Schedule = "constant"
    weight_decay: FromZero = 0.0
    clip_norm: FromZero = 0.0
    label_smoothing: Share = 0.0
    class_weights: ClassWeights = "none"
    amp: bool = False
    normalize: bool = False
    shift: CountFromZero = 0
    flip: bool = False
    augment: tuple[AugmentPart, ...] = ()
    calibrate: bool = True
    seed: CountFromZero = 0

    def __post_init__(self) -> None:
        check_fields(self)
        # in one order, so that two lists of the same parts are the same settings
        object.__setattr__(self, "augment", tuple(part for part in AUGMENT_PARTS if part in self.augment))
        if self.cell in ("gru", "lstm") and self.nonlinearity != "tanh":
            raise SettingsError(Argument("nonlinearity"), f" is only for the cell rnn, not {self.cell}. Leave it out")
        if self.patience and self.schedule == "one-cycle":
            raise SettingsError(
                Argument("patience"),
                " would end a one-cycle run before its learning rate falls, and with it most of the gain. Choose ",
                Argument("schedule", "constant"),
                ", or leave out ",
                Argument("patience"),
            )


Preset = Literal["article", "accurate"]
PRESETS: tuple[Preset, ...] = ("article", "accurate")


def preset_settings(preset: Preset, dataset: Dataset | None = None) -> TrainSettings:
    """The settings of a preset.

    Args:
        preset: `article`, or `accurate`, which was tuned on Fashion-MNIST (docs/explanation/measurements.md has the
            figures).
        dataset: The data set's name, if it has one. `accurate` mirrors images of Fashion-MNIST only: mirrored digits
            would be wrong, and of other images it isn't known.
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
