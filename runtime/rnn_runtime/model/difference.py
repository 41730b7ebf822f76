"""The difference between two runs of a model, and its tolerances."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.model.values import FromZero, check_argument

ATOL = 1e-5
RTOL = 1e-4
# Where factors have 11 bits of mantissa, as in float16 and TensorFloat-32; float32 has 24.
HALF_ATOL = 5e-2
HALF_RTOL = 1e-2


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of logits from those of a reference.

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
        """Compare logits of shape `(batch, classes)` in float64. A value that isn't finite is beyond tolerance.

        Raises:
            SettingsError: a tolerance is negative or not a finite number.
        """
        check_argument("atol", atol, FromZero)
        check_argument("rtol", rtol, FromZero)
        left, right = actual.astype(np.float64), reference.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which is found below
            absolute = np.abs(left - right)
        # Relative to the image's largest logit: for a logit near 0, the quotient would mean nothing.
        scale = np.maximum(np.abs(right).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return cls(
            max_absolute=float(absolute.max()),
            max_relative=float((absolute / scale).max()),
            equal_labels=float((left.argmax(axis=1) == right.argmax(axis=1)).mean()),
            within_tolerance=bool(np.isfinite(left).all() and np.allclose(left, right, rtol=rtol, atol=atol)),
        )
