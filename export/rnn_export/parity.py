"""Parity: the same images in onnxruntime and in PyTorch, and how much the logits differ."""

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_runtime.engine import create_session
from rnn_runtime.errors import Argument, ParityError
from rnn_runtime.model.difference import ATOL, RTOL, Difference
from rnn_train.model import ImageRNN, predict_logits

if TYPE_CHECKING:
    import onnxruntime

BATCH_SIZES = (1, 2, 3, 7, 64, 257)
_MADE_UP = RANDOM, ALL_0, ALL_255 = "random", "all 0", "all 255"
# Tolerance of probabilities from equal logits: both sides divide and exponentiate in float32.
PROBABILITY_ATOL = 1e-5
MOST_REAL_IMAGES = 10_000  # all of MNIST's test images
# Pixels times channels of all images of a kind, as many as 170 RGB images of 256 x 256 have.
_MOST_VALUES = 1 << 25
# Multiplications of the recurrent net for all images of a kind: those that an LSTM of 128 units takes for 11,500 images
# of 28 x 28.
_MOST_MULTIPLICATIONS = 1 << 36
_LEAST_SIZES = 2  # of batches, however large the images are


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much an exported model may differ from PyTorch.

    Attributes:
        atol: Absolute tolerance of a logit, as in numpy's `allclose`.
        rtol: Relative tolerance of a logit.
        least_equal_labels: Share of real images, 0 to 1, that must get the same label as in PyTorch.
    """

    atol: float = ATOL
    rtol: float = RTOL
    least_equal_labels: float = 0.0


@dataclass(frozen=True, slots=True)
class LabelDifference:
    """An image that gets another label in onnxruntime than in PyTorch.

    Attributes:
        image: Its position among the images, from 0.
        pytorch: Index of PyTorch's class, in float32.
        onnxruntime: Index of onnxruntime's class.
        margin: Difference of the logits of these two classes in float64.
        tie: Whether the margin is within rounding: each of the two logits, in each of the two runs, may differ from
            float64 by as much as PyTorch's float32 does.
    """

    image: int
    pytorch: int
    onnxruntime: int
    margin: float
    tie: bool


@dataclass(frozen=True, slots=True)
class ParityRow:
    """The comparison on one kind of images.

    Attributes:
        images: Their kind: `random`, `all 0`, `all 255`, or the name of real images.
        count: Their number. If the batches need more, they are repeated.
        pytorch: onnxruntime compared with PyTorch in float32.
        float64: onnxruntime compared with PyTorch in float64.
        pytorch_float64: PyTorch in float32 compared with PyTorch in float64. If the exported model differs from float64
            by about as much, the difference is rounding; if by much more, a bug.
        probabilities: Largest absolute difference between the exported model's probabilities and PyTorch's
            `softmax(logits / temperature)` of the exported model's logits.
        label_differences: The real images that get another label in onnxruntime than in PyTorch.
    """

    images: str
    count: int
    pytorch: Difference
    float64: Difference
    pytorch_float64: Difference
    probabilities: float
    label_differences: tuple[LabelDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All comparisons and their tolerances."""

    rows: tuple[ParityRow, ...]
    batch_sizes: tuple[int, ...]
    atol: float
    rtol: float
    least_equal_labels: float

    @property
    def equal_labels(self) -> float:
        """The share of real images that get the same label in onnxruntime and PyTorch."""
        return min(row.pytorch.equal_labels for row in self.rows if row.images not in _MADE_UP)

    @property
    def max_absolute(self) -> float:
        """The largest difference of logits between onnxruntime and PyTorch in float32."""
        return max(row.pytorch.max_absolute for row in self.rows)

    @property
    def max_probabilities(self) -> float:
        """The largest difference of probabilities from PyTorch's softmax; NaN if one is NaN."""
        return float(np.max([row.probabilities for row in self.rows]))

    def to_dict(self) -> dict[str, object]:
        """Plain values for the model's metadata."""
        return asdict(self) | {"max_absolute": self.max_absolute}

    def check(self, output: Path, class_names: tuple[str, ...]) -> None:
        """Check that labels of real images, logits and probabilities are within tolerance.

        Raises:
            ParityError: they aren't; the text says that `output` wasn't written, and how they differ.
        """
        if self.equal_labels < self.least_equal_labels:
            row = max(self.rows, key=lambda row: len(row.label_differences) / row.count)
            first = row.label_differences[0]
            raise ParityError(
                f"{output}: not written. {len(row.label_differences):,} of {row.count:,} {row.images} images have "
                f"another label than in PyTorch, more than {100 * (1 - self.least_equal_labels):g} %. The first is "
                f"image {first.image}: {class_names[first.pytorch]} in PyTorch, {class_names[first.onnxruntime]} in "
                f"onnxruntime; in float64 their logits are {first.margin:.1e} apart. Choose ",
                Argument("precision", "fp32"),
            )
        if not all(row.pytorch.within_tolerance for row in self.rows):
            worst = max(self.rows, key=lambda row: row.pytorch.max_absolute)
            raise ParityError(
                f"{output}: not written. On {worst.images} images, onnxruntime differs from PyTorch by up to "
                f"{worst.pytorch.max_absolute:.2e} (from a float64 run: {worst.float64.max_absolute:.2e}, PyTorch "
                f"itself {worst.pytorch_float64.max_absolute:.2e}), more than ",
                Argument("atol", self.atol),
                " and ",
                Argument("rtol", self.rtol),
                " allow",
            )
        if not self.max_probabilities <= PROBABILITY_ATOL:  # NaN isn't
            raise ParityError(
                f"{output}: not written. Its probabilities differ by up to {self.max_probabilities:.2e} from "
                f"PyTorch's softmax of its logits, more than {PROBABILITY_ATOL:g}. Please report this as a bug"
            )


def most_images(model: ImageRNN) -> int:
    """The number of images of a kind that are compared in seconds: fewer of large ones, at least one."""
    values = math.prod(model.spec.image_spec.shape)
    multiplications = model.spec.image_spec.height * sum(weight.numel() for weight in model.rnn.parameters())
    return max(1, min(MOST_REAL_IMAGES, _MOST_VALUES // values, _MOST_MULTIPLICATIONS // multiplications))


def choose_batch_sizes(images: int) -> tuple[int, ...]:
    """The sizes of `BATCH_SIZES` that so many images fill."""
    totals = itertools.accumulate(BATCH_SIZES)
    fitting = [size for size, total in zip(BATCH_SIZES, totals, strict=True) if total <= images]
    return tuple(fitting) if len(fitting) > _LEAST_SIZES else BATCH_SIZES[:_LEAST_SIZES]


def measure_parity(
    exported: bytes,
    model: ImageRNN,
    real_images: Mapping[str, NDArray[np.uint8]],
    *,
    tolerance: Tolerance,
    temperature: float | None = None,
    progress: Callable[[str], object] | None = None,
) -> ParityReport:
    """Compare an exported model with its network, in batches of exactly several sizes.

    Args:
        exported: The content of an ONNX file.
        model: The network, on the CPU.
        real_images: Images by name, each uint8 `(images, height, width, channels)`. The first `MOST_REAL_IMAGES` are
            used, fewer of large ones, and repeated if the batches need more. Random, all-0 and all-255 images are
            always added.
        tolerance: How much they may differ.
        temperature: The number by which the exported model divides the logits before softmax; None for none.
        progress: Called with a message before each kind of images; None for no messages.
    """
    shape, most = model.spec.image_spec.shape, most_images(model)
    batch_sizes = choose_batch_sizes(most)
    total = sum(batch_sizes)
    images = {name: real[:most] for name, real in real_images.items()} | {
        RANDOM: np.random.default_rng(0).integers(0, 256, (min(total, most), *shape), np.uint8),
        ALL_0: np.zeros((1, *shape), np.uint8),
        ALL_255: np.full((1, *shape), 255, np.uint8),
    }
    session = create_session(exported)
    exact = copy.deepcopy(model).double()
    within = partial(Difference.between, atol=tolerance.atol, rtol=tolerance.rtol)
    rows = []
    for name, different in images.items():
        order = np.resize(np.arange(len(different)), max(total, len(different)))
        count = total if name in (ALL_0, ALL_255) else len(different)
        if progress:
            progress(f"Comparing {count:,} {name} images with PyTorch")
        logits, probabilities = _run_batches(session, different, order, batch_sizes)
        # PyTorch, which is slower, runs each image once: its logits don't depend on the others.
        pytorch, float64 = (predict_logits(network, different)[order] for network in (model, exact))
        softmax = torch.softmax(torch.from_numpy(logits) / (temperature or 1.0), dim=1).numpy()
        row = ParityRow(
            name,
            count,
            within(logits, pytorch),
            within(logits, float64),
            within(pytorch, float64),
            float(np.abs(probabilities - softmax).max()),
        )
        if name in real_images:
            rounding = row.pytorch_float64.max_absolute
            row = replace(row, label_differences=_label_differences(order, logits, pytorch, float64, rounding))
        rows.append(row)
    return ParityReport(tuple(rows), batch_sizes, tolerance.atol, tolerance.rtol, tolerance.least_equal_labels)


def _run_batches(
    session: "onnxruntime.InferenceSession",
    images: NDArray[np.uint8],
    order: NDArray[np.integer],
    batch_sizes: tuple[int, ...],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities of images in this order: a batch of each size, then batches of the largest."""
    total, largest = sum(batch_sizes), max(batch_sizes)
    ends = [*np.cumsum(batch_sizes), *range(total + largest, len(order), largest)]
    batches = [batch for batch in np.split(order, ends) if len(batch)]
    outputs = [session.run(["logits", "probabilities"], {"images": images[batch]}) for batch in batches]
    logits, probabilities = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    return logits, probabilities


def _label_differences(
    order: NDArray[np.integer],
    logits: NDArray[np.floating],
    pytorch: NDArray[np.floating],
    float64: NDArray[np.floating],
    rounding: float,
) -> tuple[LabelDifference, ...]:
    """Each image is listed once, however often it ran."""
    found = {}
    labels, expected = logits.argmax(axis=1), pytorch.argmax(axis=1)
    for row in np.flatnonzero(labels != expected):
        margin = abs(float(float64[row, labels[row]] - float64[row, expected[row]]))
        image = int(order[row])
        found[image] = LabelDifference(image, int(expected[row]), int(labels[row]), margin, margin <= 4 * rounding)
    return tuple(found[image] for image in sorted(found))
