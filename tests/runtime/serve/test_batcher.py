"""Requests become batches."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_runtime import Classifier
from rnn_runtime.errors import ModelError
from rnn_runtime.serve.batcher import Batcher

DARK = 13  # the value of pixels that a `FragileClassifier` can't take


class SlowClassifier(Classifier):
    """Its first run waits until `go_on` is set."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, "cpu", threads=1)
        self.go_on = threading.Event()

    def predict_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.go_on.wait(60)
        return super().predict_logits(images)


class FragileClassifier(Classifier):
    """It fails for batches with a dark image."""

    def predict_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (images == DARK).all(axis=(1, 2, 3)).any():
            raise ModelError("its logits are not finite")
        return super().predict_logits(images)


def random_images(seed: int, count: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def test_what_waits_while_the_model_runs_is_the_next_batch(digits_model: Path) -> None:
    batches: list[int] = []
    classifier = SlowClassifier(digits_model)

    async def ask() -> list[Any]:
        batcher = Batcher(classifier, 8, batches.append)
        first = asyncio.create_task(batcher.run(random_images(0), ["logits"]))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.run(random_images(i, i), ["logits"])) for i in range(1, 6)]
        await asyncio.sleep(0.01)
        classifier.go_on.set()
        return await asyncio.gather(first, *others)

    results = asyncio.run(ask())

    assert batches == [1, 6, 4, 5]  # of 1, 1 + 2 + 3, 4 and 5 images: at most 8 at once
    for i, result in enumerate(results):
        expected = classifier.predict_logits(random_images(i, max(i, 1)))
        np.testing.assert_allclose(result.values["logits"], expected, rtol=0, atol=1e-5)


def test_each_request_gets_the_outputs_that_it_asked_for(digits_model: Path) -> None:
    classifier = Classifier(digits_model, "cpu", threads=1)

    async def ask() -> list[Any]:
        batcher = Batcher(classifier, 8, lambda _: None)
        asked = (["logits"], ["probabilities"], ["logits", "probabilities"])
        return await asyncio.gather(*(batcher.run(random_images(0), outputs) for outputs in asked))

    results = asyncio.run(ask())

    assert [set(result.values) for result in results] == [{"logits"}, {"probabilities"}, {"logits", "probabilities"}]


def test_an_image_that_fails_fails_alone(digits_model: Path) -> None:
    classifier = FragileClassifier(digits_model, "cpu", threads=1)
    asked = [random_images(0), np.full((1, 8, 8, 1), DARK, np.uint8), random_images(1)]

    async def ask() -> list[Any]:
        batcher = Batcher(classifier, 8, lambda _: None)
        runs = (batcher.run(images, ["logits"]) for images in asked)
        return await asyncio.gather(*runs, return_exceptions=True)

    first, dark, last = asyncio.run(ask())

    assert isinstance(dark, ModelError)
    assert first.values["logits"].shape == last.values["logits"].shape == (1, 10)


def test_a_request_whose_client_has_gone_is_not_run(digits_model: Path) -> None:
    batches: list[int] = []
    classifier = SlowClassifier(digits_model)

    async def ask() -> Any:
        batcher = Batcher(classifier, 8, batches.append)
        first = asyncio.create_task(batcher.run(random_images(0), ["logits"]))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.run(random_images(1, 3), ["logits"]))
        last = asyncio.create_task(batcher.run(random_images(2, 2), ["logits"]))
        await asyncio.sleep(0.01)
        gone.cancel()
        classifier.go_on.set()
        await asyncio.gather(first, last)
        return gone.cancelled()

    assert asyncio.run(ask())
    assert batches == [1, 2]


@pytest.mark.parametrize("error", [ValueError("a bug"), MemoryError()])
def test_nobody_waits_forever_after_a_bug(
    digits_model: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(digits_model, "cpu", threads=1)

    def fail(_: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise error

    monkeypatch.setattr(classifier, "predict_logits", fail)

    async def ask() -> Any:
        batcher = Batcher(classifier, 8, lambda _: None)
        return await asyncio.gather(batcher.run(random_images(0), ["logits"]), return_exceptions=True)

    assert asyncio.run(ask()) == [error]
