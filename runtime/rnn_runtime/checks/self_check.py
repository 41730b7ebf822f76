"""Parity without PyTorch: run a model's golden samples, and compare with PyTorch's logits."""

from rnn_runtime.classifier import Classifier
from rnn_runtime.engine.session import other_provider
from rnn_runtime.errors import ParityError
from rnn_runtime.model.difference import ATOL, RTOL, Difference


def self_check(classifier: Classifier, *, atol: float | None = None, rtol: float | None = None) -> Difference:
    """Run a model's golden samples on this machine and provider.

    Args:
        classifier: The model to check.
        atol: Absolute tolerance of a logit; None for that of the export.
        rtol: Tolerance relative to PyTorch's logit; None for that of the export.

    Returns:
        The difference from the logits stored at export.

    Raises:
        ParityError: the difference is beyond the tolerance.
    """
    golden, parity = classifier.metadata.golden, classifier.metadata.parity
    atol = float(parity.get("atol", ATOL)) if atol is None else atol
    rtol = float(parity.get("rtol", RTOL)) if rtol is None else rtol
    difference = Difference.between(classifier.predict_logits(golden.images), golden.logits, atol=atol, rtol=rtol)
    if not difference.within_tolerance:
        raise ParityError(
            f"{classifier.path}: on {classifier.provider}, logits differ from PyTorch's by up to "
            f"{difference.max_absolute:.2e}, more than `atol={atol:g}` and `rtol={rtol:g}` allow. "
            f"Don't use this model here: {other_provider(classifier.provider)}"
        )
    return difference


def describe_self_check(classifier: Classifier, difference: Difference) -> str:
    """Describe the result of `self_check` in one line."""
    samples = len(classifier.metadata.golden.images)
    return (
        f"{classifier.path}: on {classifier.provider}, {samples} golden samples agree with PyTorch: largest difference "
        f"of logits {difference.max_absolute:.1e} (relative {difference.max_relative:.1e}), labels equal "
        f"{100 * difference.equal_labels:.1f} %; checkpoint {classifier.metadata.checkpoint_sha256}"
    )
