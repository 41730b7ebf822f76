"""Parity without PyTorch: a model's golden samples, run again here and compared with PyTorch's logits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import ParityError

ATOL = 1e-5
RTOL = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """How far logits are from those of a reference.

    `within_tolerance` is numpy's rule for each pair: `|actual - reference| <= atol + rtol * |reference|`.
    """

    max_absolute: float
    max_relative: float
    equal_labels: float
    within_tolerance: bool

    @classmethod
    def between(
        cls,
        actual: NDArray[np.floating],
        reference: NDArray[np.floating],
        *,
        atol: float = ATOL,
        rtol: float = RTOL,
    ) -> "Difference":
        """Compare logits of shape `(batch, classes)`, in float64; a value that isn't finite is beyond tolerance."""
        left, right = actual.astype(np.float64), reference.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite less infinite is not a number, which is found below
            absolute = np.abs(left - right)
        # Relative to the image's largest logit: a single logit may be next to 0, where the quotient says nothing.
        scale = np.maximum(np.abs(right).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return cls(
            max_absolute=float(absolute.max()),
            max_relative=float((absolute / scale).max()),
            equal_labels=float((left.argmax(axis=1) == right.argmax(axis=1)).mean()),
            within_tolerance=bool(np.isfinite(left).all() and np.allclose(left, right, rtol=rtol, atol=atol)),
        )


def self_check(classifier: Classifier, *, atol: float | None = None, rtol: float | None = None) -> Difference:
    """Replay a model's golden samples on this machine and provider.

    Args:
        classifier: The model to check.
        atol: Absolute tolerance of a logit; None for the one that the model was held to when it was exported.
        rtol: Tolerance relative to the logit that PyTorch gave; None likewise.

    Returns:
        The difference from the logits stored at export.

    Raises:
        ParityError: it is beyond the tolerance.
    """
    golden, parity = classifier.metadata.golden, classifier.metadata.parity
    atol = float(parity.get("atol", ATOL)) if atol is None else atol
    rtol = float(parity.get("rtol", RTOL)) if rtol is None else rtol
    difference = Difference.between(classifier.predict_logits(golden.images), golden.logits, atol=atol, rtol=rtol)
    if not difference.within_tolerance:
        raise ParityError(
            f"{classifier.path}: on {classifier.provider}, logits differ from PyTorch's by up to "
            f"{difference.max_absolute:.2e}, more than --atol {atol:g} and --rtol {rtol:g} allow; "
            f"don't use this model here: {'export it again' if classifier.provider == 'cpu' else 'try --provider cpu'}"
        )
    return difference
