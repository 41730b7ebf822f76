"""Parity without PyTorch: run a model's golden samples, and compare with PyTorch's logits."""

import math

from rnn_runtime.classifier import Classifier
from rnn_runtime.engine import other_provider
from rnn_runtime.errors import Argument, ParityError
from rnn_runtime.model.difference import ATOL, HALF_ATOL, HALF_RTOL, RTOL, Difference
from rnn_runtime.model.file import ModelMetadata


def self_check(classifier: Classifier, *, atol: float | None = None, rtol: float | None = None) -> Difference:
    """Run a model's golden samples on this machine and provider.

    Args:
        classifier: The model to check.
        atol: Absolute tolerance of a logit; None for that of the export on the CPU, and `cuda_tolerance` on CUDA.
        rtol: Tolerance relative to PyTorch's logit; None as for `atol`.

    Returns:
        The difference from the logits stored at export.

    Raises:
        ParityError: the difference is beyond the tolerance.
    """
    golden = classifier.metadata.golden
    usual_atol, usual_rtol = export_tolerance(classifier.metadata)
    if classifier.provider == "cuda":
        usual_atol, usual_rtol = cuda_tolerance(classifier.metadata, tf32=classifier.cuda.tf32)
    atol, rtol = usual_atol if atol is None else atol, usual_rtol if rtol is None else rtol
    difference = Difference.between(classifier.predict_logits(golden.images), golden.logits, atol=atol, rtol=rtol)
    if not difference.within_tolerance:
        raise ParityError(
            f"{classifier.path}: on {classifier.provider}, logits differ from PyTorch's by up to "
            f"{difference.max_absolute:.2e}, more than ",
            Argument("atol", f"{atol:g}"),
            " and ",
            Argument("rtol", f"{rtol:g}"),
            " allow. Don't use this model here: ",
            *other_provider(classifier.provider),
        )
    return difference


def export_tolerance(metadata: ModelMetadata) -> tuple[float, float]:
    """The absolute and relative tolerance of logits that a model was exported with."""
    return float(metadata.parity.get("atol", ATOL)), float(metadata.parity.get("rtol", RTOL))


def cuda_tolerance(metadata: ModelMetadata, *, tf32: bool = False) -> tuple[float, float]:
    """The absolute and relative tolerance of logits on CUDA, whose libraries add the terms of a sum in another order.

    At export, PyTorch's float32 differed from float64 by some e. It sums in blocks, of which each term passes few
    roundings. In any other order, the error of a sum of n terms grows with sqrt(n), if roundings are random (N. Higham
    and T. Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41, 2019). So CUDA may be
    off from float64 by sqrt(n) e, and from PyTorch by (1 + sqrt(n)) e, which is added to the tolerance of the export.
    The longest sums are those of a step: its inputs, its hidden state, and two biases.

    TensorFloat-32 rounds factors to the mantissa of float16, whose tolerance it gets.

    Args:
        metadata: What the export says about the model.
        tf32: Whether it runs with `CudaOptions(tf32=True)`.
    """
    atol, rtol = export_tolerance(metadata)
    spec = metadata.spec
    inputs = max(spec.input_size, spec.hidden_size * spec.num_directions if spec.num_layers > 1 else 0)
    atol += (1 + math.sqrt(inputs + spec.hidden_size + 2)) * _rounding(metadata)
    return (max(atol, HALF_ATOL), max(rtol, HALF_RTOL)) if tf32 else (atol, rtol)


def _rounding(metadata: ModelMetadata) -> float:
    """The largest difference of logits between PyTorch's float32 and float64 at export; 0 if it isn't known."""
    try:
        found = [float(row["pytorch_float64"]["max_absolute"]) for row in metadata.parity["rows"]]
    except (KeyError, TypeError, ValueError):
        return 0.0
    return max((value for value in found if 0 <= value < math.inf), default=0.0)


def describe_self_check(classifier: Classifier, difference: Difference) -> str:
    """Describe the result of `self_check` in one line."""
    samples = len(classifier.metadata.golden.images)
    return (
        f"{classifier.path}: on {classifier.provider}, {samples} golden samples agree with PyTorch: largest difference "
        f"of logits {difference.max_absolute:.1e} (relative {difference.max_relative:.1e}), labels equal "
        f"{100 * difference.equal_labels:.1f} %; checkpoint {classifier.metadata.checkpoint_sha256}"
    )
