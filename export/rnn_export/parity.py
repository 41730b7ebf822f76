"""Parity: the same images through onnxruntime and through PyTorch, and how far the logits are apart."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.self_check import ATOL, RTOL, Difference
from rnn_runtime.session import open_session
from rnn_train.model import ImageRNN
from rnn_train.training import predict_logits

BATCH_SIZES = (1, 2, 3, 7, 64, 257)
_MADE_UP = RANDOM, ALL_0, ALL_255 = "random", "all 0", "all 255"
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
        label_differences: For real images, each one to which onnxruntime gives another label than PyTorch.
    """

    images: str
    count: int
    pytorch: Difference
    float64: Difference
    pytorch_float64: Difference
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
        """Whether onnxruntime is within tolerance of PyTorch in float32 everywhere, and its labels on real images."""
        return all(row.pytorch.within_tolerance for row in self.rows) and self.equal_labels >= self.least_equal_labels

    @property
    def equal_labels(self) -> float:
        """The share of real images on which onnxruntime and PyTorch give the same label."""
        return min(row.pytorch.equal_labels for row in self.rows if row.images not in _MADE_UP)

    @property
    def max_absolute(self) -> float:
        """The largest difference of logits between onnxruntime and PyTorch in float32."""
        return max(row.pytorch.max_absolute for row in self.rows)

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
    """
    total = sum(batch_sizes)
    shape = (total, *model.spec.image.shape)
    real_images = {name: real[:MOST_REAL_IMAGES] for name, real in real_images.items()}
    images = {name: np.resize(real, (max(total, len(real)), *shape[1:])) for name, real in real_images.items()} | {
        RANDOM: np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        ALL_0: np.zeros(shape, np.uint8),
        ALL_255: np.full(shape, 255, np.uint8),
    }
    exact = copy.deepcopy(model).double()
    session = open_session(Path(classifier.path).read_bytes(), "cpu").session
    rows = []
    for name, kind in images.items():
        ends = [*np.cumsum(batch_sizes), *range(total + max(batch_sizes), len(kind), max(batch_sizes))]
        batches = [batch for batch in np.split(kind, ends) if len(batch)]
        # The classifier divides batches among threads; the graph itself is to take every size as it is, too.
        whole = np.concatenate([session.run(["logits"], {"images": batch})[0] for batch in batches])
        onnx_logits = np.concatenate([whole, classifier.predict_logits(kind)])
        torch_logits = np.tile(np.concatenate([predict_logits(model, batch) for batch in batches]), (2, 1))
        exact_logits = np.tile(predict_logits(exact, kind), (2, 1))

        def compare(left: NDArray[np.floating], right: NDArray[np.floating]) -> Difference:
            return Difference.between(left, right, atol=atol, rtol=rtol)

        rounding = compare(torch_logits, exact_logits)
        real = name in real_images
        count = len(real_images[name]) if real else total
        rows.append(
            ParityRow(
                name,
                count,
                compare(onnx_logits, torch_logits),
                compare(onnx_logits, exact_logits),
                rounding,
                _find_label_differences(onnx_logits, torch_logits, exact_logits, len(kind), count, rounding)
                if real
                else (),
            )
        )
    return ParityReport(tuple(rows), tuple(batch_sizes), atol, rtol, least_equal_labels)


def _find_label_differences(
    onnx_logits: NDArray[np.floating],
    torch_logits: NDArray[np.floating],
    exact_logits: NDArray[np.floating],
    rows: int,
    count: int,
    rounding: Difference,
) -> tuple[LabelDifference, ...]:
    """Each image once, of `count` that are repeated to `rows`, and these twice."""
    found = {}
    labels, expected = onnx_logits.argmax(axis=1), torch_logits.argmax(axis=1)
    for row in np.flatnonzero(labels != expected):
        image, margin = (
            int(row % rows % count),
            abs(float(exact_logits[row, labels[row]] - exact_logits[row, expected[row]])),
        )
        found[image] = LabelDifference(
            image, int(expected[row]), int(labels[row]), margin, margin <= 4 * rounding.max_absolute
        )
    return tuple(found[image] for image in sorted(found))
