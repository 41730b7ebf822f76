"""Runs as on CUDA, in a session on the CPU: all but CUDA itself can be tested anywhere."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_runtime import Classifier
from rnn_runtime.engine import open_session
from rnn_runtime.engine.cuda import CudaRunner
from rnn_runtime.errors import ProviderError


class Watched:
    """A session that notes the batch sizes of its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sizes: list[int] = []
        self.most = 1 << 20  # images for which there is memory

    def run(self, outputs: list[str], inputs: dict[str, NDArray[Any]]) -> Any:
        count = len(inputs["images"])
        self.sizes.append(count)
        if count > self.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 6553600")
        return self._session.run(outputs, inputs)

    def get_outputs(self) -> Any:
        return self._session.get_outputs()


@dataclass
class Numbered:
    """A batch with a number."""

    number: int
    images: NDArray[np.uint8]


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


@pytest.fixture
def session(digits_model: Path) -> Watched:
    return Watched(open_session(digits_model.read_bytes(), "cpu").session)


@pytest.fixture
def runner(session: Any) -> CudaRunner:
    return CudaRunner(session)


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, provider="cpu", threads=1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 64, 257])
def test_a_batch_is_padded_to_a_power_of_two_and_gives_what_the_cpu_gives(
    runner: CudaRunner, session: Watched, classifier: Classifier, size: int
) -> None:
    images = random_images(size)

    logits, probabilities = (runner.run(output, images) for output in ("logits", "probabilities"))

    assert set(session.sizes) <= {1, 2, 4, 8, 64, 512}
    np.testing.assert_allclose(logits, classifier.predict_logits(images), atol=1e-5)
    np.testing.assert_allclose(probabilities, classifier.predict_proba(images), atol=1e-6)


def test_a_batch_beyond_the_largest_is_run_in_parts(
    runner: CudaRunner, session: Watched, classifier: Classifier
) -> None:
    images = random_images(16_384 + 3)

    found = runner.run("logits", images)

    assert session.sizes == [16_384, 4]
    np.testing.assert_allclose(found, classifier.predict_logits(images), atol=1e-5)


def test_a_stream_pairs_each_batch_with_its_result_and_draws_at_most_two_ahead(
    runner: CudaRunner, classifier: Classifier
) -> None:
    drawn: list[int] = []

    def batches() -> Iterator[Numbered]:
        for number, size in enumerate((3, 0, 64, 1, 17)):
            drawn.append(number)
            yield Numbered(number, random_images(size, number))

    for number, (batch, logits) in enumerate(runner.stream("logits", batches())):
        assert batch.number == number
        assert len(drawn) <= number + 2
        np.testing.assert_allclose(logits, classifier.predict_logits(batch.images), atol=1e-5)

    assert drawn == [0, 1, 2, 3, 4]


def test_threads_do_not_mix_their_images(runner: CudaRunner, classifier: Classifier) -> None:
    batches = [random_images(1 + seed % 7, seed) for seed in range(100)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: runner.run("logits", batch), batches))

    for batch, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, classifier.predict_logits(batch), atol=1e-5)


def test_a_run_that_fails_says_where_and_with_how_many_images(runner: CudaRunner, session: Watched) -> None:
    session.most = 100
    problem = "a run of 101 images failed on CUDA device 0: Failed to allocate memory"

    with pytest.raises(ProviderError, match=problem):
        runner.run("logits", random_images(101))
    with pytest.raises(ProviderError, match=problem):
        list(runner.stream("logits", [Numbered(0, random_images(101))]))
    assert runner.run("logits", random_images(100 // 2)).shape == (50, 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("way", ["run", "stream"])
def test_a_forked_process_gets_an_error_instead_of_waiting_forever(runner: CudaRunner, way: str) -> None:
    images = random_images(1)
    runner.run("logits", images)
    receiver, sender = os.pipe()

    child = os.fork()
    if not child:
        try:
            runner.run("logits", images) if way == "run" else list(runner.stream("logits", [Numbered(0, images)]))
        except ProviderError as error:
            os.write(sender, str(error).encode())
        finally:
            os._exit(0)

    os.close(sender)
    os.waitpid(child, 0)
    with os.fdopen(receiver) as told:
        assert told.read() == "CUDA doesn't run in a forked process. Open the classifier in that process instead"
