"""PyTorch and onnxruntime compute the same, through the exported file, for every kind of model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from rnn_export import export_onnx
from rnn_export.graph import build_onnx_model
from rnn_export.parity import Tolerance, choose_batch_sizes, measure_parity, most_images
from rnn_runtime import Classifier, ParityError
from rnn_runtime.model.difference import Difference
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import ImageRNN, predict_logits
from tests.support.checkpoints import random_checkpoint

CELLS = [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh"), ("lstm", "tanh")]
BATCH_SIZES = (1, 2, 3, 5, 7, 16, 31, 64, 100, 256, 257)


@pytest.mark.parametrize(("num_layers", "bidirectional", "channels"), [(1, False, 3), (2, True, 1), (3, False, 1)])
@pytest.mark.parametrize("cell", CELLS)
def test_exported_file_agrees_with_pytorch_at_every_batch_size(
    tmp_path: Path, cell: tuple[str, str], num_layers: int, bidirectional: bool, channels: int
) -> None:
    spec = ModelSpec(
        image_spec=ImageSpec(9, 7, channels),
        class_names=("a", "b", "c"),
        cell=cell[0],  # type: ignore[arg-type]
        nonlinearity=cell[1],  # type: ignore[arg-type]
        hidden_size=20,
        num_layers=num_layers,
        bidirectional=bidirectional,
        mean=tuple([0.4, 0.3, 0.2][:channels]),
        std=tuple([0.5, 0.25, 0.3][:channels]),
    )
    replace(random_checkpoint(spec), temperature=0.37).save(tmp_path / "model.pt")
    model = Checkpoint.load(tmp_path / "model.pt").build_model()

    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    classifier = Classifier(tmp_path / "model.onnx", provider="cpu")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 256, (max(BATCH_SIZES), *spec.image_spec.shape), np.uint8)
    for size in BATCH_SIZES:
        expected = predict_logits(model, images[:size])
        # the classifier divides large batches, the session takes them whole
        for logits in (classifier.predict_logits(images[:size]), session.run(["logits"], {"images": images[:size]})[0]):
            difference = Difference.between(logits, expected)
            assert difference.within_tolerance, f"batch {size}: {difference}"
            assert difference.equal_labels == 1
        expected_probabilities = torch.softmax(torch.from_numpy(expected) / 0.37, dim=1).numpy()
        np.testing.assert_allclose(classifier.predict_proba(images[:size]), expected_probabilities, atol=1e-6)


@pytest.mark.parametrize(
    "cell", ["rnn", pytest.param("gru", marks=pytest.mark.slow), pytest.param("lstm", marks=pytest.mark.slow)]
)
def test_an_article_sized_model_differs_by_rounding_only(tmp_path: Path, cell: str) -> None:
    spec = ModelSpec(ImageSpec(28, 28, 1), tuple("0123456789"), cell)  # type: ignore[arg-type]
    random_checkpoint(spec).save(tmp_path / "model.pt")

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx")

    assert {row.images for row in report.parity.rows} == {"checkpoint samples", "random", "all 0", "all 255"}
    for row in report.parity.rows:
        # the checkpoint's 16 samples are repeated to fill the batches
        assert row.count == (16 if row.images == "checkpoint samples" else 1 + 2 + 3 + 7 + 64 + 257)
        # a bug would put the exported model far from float64, and not PyTorch
        assert row.float64.max_absolute < 10 * row.pytorch_float64.max_absolute + 1e-7


@pytest.mark.parametrize(
    ("shape", "cell", "expected"),
    [
        ((1, 1, 1), "rnn", (1, 2, 3, 7, 64, 257)),
        ((28, 28, 1), "rnn", (1, 2, 3, 7, 64, 257)),
        ((28, 28, 1), "lstm", (1, 2, 3, 7, 64, 257)),
        ((256, 256, 3), "lstm", (1, 2, 3, 7, 64)),
        ((512, 512, 3), "rnn", (1, 2, 3, 7)),
        ((4096, 64, 1), "rnn", (1, 2, 3, 7, 64)),
        ((4096, 64, 1), "lstm", (1, 2, 3, 7)),
        ((4096, 4096, 3), "rnn", (1, 2)),
    ],
)
def test_large_images_are_compared_in_smaller_batches(
    shape: tuple[int, int, int], cell: Cell, expected: tuple[int, ...]
) -> None:
    model = ImageRNN(ModelSpec(ImageSpec(*shape), ("a", "b"), cell, mean=(0.5,) * shape[2], std=(0.3,) * shape[2]))

    assert choose_batch_sizes(most_images(model)) == expected


def test_an_export_of_large_images_tells_how_many_were_compared(tmp_path: Path) -> None:
    spec = ModelSpec(ImageSpec(60, 4096, 3), ("a", "b"), hidden_size=8, mean=(0.5,) * 3, std=(0.3,) * 3)
    random_checkpoint(spec).save(tmp_path / "model.pt")
    told: list[str] = []

    report = export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", progress=told.append)

    assert report.parity.batch_sizes == (1, 2, 3, 7)
    counts = {row.images: row.count for row in report.parity.rows}
    assert counts == {"checkpoint samples": 16, "random": 13, "all 0": 13, "all 255": 13}
    for name, count in counts.items():
        assert f"Comparing {count} {name} images with PyTorch" in told


def test_another_temperature_than_the_checkpoints_is_no_parity(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(ModelSpec(ImageSpec(5, 4, 1), ("cat", "dog"), hidden_size=6))
    weights = {name: tensor.numpy() for name, tensor in checkpoint.weights.items()}
    exported = build_onnx_model(checkpoint.spec, weights, temperature=1.5).SerializeToString()
    images = {"samples": checkpoint.samples.numpy()}

    same, other = (
        measure_parity(exported, checkpoint.build_model(), images, tolerance=Tolerance(), temperature=temperature)
        for temperature in (1.5, 1.4)
    )

    same.check(tmp_path, ("cat", "dog"))
    with pytest.raises(ParityError, match="probabilities differ by up to"):
        other.check(tmp_path, ("cat", "dog"))


def test_results_of_an_image_do_not_depend_on_its_neighbours(digits_model: Path) -> None:
    classifier = Classifier(digits_model, provider="cpu")
    images = np.random.default_rng(2).integers(0, 256, (257, 8, 8, 1), np.uint8)

    together = classifier.predict_logits(images)

    alone = np.concatenate([classifier.predict_logits(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 100])
def test_a_row_of_a_shuffled_batch_keeps_its_result_to_the_bit(digits_model: Path, size: int) -> None:
    classifier = Classifier(digits_model, provider="cpu")
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (size, 8, 8, 1), np.uint8)
    order = generator.permutation(size)

    shuffled = classifier.predict_logits(images[order])

    assert np.array_equal(shuffled, classifier.predict_logits(images)[order])
