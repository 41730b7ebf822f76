"""The classifier, from Python."""

import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from rnn_export import export_onnx
from rnn_runtime import Classifier, Prediction
from rnn_runtime.errors import InputError, ModelError, SettingsError
from rnn_runtime.model.spec import Cell, ImageSpec, ModelSpec
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import predict_logits
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import RunProcess
from tests.support.encoded_images import encode, pattern
from tests.support.tampered_models import change_metadata, change_weight, seal_again


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, provider="cpu")


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def paths(digits_images: Path) -> list[str]:
    return sorted(map(str, digits_images.glob("*/*.png")))


def test_predictions_come_in_the_order_of_the_paths(classifier: Classifier, paths: list[str]) -> None:
    mixed = [*reversed(paths), paths[0]]

    predictions = classifier.predict(mixed)

    assert [prediction.path for prediction in predictions] == mixed
    right = sum(prediction.label == Path(prediction.path).parent.name for prediction in predictions)
    assert right > 0.9 * len(mixed)


def test_top_k_is_ranked_and_begins_with_the_label(classifier: Classifier, paths: list[str]) -> None:
    for prediction in classifier.predict(paths[:20], top_k=3):
        probabilities = [probability for _, probability in prediction.top]
        assert len(prediction.top) == 3
        assert prediction.top[0] == (prediction.label, prediction.probability)
        assert probabilities == sorted(probabilities, reverse=True)


def test_top_k_beyond_the_classes_gives_them_all(classifier: Classifier, paths: list[str]) -> None:
    (prediction,) = classifier.predict(paths[:1], top_k=99)

    assert {label for label, _ in prediction.top} == set(classifier.class_names)
    assert sum(probability for _, probability in prediction.top) == pytest.approx(1, abs=1e-6)


def test_batch_size_does_not_change_predictions(classifier: Classifier, paths: list[str]) -> None:
    expected = classifier.predict(paths, batch_size=1)

    for batch_size in (2, 7, 359, 360, 361, 10_000):
        found = classifier.predict(paths, batch_size=batch_size)
        assert [p.label for p in found] == [p.label for p in expected]
        assert [p.probability for p in found] == pytest.approx([p.probability for p in expected], abs=1e-6, rel=0)


def test_unreadable_files_leave_their_neighbours_alone(
    classifier: Classifier, paths: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    good = paths[:10]
    mixed = [str(tmp_path / "missing.png"), *good[:5], str(tmp_path / "text.png"), *good[5:], str(tmp_path)]

    predictions = classifier.predict(mixed, batch_size=4)

    errors = {p.path: p.error for p in predictions if p.error}
    assert set(errors) == {mixed[0], mixed[6], mixed[-1]}
    assert "no such file" in errors[mixed[0]]
    assert [p for p in predictions if not p.error] == classifier.predict(good, batch_size=4)
    assert predictions[0] == Prediction(mixed[0], None, None, (), errors[mixed[0]])


def test_paths_are_read_only_a_few_batches_ahead(classifier: Classifier, paths: list[str]) -> None:
    read = 0

    def count() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield paths[read % len(paths)]

    assert len(list(islice(classifier.iter_predictions(count(), batch_size=4), 20))) == 20
    assert read <= 20 + 4 * 4


def test_images_in_memory_give_what_their_files_give(classifier: Classifier, tmp_path: Path) -> None:
    pixels = np.stack([pattern(8, 8, 1, seed) for seed in range(5)])
    for i, image in enumerate(pixels):
        (tmp_path / f"{i}.png").write_bytes(encode(image))

    predictions = classifier.predict(sorted(tmp_path.iterdir()), top_k=10)

    rows = [[dict(p.top)[name] for name in classifier.class_names] for p in predictions]
    assert np.array_equal(np.array(rows, np.float32), classifier.predict_proba(pixels))


def test_probabilities_are_the_softmax_of_the_logits(classifier: Classifier, images: NDArray[np.uint8]) -> None:
    logits = classifier.predict_logits(images).astype(np.float64)

    probabilities = classifier.predict_proba(images)

    assert probabilities.dtype == np.float32
    assert probabilities.shape == (300, 10)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, expected, atol=1e-6, rtol=0)


def test_no_image_at_all_gives_no_rows(classifier: Classifier) -> None:
    assert classifier.predict([]) == []
    assert classifier.predict_proba(np.empty((0, 8, 8, 1), np.uint8)).shape == (0, 10)


def test_slices_of_larger_arrays_give_the_same(classifier: Classifier, images: NDArray[np.uint8]) -> None:
    turned = np.ascontiguousarray(images[:, :, ::-1])

    assert np.array_equal(classifier.predict_proba(images[:, :, ::-1]), classifier.predict_proba(turned))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 1), np.float32),
        np.zeros((1, 8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 8, 9, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_arrays_that_do_not_fit_say_what_would(classifier: Classifier, images: NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match=r"must be uint8 of shape \(batch, 8, 8, 1\), not"):
        classifier.predict_proba(images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"threads": "2"}, "`threads` must be a whole number from 1 to 4096, not '2'"),
        ({"threads": 99999}, "`threads` must be a whole number from 1 to 4096, not 99999"),
        ({"threads": 2.5}, "`threads` must be a whole number from 1 to 4096, not 2.5"),
        ({"cuda": None}, "`cuda` must be CudaOptions, not None"),
        ({"model": 5}, "`model` must be a path, not 5"),
        ({"model": None}, "`model` must be a path, not None"),
    ],
)
def test_wrong_arguments_are_named(digits_model: Path, arguments: dict[str, Any], problem: str) -> None:
    arguments = {"model": digits_model} | arguments

    with pytest.raises(SettingsError, match=f"^{re.escape(problem)}$"):
        Classifier(**arguments)


def test_numbers_of_numpy_are_as_good_as_pythons(digits_model: Path, images: NDArray[np.uint8]) -> None:
    classifier = Classifier(digits_model, provider="cpu", threads=np.int64(2))  # type: ignore[arg-type]

    (prediction,) = classifier.predict([images[0]], top_k=np.int32(3), batch_size=np.uint8(8))  # type: ignore[call-overload]

    assert len(prediction.top) == 3


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": 0}, {"top_k": "2"}, {"batch_size": 1.5}])
def test_sizes_that_are_no_counts_are_refused_at_once(classifier: Classifier, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="must be a whole number from 1 "):
        classifier.iter_predictions(["a.png"], **options)


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), b"PNG", np.zeros((8, 8), np.uint8), io.BytesIO()])
def test_a_single_image_is_refused_by_iter_predictions_instead_of_read_bit_by_bit(
    classifier: Classifier, one: Any
) -> None:
    with pytest.raises(InputError, match=r"is a single image\. Pass it to `predict`"):
        classifier.iter_predictions(one)


def test_batches_of_any_size_give_what_single_images_give(classifier: Classifier, images: NDArray[np.uint8]) -> None:
    single = np.concatenate([classifier.predict_logits(images[i : i + 1]) for i in range(len(images))])

    for size in (15, 16, 17, 31, 32, 33, 64, 65, 129, 300):
        assert np.allclose(classifier.predict_logits(images[:size]), single[:size], atol=1e-5, rtol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_forked_process_can_go_on_with_the_classifier_and_end(
    run_process: RunProcess, tmp_path: Path, cell: Cell
) -> None:
    model = export_random(tmp_path, cell)
    code = (
        "import os, pathlib, sys, numpy as np; from rnn_runtime import Classifier\n"
        "classifier = Classifier(sys.argv[1], provider='cpu', threads=2)\n"
        "shape = (200, *classifier.metadata.spec.image_spec.shape)\n"
        "images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)\n"
        "expected = classifier.predict_logits(images)\n"
        # onnxruntime's threads spin for a while after a run; once they sleep, a session in a child can't be destroyed
        "tasks = [task for task in pathlib.Path('/proc/self/task').iterdir() if int(task.name) != os.getpid()]\n"
        "while not all(') S ' in (task / 'stat').read_text() for task in tasks): pass\n"
        "child = os.fork()\n"
        "for part in (slice(200), slice(3)):\n"
        "    assert np.allclose(classifier.predict_logits(images[part]), expected[part], atol=1e-6)\n"
        "assert child == 0 or os.waitpid(child, 0)[1] == 0\n"
    )

    # Python 3.12 and later warn of any fork of a process with threads. That this one works is what the test shows.
    result = run_process("python", "-W", "ignore:This process:DeprecationWarning", "-c", code, model, timeout=60)

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "code",
    [
        "from rnn_runtime import Classifier; Classifier('model.onnx', provider='cpu')",
        pytest.param(
            "from rnn_export import export_onnx; export_onnx('model.pt', 'again.onnx')", marks=pytest.mark.slow
        ),
    ],
)
def test_onnxruntime_keeps_no_record_of_what_it_runs(run_process: RunProcess, tmp_path: Path, code: str) -> None:
    export_random(tmp_path, "rnn")
    (tmp_path / "home").mkdir()
    # CI, too, would turn it off
    home = str(tmp_path / "home")
    environment = {"CI": None, "ORT_DISABLE_TELEMETRY": None, "HOME": home, "XDG_CACHE_HOME": home}

    result = run_process("python", "-c", code, env=environment)

    assert result.returncode == 0, result.stderr
    assert [path for path in (tmp_path / "home").rglob("*") if "onnxruntime" in path.name] == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_threads_change_nothing_but_rounding(tmp_path: Path, cell: Cell, threads: int) -> None:
    model = export_random(tmp_path, cell)
    images = np.random.default_rng(0).integers(0, 256, (700, 5, 4, 1), np.uint8)  # several runs each

    found = Classifier(model, provider="cpu", threads=threads).predict_logits(images)

    expected = Checkpoint.load(model.with_suffix(".pt")).build_model()
    assert np.allclose(found, predict_logits(expected, images), atol=1e-5)


def export_random(folder: Path, cell: Cell) -> Path:
    random_checkpoint(ModelSpec(ImageSpec(5, 4, 1), ("a", "b"), cell, hidden_size=8)).save(folder / "model.pt")
    export_onnx(folder / "model.pt", folder / "model.onnx")
    return folder / "model.onnx"


def test_one_classifier_serves_16_threads(classifier: Classifier, images: NDArray[np.uint8], paths: list[str]) -> None:
    expected = classifier.predict_logits(images), classifier.predict(paths[:50])

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: (classifier.predict_logits(images), classifier.predict(paths[:50])), range(64)))

    for logits, predictions in found:
        assert np.allclose(logits, expected[0], atol=1e-5, rtol=0)
        assert [p.label for p in predictions] == [p.label for p in expected[1]]


def test_checkpoint_in_place_of_a_model_is_told(digits_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"a checkpoint, not a model\. Export it first"):
        Classifier(digits_checkpoint)


def test_missing_model_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.onnx: no such file or directory\. Write a model with: rnn-export"):
        Classifier(tmp_path / "model.onnx")


def test_models_of_other_programs_are_refused(tmp_path: Path, digits_model: Path) -> None:
    model = change_metadata(digits_model, tmp_path / "model.onnx", format=None)

    with pytest.raises(ModelError, match="not a model that rnn-export wrote"):
        Classifier(model, provider="cpu")


def test_metadata_that_does_not_fit_the_graph_is_refused(tmp_path: Path, digits_model: Path) -> None:
    props = {prop.key: prop.value for prop in onnx.load(digits_model).metadata_props}
    described = json.loads(props["model"]) | {"class_names": list("0123456789X")}
    model = change_metadata(digits_model, tmp_path / "model.onnx", model=json.dumps(described))

    with pytest.raises(ModelError, match=r"golden samples: the logits don't fit"):
        Classifier(model, provider="cpu")


def test_graph_that_does_not_fit_the_metadata_is_refused(tmp_path: Path, digits_model: Path) -> None:
    proto = onnx.load(digits_model)
    proto.graph.output.reverse()
    (tmp_path / "model.onnx").write_bytes(seal_again(proto))

    with pytest.raises(ModelError, match=r"its inputs and outputs are .*, and its metadata says"):
        Classifier(tmp_path / "model.onnx", provider="cpu")


def test_output_that_is_not_finite_is_an_error_and_no_label(
    tmp_path: Path, digits_model: Path, paths: list[str]
) -> None:
    model = change_weight(digits_model, tmp_path / "model.onnx", "linear.bias", lambda bias: bias * np.nan)

    classifier = Classifier(model, provider="cpu")

    (prediction,) = classifier.predict(paths[:1])

    assert prediction == Prediction(paths[0], None, None, error="the model's output is not finite")
    for predict in (classifier.predict_logits, classifier.predict_proba):
        with pytest.raises(ModelError, match="are not finite for 5 of 5 images"):
            predict(np.zeros((5, 8, 8, 1), np.uint8))
