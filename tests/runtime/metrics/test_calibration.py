"""The expected calibration error, by its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.metrics.evaluation import BINS, CalibrationBins


@given(st.lists(st.tuples(st.integers(0, 1000).map(lambda n: n / 1000), st.booleans()), min_size=1))
def test_error_is_the_weighted_gap_between_confidence_and_accuracy(pairs: list[tuple[float, bool]]) -> None:
    bins = CalibrationBins()
    for confidence, right in pairs:
        bins.add(confidence, right)

    confidences, correct = (np.array(values) for values in zip(*pairs, strict=True))
    expected = 0.0
    for i in range(BINS):  # Guo et al., equations 2 and 3
        inside = (confidences > i / BINS) & (confidences <= (i + 1) / BINS) | (i == 0) & (confidences == 0)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    assert bins.error == pytest.approx(expected)
    assert sum(bins.counts) == len(pairs)


@pytest.mark.parametrize(("right", "error"), [(8, 0.0), (10, 0.2), (3, 0.5)])
def test_confidence_of_80_percent_is_calibrated_if_8_of_10_are_right(right: int, error: float) -> None:
    bins = CalibrationBins()
    for i in range(10):
        bins.add(0.8, i < right)

    assert bins.error == pytest.approx(error, abs=1e-12)


def test_without_predictions_the_error_is_not_a_number() -> None:
    assert math.isnan(CalibrationBins().error)


def test_bins_of_probabilities_count_the_likeliest_class() -> None:
    bins = CalibrationBins.of(np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]], np.float32), np.array([0, 1, 0]))

    assert (sum(bins.counts), sum(bins.correct)) == (3, 2)
    assert sum(bins.confidences) == pytest.approx(2.4)
