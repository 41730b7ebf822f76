"""Runs on a device. The CPU is a device too, so all but CUDA itself can be tested anywhere."""

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_runtime import Classifier
from rnn_runtime.engine.buckets import LARGEST
from rnn_runtime.engine.cuda_runner import CudaRunner
from rnn_runtime.engine.session import open_session
from rnn_runtime.errors import ProviderError


class Watched:
    """A session that notes the batch sizes of its runs, and fails captures from a batch size on."""

    def __init__(self, session: Any, fails_from: int | None = None) -> None:
        self._session, self._fails_from = session, fails_from
        self.plain: list[int] = []
        self.addresses: list[int] = []  # of the images of plain runs
        self.replayed: list[int] = []
        self.bound = 0  # sets of buffers, one per capture
        self.most = LARGEST  # images for which there is memory

    def run(self, outputs: list[str], inputs: dict[str, NDArray[Any]], options: Any) -> Any:
        self.plain.append(len(inputs["images"]))
        self.addresses.append(inputs["images"].ctypes.data)
        self._check_memory(len(inputs["images"]))
        return self._session.run(outputs, inputs, options)

    def io_binding(self) -> Any:
        self.bound += 1
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        (size, *_) = binding.get_outputs()[0].shape()
        self.replayed.append(size)
        self._check_memory(size)
        if self._fails_from is not None and size >= self._fails_from:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing ; GPU=0")
        self._session.run_with_iobinding(binding, options)

    def _check_memory(self, images: int) -> None:
        if images > self.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 6553600")


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def make_runner(model: Path, *, graph: bool = False, fails_from: int | None = None) -> tuple[CudaRunner, Watched]:
    session = Watched(open_session(model.read_bytes(), "cpu").session, fails_from)
    return CudaRunner(session, (8, 8, 1), 10, device="cpu", graph=graph), session


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, provider="cpu", threads=1)


@pytest.mark.parametrize("graph", [False, True])
def test_padded_runs_give_what_plain_runs_give(digits_model: Path, classifier: Classifier, graph: bool) -> None:
    runner, _ = make_runner(digits_model, graph=graph)

    # growing and shrinking sizes, each several times, with other images each time
    for seed, size in enumerate([*range(1, 20), *range(20, 0, -1), 257, 1, 64, 257]):
        images = random_images(size, seed)
        np.testing.assert_allclose(runner.run("logits", images), classifier.predict_logits(images), atol=1e-5)
        np.testing.assert_allclose(runner.run("probabilities", images), classifier.predict_proba(images), atol=1e-6)


def test_any_sizes_have_a_bounded_number_of_graphs(digits_model: Path) -> None:
    runner, session = make_runner(digits_model, graph=True)

    for size in range(1, 101):
        runner.run("logits", random_images(size), 60)

    assert set(session.replayed) == {1, 2, 4, 8, 16, 32, 60, 64, 128}
    assert session.plain == []


def test_a_batch_beyond_the_largest_is_run_in_parts(digits_model: Path, classifier: Classifier) -> None:
    runner, session = make_runner(digits_model)
    images = random_images(LARGEST + 3)

    found = runner.run("logits", images)

    assert session.plain == [LARGEST, 4]
    np.testing.assert_allclose(found, classifier.predict_logits(images), atol=1e-5)


def test_a_result_stays_when_its_buffer_is_used_again(digits_model: Path) -> None:
    runner, _ = make_runner(digits_model, graph=True)
    first = runner.run("logits", random_images(3, 1))
    copy = first.copy()

    runner.run("logits", random_images(3, 2))

    assert np.array_equal(first, copy)


@pytest.mark.parametrize("graph", [False, True])
def test_threads_and_runners_do_not_mix_their_images(digits_model: Path, classifier: Classifier, graph: bool) -> None:
    runners = [make_runner(digits_model, graph=graph)[0] for _ in range(2)]
    batches = [random_images(1 + seed % 7, seed) for seed in range(100)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: runners[i % 2].run("logits", batches[i]), range(100)))

    for batch, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, classifier.predict_logits(batch), atol=1e-5)


def test_each_graph_is_captured_once_however_many_threads_ask(digits_model: Path) -> None:
    runner, session = make_runner(digits_model, graph=True)
    for _ in range(5):  # new threads each time, as in a server with a thread per request
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: runner.run("logits", random_images(4, seed)), range(16)))

    assert session.bound == 1
    assert session.replayed == [4] * 80


def test_a_capture_that_fails_ends_in_plain_runs_and_a_notice(digits_model: Path, classifier: Classifier) -> None:
    runner, session = make_runner(digits_model, graph=True, fails_from=16)
    small, large = random_images(4), random_images(20)

    runner.run("logits", small)
    assert runner.notice is None
    found = [runner.run("logits", images) for images in (large, large, small, large)]

    assert runner.notice == (
        "no more CUDA graphs are captured: CUDA failure 900: operation not permitted when stream is capturing"
    )
    assert session.replayed == [4, 32, 4]  # the size that failed isn't tried again, and the other goes on
    assert session.plain == [32, 32, 32]
    for images, logits in zip((large, large, small, large), found, strict=True):
        np.testing.assert_allclose(logits, classifier.predict_logits(images), atol=1e-5)


def test_images_in_memory_of_the_runner_are_not_copied(digits_model: Path, classifier: Classifier) -> None:
    runner, session = make_runner(digits_model)

    for seed in range(3):
        images = runner.allocate(5, batch_size=6)
        images[:] = random_images(5, seed)
        address = images.ctypes.data
        found = runner.start("logits", images, batch_size=6).result()
        assert session.addresses[-1] == address
        np.testing.assert_allclose(found, classifier.predict_logits(random_images(5, seed)), atol=1e-5)

    assert session.plain == [6, 6, 6]
    assert len(set(session.addresses)) == 1  # the memory is used again


def test_memory_of_a_batch_that_is_still_running_is_not_given_out(digits_model: Path) -> None:
    runner, _ = make_runner(digits_model)

    first, second = runner.allocate(5, 5), runner.allocate(5, 5)

    assert not np.shares_memory(first, second)


def test_a_run_that_fails_says_where_and_with_how_many_images(digits_model: Path) -> None:
    session = open_session(digits_model.read_bytes(), "cpu").session
    for graph in (False, True):
        runner = CudaRunner(session, (9, 9, 1), 10, device="cpu", graph=graph)  # whose model takes 8 by 8

        with pytest.raises(ProviderError, match=r"a run of 3 images failed on the device cpu:0: .*Got: 9 Expected: 8"):
            runner.run("logits", np.zeros((3, 9, 9, 1), np.uint8))
        assert runner.notice is None  # it wasn't for the graph


@pytest.mark.parametrize("graph", [False, True])
def test_batch_sizes_whose_runs_failed_keep_neither_places_nor_memory(digits_model: Path, graph: bool) -> None:
    runner, session = make_runner(digits_model, graph=graph)
    session.most = 100
    memory = []
    for size in range(101, 121):  # more than there are places
        images = runner.allocate(size, batch_size=size)
        images[:] = random_images(size)
        memory.append(weakref.ref(images.base))
        with pytest.raises(ProviderError, match="Failed to allocate memory"):
            runner.run("logits", images, size)
    del images
    gc.collect()

    runner.run("logits", random_images(59), 60)

    assert (session.replayed if graph else session.plain)[-1] == 60
    assert [reference for reference in memory if reference() is not None] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_an_error_instead_of_waiting_forever(digits_model: Path) -> None:
    code = (
        "import os, pathlib, sys, numpy\n"
        "from rnn_runtime.engine.cuda_runner import CudaRunner\n"
        "from rnn_runtime.engine.session import open_session\n"
        "from rnn_runtime.errors import ProviderError\n"
        "session = open_session(pathlib.Path(sys.argv[1]).read_bytes(), 'cpu').session\n"
        "runner = CudaRunner(session, (8, 8, 1), 10, device='cpu')\n"
        "runner.run('logits', numpy.zeros((1, 8, 8, 1), numpy.uint8))\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        runner.run('logits', numpy.zeros((1, 8, 8, 1), numpy.uint8))\n"
        "    except ProviderError as error:\n"
        "        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )

    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, digits_model], capture_output=True, text=True, timeout=60
    )

    assert result.stderr == ""
    assert result.stdout == "CUDA doesn't run in a forked process. Open the classifier in that process instead\n"
