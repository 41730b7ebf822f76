"""Runs between buffers on a device. The CPU is a device too, so all but CUDA graphs can be tested anywhere."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_runtime import Classifier
from rnn_runtime.engine.device_buffers import DeviceBuffers
from rnn_runtime.engine.session import open_session
from rnn_runtime.errors import ProviderError


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


@pytest.fixture
def buffers(digits_model: Path) -> DeviceBuffers:
    return DeviceBuffers(open_session(digits_model.read_bytes(), "cpu").session, 10, "cpu")


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, provider="cpu", threads=1)


def test_buffered_runs_give_what_plain_runs_give(buffers: DeviceBuffers, classifier: Classifier) -> None:
    # more batch sizes than have buffers of their own, each twice, with other images the second time
    for seed, size in enumerate([*range(1, 12), *range(1, 12)]):
        images = random_images(size, seed)
        assert np.array_equal(buffers.run("logits", images), classifier.predict_logits(images))
        assert np.array_equal(buffers.run("probabilities", images), classifier.predict_proba(images))


def test_a_result_stays_when_its_buffer_is_used_again(buffers: DeviceBuffers) -> None:
    first = buffers.run("logits", random_images(3, 1))
    copy = first.copy()

    buffers.run("logits", random_images(3, 2))

    assert np.array_equal(first, copy)


def test_threads_do_not_mix_their_images(buffers: DeviceBuffers, classifier: Classifier) -> None:
    batches = [random_images(4, seed) for seed in range(60)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: buffers.run("logits", batch), batches))

    for batch, logits in zip(batches, found, strict=True):
        assert np.array_equal(logits, classifier.predict_logits(batch))


def test_a_run_that_fails_says_where_and_with_how_many_images(buffers: DeviceBuffers) -> None:
    with pytest.raises(ProviderError, match=r"a run of 3 images failed on the device cpu:0: .*Got: 9 Expected: 8"):
        buffers.run("logits", np.zeros((3, 9, 9, 1), np.uint8))
