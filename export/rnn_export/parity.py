"""Parity: the same images through onnxruntime and through PyTorch, and how far the logits are apart."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.engine.session import open_session
from rnn_runtime.model.difference import ATOL, RTOL, Difference
from rnn_train.model import ImageRNN, predict_logits

BATCH_SIZES = (1, 2, 3, 7, 64, 257)
_MADE_UP = RANDOM, ALL_0, ALL_255 = "random", "all 0", "all 255"
# Of probabilities from equal logits: both sides divide and exponentiate in float32.
PROBABILITY_ATOL = 1e-5
MOST_REAL_IMAGES = 10_000  # all of MNIST's test images


@dataclass(frozen=True, slots=True)
class LabelDifference:
    """An image to which onnxruntime gives another label than PyTorch.

    Attributes:
        image: Its place among the images, from 0.
        pytorch: The class that PyTorch gives in float32, an index.
        onnxruntime: The class that onnxruntime gives.
        margin: How far the logits of these two classes are apart in float64.
        tie: Whether that is within what float32 can tell: each of the two logits may be off, in either of the two
            runs, by as much as PyTorch's float32 is off float64.
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
        images: What they are: `random`, `all 0`, `all 255`, or a name given to real ones.
        count: How many; where they are fewer than the batches take, they are repeated.
        pytorch: onnxruntime against PyTorch in float32.
        float64: onnxruntime against PyTorch in float64.
        pytorch_float64: PyTorch in float32 against PyTorch in float64. Where the exported model is about as
            far from float64 as this, the difference is rounding; where it is much farther, a bug.
        probabilities: The largest absolute difference of the exported model's probabilities from PyTorch's
            `softmax(logits / temperature)` of the logits that the exported model gave.
        label_differences: For real images, each one to which onnxruntime gives another label than PyTorch.
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
    """All comparisons, and the tolerances they were held to."""

    rows: tuple[ParityRow, ...]
    batch_sizes: tuple[int, ...]
    atol: float
    rtol: float
    least_equal_labels: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether logits and probabilities are within tolerance everywhere, and labels are on real images."""
        return (
            self.logits_within_tolerance
            and self.max_probabilities <= PROBABILITY_ATOL
            and self.equal_labels >= self.least_equal_labels
        )

    @property
    def logits_within_tolerance(self) -> bool:
        """Whether the logits of onnxruntime are within tolerance of PyTorch's in float32 everywhere."""
        return all(row.pytorch.within_tolerance for row in self.rows)

    @property
    def equal_labels(self) -> float:
        """The share of real images on which onnxruntime and PyTorch give the same label."""
        return min(row.pytorch.equal_labels for row in self.rows if row.images not in _MADE_UP)

    @property
    def max_absolute(self) -> float:
        """The largest difference of logits between onnxruntime and PyTorch in float32."""
        return max(row.pytorch.max_absolute for row in self.rows)

    @property
    def max_probabilities(self) -> float:
        """The largest difference of probabilities from PyTorch's softmax, not a number if one isn't."""
        return float(np.max([row.probabilities for row in self.rows]))

    def to_dict(self) -> dict[str, object]:
        """Plain values for the model's metadata."""
        return asdict(self) | {"max_absolute": self.max_absolute}


def measure_parity(
    classifier: Classifier,
    model: ImageRNN,
    real_images: Mapping[str, NDArray[np.uint8]],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    atol: float = ATOL,
    rtol: float = RTOL,
    least_equal_labels: float = 0.0,
    temperature: float | None = None,
) -> ParityReport:
    """Compare an exported model with the network it came from, at several batch sizes.

    All images go twice through the model: in batches of just these sizes through an onnxruntime session, and through
    the classifier, which divides what it gets as it sees fit.

    Args:
        classifier: The exported model.
        model: The network, on the CPU, in evaluation mode.
        real_images: Images by what to call them, each uint8 `(images, height, width, channels)`; the first
            `MOST_REAL_IMAGES` are taken, repeated where batches take more. Random, all-0 and all-255 images are
            always added.
        batch_sizes: Sizes of the batches that go through at once; what is left of real images goes in more of the
            largest.
        atol: Absolute tolerance of a logit.
        rtol: Tolerance relative to PyTorch's logit.
        least_equal_labels: Share of real images, 0 to 1, that must get the label that PyTorch gives.
        temperature: What the exported model divides logits by before softmax; None for nothing.
    """
    total = sum(batch_sizes)
    shape = (total, *model.spec.image_spec.shape)
    real_images = {name: real[:MOST_REAL_IMAGES] for name, real in real_images.items()}
    images = {name: np.resize(real, (max(total, len(real)), *shape[1:])) for name, real in real_images.items()} | {
        RANDOM: np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        ALL_0: np.zeros(shape, np.uint8),
        ALL_255: np.full(shape, 255, np.uint8),
    }
    networks = _Networks(classifier, model, batch_sizes, temperature)
    rows = []
    for name, kind in images.items():
        real = real_images.get(name)
        count = total if real is None else len(real)
        rows.append(_compare(name, count, networks.run(kind), real is not None, atol, rtol))
    return ParityReport(tuple(rows), tuple(batch_sizes), atol, rtol, least_equal_labels)


@dataclass(frozen=True, slots=True)
class _Logits:
    """Of the same images, in one order: each twice, since the exported model runs them in two ways.

    `probabilities` is the largest difference of probabilities, as in `ParityRow`.
    """

    onnxruntime: NDArray[np.floating]
    pytorch: NDArray[np.floating]
    float64: NDArray[np.floating]
    probabilities: float


class _Networks:
    """The exported model, and the network it came from in float32 and float64."""

    def __init__(
        self, classifier: Classifier, model: ImageRNN, batch_sizes: Sequence[int], temperature: float | None
    ) -> None:
        self._classifier, self._model, self._batch_sizes = classifier, model, batch_sizes
        self._temperature = 1.0 if temperature is None else temperature
        self._session = open_session(Path(classifier.path).read_bytes(), "cpu").session
        self._exact = copy.deepcopy(model).double()

    def run(self, images: NDArray[np.uint8]) -> _Logits:
        largest = max(self._batch_sizes)
        ends = [*np.cumsum(self._batch_sizes), *range(sum(self._batch_sizes) + largest, len(images), largest)]
        batches = [batch for batch in np.split(images, ends) if len(batch)]
        # The classifier divides batches among threads; the graph itself is to take every size as it is, too.
        outputs = [self._session.run(["logits", "probabilities"], {"images": batch}) for batch in batches]
        whole, probabilities = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        pytorch = np.concatenate([predict_logits(self._model, batch) for batch in batches])
        return _Logits(
            np.concatenate([whole, self._classifier.predict_logits(images)]),
            np.tile(pytorch, (2, 1)),
            np.tile(predict_logits(self._exact, images), (2, 1)),
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
        _find_label_differences(logits, count, rounding.max_absolute) if real else (),
    )


def _find_label_differences(logits: _Logits, count: int, rounding: float) -> tuple[LabelDifference, ...]:
    """Each image once, of `count` that were repeated to fill the batches, and each of these twice."""
    found = {}
    labels, expected = logits.onnxruntime.argmax(axis=1), logits.pytorch.argmax(axis=1)
    for row in np.flatnonzero(labels != expected):
        image = int(row % (len(labels) // 2) % count)
        margin = abs(float(logits.float64[row, labels[row]] - logits.float64[row, expected[row]]))
        found[image] = LabelDifference(image, int(expected[row]), int(labels[row]), margin, margin <= 4 * rounding)
    return tuple(found[image] for image in sorted(found))
