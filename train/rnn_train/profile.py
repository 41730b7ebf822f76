"""What the training images look like, for the profile that a model carries."""

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.images.outliers import Numbers, OutlierDetector, least_deviations, measure
from rnn_runtime.model.spec import ImageProfile
from rnn_train.data import Data

_FEWEST = 20  # training images, of which a covariance can be told
_ENOUGH_HELD_OUT = 200  # images whose outermost half percent is one
_FOLDS = 5
_LIKE = 0.995  # of the held-out images, those that count as like the training images


def fit_profile(data: Data) -> ImageProfile | None:
    """Describe the training images, so that others are told from them.

    The threshold is the distance that 99.5 % of the validation images have at most. With fewer than 200 of these, the
    training images are used, each fifth of them held against the other four. Of fewer than 200 training images, the
    farthest tells little of what others will look like, so the threshold is higher.

    Returns:
        None for fewer than 20 training images.
    """
    images = data.train.images
    if len(images) < _FEWEST:
        return None
    measured = measure(images)
    least = least_deviations(images.shape[3])
    mean, whitening = _fit(measured, least)
    if data.validation and len(data.validation) >= _ENOUGH_HELD_OUT:
        distances = _distances(mean, whitening, measure(data.validation.images))
    else:
        folds = np.array_split(np.random.default_rng(0).permutation(len(measured)), _FOLDS)
        distances = np.concatenate(
            [_distances(*_fit(np.delete(measured, fold, axis=0), least), measured[fold]) for fold in folds]
        )
    return ImageProfile(
        tuple(mean.tolist()),
        tuple(tuple(row) for row in whitening.tolist()),
        float(np.quantile(distances, _LIKE, method="higher")) * max(1.0, _ENOUGH_HELD_OUT / len(distances)),
        None if data.fit == "glyph" else data.aspect_ratios,
    )


def _fit(measured: Numbers, least: NDArray[np.float64]) -> tuple[Numbers, Numbers]:
    """The mean, and the whitening matrix, of which the inverse covariance is the square."""
    covariance = np.cov(measured, rowvar=False) + np.diag(least**2)
    return measured.mean(axis=0), np.linalg.cholesky(np.linalg.inv(covariance))


def _distances(mean: Numbers, whitening: Numbers, measured: Numbers) -> Numbers:
    profile = ImageProfile(tuple(mean.tolist()), tuple(map(tuple, whitening.tolist())), 0.0)
    return OutlierDetector(profile).distances(measured)
