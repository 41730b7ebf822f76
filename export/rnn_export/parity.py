"""Parity: the same images in onnxruntime and in PyTorch, and how much the logits differ."""

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.engine import open_session
from rnn_runtime.model.difference import ATOL, RTOL, Difference
from rnn_train.model import ImageRNN, predict_logits

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
    least_equal_labels: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether logits, probabilities and the labels of real images are within tolerance."""
        return (
            self.logits_within_tolerance
            and self.max_probabilities <= PROBABILITY_ATOL
            and self.equal_labels >= self.least_equal_labels
        )

    @property
    def logits_within_tolerance(self) -> bool:
        """Whether all logits of onnxruntime are within tolerance of PyTorch's in float32."""
        return all(row.pytorch.within_tolerance for row in self.rows)

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
    classifier: Classifier,
    model: ImageRNN,
    real_images: Mapping[str, NDArray[np.uint8]],
    *,
    atol: float = ATOL,
    rtol: float = RTOL,
    least_equal_labels: float = 0.0,
    temperature: float | None = None,
    progress: Callable[[str], object] = str,
) -> ParityReport:
    """Compare an exported model with its network, at several batch sizes.

    The model runs all images twice: in batches of exactly these sizes in an onnxruntime session, and in the classifier,
    which divides batches among threads.

    Args:
        classifier: The exported model.
        model: The network, on the CPU, in evaluation mode.
        real_images: Images by name, each uint8 `(images, height, width, channels)`. The first `MOST_REAL_IMAGES` are
            used, fewer of large ones, and repeated if the batches need more. Random, all-0 and all-255 images are
            always added.
        atol: Absolute tolerance of a logit.
        rtol: Tolerance relative to PyTorch's logit.
        least_equal_labels: Share of real images, 0 to 1, that must get the same label as in PyTorch.
        temperature: The number by which the exported model divides the logits before softmax; None for none.
        progress: Called with a text for people before each kind of images.
    """
    shape, most = model.spec.image_spec.shape, most_images(model)
    batch_sizes = choose_batch_sizes(most)
    total = sum(batch_sizes)
    real_images = {name: real[:most] for name, real in real_images.items()}
    images = dict(real_images) | {
        RANDOM: np.random.default_rng(0).integers(0, 256, (min(total, most), *shape), np.uint8),
        ALL_0: np.zeros((1, *shape), np.uint8),
        ALL_255: np.full((1, *shape), 255, np.uint8),
    }
    networks = _Networks(classifier, model, batch_sizes, temperature)
    rows = []
    for name, kind in images.items():
        is_real = name in real_images
        count = total if name in (ALL_0, ALL_255) else len(kind)
        progress(f"Comparing {count:,} {name} images with PyTorch")
        rows.append(_compare(name, count, networks.run(kind), is_real, atol, rtol))
    return ParityReport(tuple(rows), batch_sizes, atol, rtol, least_equal_labels)


@dataclass(frozen=True, slots=True)
class _Logits:
    """A row of logits per image and run: the exported model runs images in two ways, and some several times.

    `images` says which image a row is of. `probabilities` is the largest difference of probabilities, as in
    `ParityRow`.
    """

    images: NDArray[np.integer]
    onnxruntime: NDArray[np.floating]
    pytorch: NDArray[np.floating]
    float64: NDArray[np.floating]
    probabilities: float


class _Networks:
    """The exported model, and its network in float32 and float64."""

    def __init__(
        self, classifier: Classifier, model: ImageRNN, batch_sizes: Sequence[int], temperature: float | None
    ) -> None:
        self._classifier, self._model, self._batch_sizes = classifier, model, batch_sizes
        self._temperature = 1.0 if temperature is None else temperature
        self._session = open_session(Path(classifier.path).read_bytes(), "cpu").session
        self._exact = copy.deepcopy(model).double()

    def run(self, different: NDArray[np.uint8]) -> _Logits:
        """Run images, which are repeated if the batches need more."""
        total, largest = sum(self._batch_sizes), max(self._batch_sizes)
        order = np.resize(np.arange(len(different)), max(total, len(different)))
        ends = [*np.cumsum(self._batch_sizes), *range(total + largest, len(order), largest)]
        batches = [batch for batch in np.split(order, ends) if len(batch)]
        # The classifier divides batches among threads. The session shows that the graph itself takes every size.
        outputs = [self._session.run(["logits", "probabilities"], {"images": different[batch]}) for batch in batches]
        whole, probabilities = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        divided = order[: most_images(self._model)]
        # PyTorch, which is slower, runs each image once: its logits don't depend on the others.
        pytorch, exact = (predict_logits(net, different) for net in (self._model, self._exact))
        rows = np.concatenate([order, divided])
        return _Logits(
            rows,
            np.concatenate([whole, self._classifier.predict_logits(different[divided])]),
            pytorch[rows],
            exact[rows],
            self._compare_probabilities(probabilities, whole),
        )

    def _compare_probabilities(self, probabilities: NDArray[np.floating], logits: NDArray[np.floating]) -> float:
        expected = torch.softmax(torch.from_numpy(logits) / self._temperature, dim=1).numpy()
        return float(np.abs(probabilities - expected).max())


def _compare(name: str, count: int, logits: _Logits, real: bool, atol: float, rtol: float) -> ParityRow:
    def between(left: NDArray[np.floating], right: NDArray[np.floating]) -> Difference:
        return Difference.between(left, right, atol=atol, rtol=rtol)

    rounding = between(logits.pytorch, logits.float64)
    return ParityRow(
        name,
        count,
        between(logits.onnxruntime, logits.pytorch),
        between(logits.onnxruntime, logits.float64),
        rounding,
        logits.probabilities,
        _find_label_differences(logits, rounding.max_absolute) if real else (),
    )


def _find_label_differences(logits: _Logits, rounding: float) -> tuple[LabelDifference, ...]:
    """Each image is listed once, however often it ran."""
    found = {}
    labels, expected = logits.onnxruntime.argmax(axis=1), logits.pytorch.argmax(axis=1)
    for row in np.flatnonzero(labels != expected):
        image = int(logits.images[row])
        margin = abs(float(logits.float64[row, labels[row]] - logits.float64[row, expected[row]]))
        found[image] = LabelDifference(image, int(expected[row]), int(labels[row]), margin, margin <= 4 * rounding)
    return tuple(found[image] for image in sorted(found))
