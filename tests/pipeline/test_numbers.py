"""The same image gives the same result: here and in PyTorch, alone and among others, whatever runs it."""

import itertools
import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rnn_export import export_onnx
from rnn_export.graph import Graph, Precision
from rnn_runtime import Classifier
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec
from rnn_train import DataSource, TrainSettings, train
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import load_data
from rnn_train.model import predict_logits
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run
from tests.support.folders import MakeOnce
from tests.support.idx_subsets import copy_first

SPEC = ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"))
# onnxruntime's kernels for x86-64 add up each number in the same order, however many rows there are.
EXACT = 0 if platform.machine() == "x86_64" else 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_labels_of_10000_real_images_are_pytorchs_but_for_ties(tmp_path: Path, fashion_mnist: Path, cell: Cell) -> None:
    data = copy_first(fashion_mnist, tmp_path / "data", train=1500, test=10_000)
    source = DataSource(dataset="fashion-mnist", data=str(data))
    train(source, TrainSettings(cell=cell), tmp_path / "model.pt", device="cpu", plots=False)

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    real = report.parity.rows[0]
    assert (real.images, real.count) == ("test", 10_000)
    assert all(difference.tie for difference in real.label_differences)
    assert real.pytorch.equal_labels == pytest.approx(1 - len(real.label_differences) / 10_000, abs=1e-4)
    # the file itself, once more, without what export uses
    images = np.fromfile(data / "t10k-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28, 1)
    labels = Classifier(tmp_path / "model.onnx", provider="cpu").predict_logits(images).argmax(axis=1)
    expected = predict_logits(Checkpoint.load(tmp_path / "model.pt").build_model(), images).argmax(axis=1)
    assert set(np.flatnonzero(labels != expected)) <= {difference.image for difference in real.label_differences}


@pytest.mark.slow
def test_labels_that_differ_are_listed_and_shown_to_be_ties(tmp_path: Path, run: Run) -> None:
    checkpoint = random_checkpoint(SPEC)
    weight = checkpoint.weights["linear.weight"]
    weight[1] = weight[0] * (1 + 1e-7)  # two classes between which rounding alone decides
    checkpoint.weights["linear.bias"][1] = checkpoint.weights["linear.bias"][0]
    checkpoint.weights["linear.bias"][:2] += 10
    samples = torch.randint(0, 256, (2000, 28, 28, 1), dtype=torch.uint8)
    Checkpoint(**{name: getattr(checkpoint, name) for name in checkpoint.__slots__} | {"samples": samples}).save(
        tmp_path / "model.pt"
    )

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")
    printed = run("rnn-export", "model.pt", "again.onnx")

    found = report.parity.rows[0].label_differences
    assert found, "rounding decided alike everywhere: nothing was shown"
    assert all(difference.tie and difference.margin < 1e-5 for difference in found)
    assert {difference.pytorch for difference in found} <= {0, 1}
    first = found[0]
    line = f"checkpoint samples image {first.image}: {first.pytorch} in PyTorch, {first.onnxruntime} in onnxruntime; "
    assert line in printed.stdout
    assert "apart, a tie within rounding" in printed.stdout
    stored = Classifier(tmp_path / "model.onnx", provider="cpu").metadata.parity["rows"][0]["label_differences"]
    assert [row["image"] for row in stored] == [difference.image for difference in found]


def export_random(folder: Path, cell: Cell, form: Graph | None = None, precision: Precision = "fp32") -> Path:
    random_checkpoint(ModelSpec(SPEC.image_spec, SPEC.class_names, cell)).save(folder / "model.pt")
    export_onnx(folder / "model.pt", folder / "model.onnx", graph=form, precision=precision)
    return folder / "model.onnx"


def in_all_ways(model: Path, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Logits with several numbers of threads, in batches of several sizes, in another order, among other neighbours."""
    found = []
    order = np.random.default_rng(1).permutation(len(images))
    for threads, size in itertools.product((1, 3), (1, 7, 64, 257)):
        classifier = Classifier(model, provider="cpu", threads=threads)
        starts = range(0, len(images), size)
        found.append(np.concatenate([classifier.predict_logits(images[start : start + size]) for start in starts]))
        if size == 1:
            continue  # an image alone has no neighbours, and no place among them
        shuffled = np.concatenate([classifier.predict_logits(images[order[start : start + size]]) for start in starts])
        found.append(shuffled[np.argsort(order)])
    return found


@pytest.fixture(scope="module")
def train_digits(make_once: MakeOnce, digits_checkpoint: Path) -> Callable[[Cell], Path]:
    """Gives a trained checkpoint of a cell: its logits are far apart, and so is what rounding does to them."""

    def train_cell(cell: Cell) -> Path:
        if cell == "rnn":
            return digits_checkpoint
        source, settings = DataSource(dataset="digits"), TrainSettings(cell=cell, epochs=8, learning_rate=0.005)
        folder = make_once(
            f"trained_{cell}", lambda folder: train(source, settings, folder / "model.pt", device="cpu", plots=False)
        )
        return folder / "model.pt"

    return train_cell


@pytest.mark.parametrize(
    ("cell", "form", "precision", "bound"),
    [
        ("rnn", "unrolled", "fp32", EXACT),
        pytest.param("rnn", "wavefront", "fp32", EXACT, marks=pytest.mark.slow),
        pytest.param("rnn", "scan", "fp32", EXACT, marks=pytest.mark.slow),
        pytest.param("gru", "operator", "fp32", EXACT, marks=pytest.mark.slow),
        pytest.param("lstm", "operator", "fp32", EXACT, marks=pytest.mark.slow),
        pytest.param("lstm", "operator", "int8", 2e-2, marks=pytest.mark.slow),
        pytest.param("rnn", "operator", "fp32", 1e-6, marks=pytest.mark.slow),
        pytest.param("rnn", "unrolled", "fp16", 1e-3, marks=pytest.mark.slow),
        pytest.param("rnn", "wavefront", "fp16", 1e-3, marks=pytest.mark.slow),
        pytest.param("rnn", "scan", "fp16", 1e-3, marks=pytest.mark.slow),
        pytest.param("rnn", "operator", "fp16", 1e-3, marks=pytest.mark.slow),
        pytest.param("gru", "operator", "fp16", 1e-3, marks=pytest.mark.slow),
        pytest.param("lstm", "operator", "fp16", 1e-3, marks=pytest.mark.slow),
    ],
)
def test_how_images_are_run_changes_no_more_than_stated(
    tmp_path: Path,
    train_digits: Callable[[Cell], Path],
    cell: Cell,
    form: Graph,
    precision: Precision,
    bound: float,
) -> None:
    export_onnx(train_digits(cell), tmp_path / "trained.onnx", graph=form, precision=precision)
    test = load_data(DataSource(dataset="digits")).test
    assert test is not None
    random = export_random(tmp_path, cell, form, precision)
    for model, images in (
        (tmp_path / "trained.onnx", test.images[:257]),
        (random, np.random.default_rng(0).integers(0, 256, (257, 28, 28, 1), np.uint8)),
    ):
        first, *others = in_all_ways(model, images)

        assert len(np.unique(first, axis=0)) == len(np.unique(images, axis=0))
        assert max(np.abs(other - first).max() for other in others) <= bound * np.ptp(first)


_shared: Any = None  # what a forked process finds


def predict_shared(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _shared.predict_logits(images)  # type: ignore[no-any-return]


def predict_sent(classifier: Classifier, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    assert classifier.provider == "cpu"
    return classifier.predict_logits(images)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_classifier_goes_to_other_processes(tmp_path: Path, cell: Cell, method: str) -> None:
    classifier = Classifier(export_random(tmp_path, cell), "auto", threads=2)
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 1), np.uint8)
    expected = classifier.predict_logits(images)

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        found = [pool.submit(predict_sent, classifier, images).result(timeout=120) for _ in range(2)]

    for logits in found:
        assert np.array_equal(logits, expected)


def test_a_forked_process_can_use_the_classifier_that_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(export_random(tmp_path, "rnn"), provider="cpu", threads=2)
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 1), np.uint8)
    expected = classifier.predict_logits(images)
    monkeypatch.setattr(f"{__name__}._shared", classifier)

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(predict_shared, [images] * 4, timeout=120))

    for logits in found:
        assert np.array_equal(logits, expected)
