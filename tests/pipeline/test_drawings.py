"""The kinds of pictures that people send to a digit model: `glyph` brings each to the form of MNIST's images."""

import numpy as np
import pytest

from benchmarks.drawings import KINDS, as_in_mnist, font_signs
from rnn_runtime.images.decode import convert_image
from rnn_runtime.model.spec import ImageSpec

SPEC = ImageSpec(28, 28, 1, fit="glyph")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_picture_becomes_a_digit_as_in_mnist(kind: str) -> None:
    random = np.random.default_rng(0)
    likenesses = []
    for sign, _ in font_signs(20, random):
        found = convert_image(KINDS[kind](sign, random), SPEC).pixels[..., 0]
        likenesses.append(np.corrcoef(found.ravel(), as_in_mnist(sign).ravel())[0, 1])

    assert np.median(likenesses) > 0.8
