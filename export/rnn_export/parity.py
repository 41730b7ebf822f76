"""Parity: the same images through onnxruntime and through PyTorch, and how far the logits are apart."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.self_check import ATOL, RTOL, Difference
from rnn_train.model import ImageRNN
from rnn_train.training import predict_logits

BATCH_SIZES = (1, 2, 3, 7, 64, 257)
_MADE_UP = RANDOM, ALL_0, ALL_255 = "random", "all 0", "all 255"
MOST_REAL_IMAGES = 10_000  # all of MNIST's test images


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
    """

    images: str
    count: int
    pytorch: Difference
    float64: Difference
    pytorch_float64: Difference


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
    rows = []
    for name, kind in images.items():
        ends = [*np.cumsum(batch_sizes), *range(total + max(batch_sizes), len(kind), max(batch_sizes))]
        batches = [batch for batch in np.split(kind, ends) if len(batch)]
        onnx_logits = np.concatenate([classifier.predict_logits(batch) for batch in batches])
        torch_logits = np.concatenate([predict_logits(model, batch) for batch in batches])
        exact_logits = predict_logits(exact, kind)

        def compare(left: NDArray[np.floating], right: NDArray[np.floating]) -> Difference:
            return Difference.between(left, right, atol=atol, rtol=rtol)

        rows.append(
            ParityRow(
                name,
                len(real_images[name]) if name in real_images else total,
                compare(onnx_logits, torch_logits),
                compare(onnx_logits, exact_logits),
                compare(torch_logits, exact_logits),
            )
        )
    return ParityReport(tuple(rows), tuple(batch_sizes), atol, rtol, least_equal_labels)
