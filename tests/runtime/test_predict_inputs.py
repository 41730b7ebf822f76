"""What `Classifier.predict` takes: paths, bytes, open files, PIL images and arrays, one or many."""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rnn_export import export_onnx
from rnn_runtime import Classifier, InputError, Prediction
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.support.checkpoints import random_checkpoint
from tests.support.encoded_images import encode, pattern
from tests.support.folders import MakeOnce

SHAPES = ((12, 10, 1), (100, 80, 3), (64, 300, 4), (5, 70, 3), (12, 10, 3), (3, 3, 4), (40, 40, 1))


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "RGB"])
def classifier(request: pytest.FixtureRequest, make_once: MakeOnce) -> Classifier:
    """A model for images of 12 x 10."""

    channels = request.param

    def fill(folder: Path) -> None:
        spec = ModelSpec(
            ImageSpec(12, 10, channels),
            ("a", "b", "c"),
            "rnn",
            hidden_size=16,
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
        )
        random_checkpoint(spec).save(folder / "model.pt")
        export_onnx(folder / "model.pt", folder / "model.onnx")

    return Classifier(make_once(f"any_input_{channels}", fill) / "model.onnx", provider="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A PNG file of each of `SHAPES`."""
    folder = tmp_path_factory.mktemp("files")
    for i, shape in enumerate(SHAPES):
        (folder / f"{i}.png").write_bytes(encode(pattern(*shape, seed=i)))
    return sorted(folder.iterdir())


def results(predictions: list[Prediction]) -> list[Any]:
    """All but the paths."""
    return [(prediction.top, prediction.error) for prediction in predictions]


@pytest.mark.parametrize(
    "kind",
    [
        Path,
        Path.read_bytes,
        lambda path: bytearray(path.read_bytes()),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: Image.open(io.BytesIO(path.read_bytes())),
        lambda path: Image.open(io.BytesIO(path.read_bytes())).copy(),
        lambda path: np.asarray(Image.open(io.BytesIO(path.read_bytes()))),
    ],
    ids=["Path", "bytes", "bytearray", "BytesIO", "opened image", "decoded image", "array"],
)
def test_all_kinds_of_images_give_what_their_files_give(classifier: Classifier, files: list[Path], kind: Any) -> None:
    expected = results(classifier.predict(list(map(str, files)), top_k=3))

    assert results(classifier.predict([kind(path) for path in files], top_k=3)) == expected
    assert results(list(classifier.iter_predictions((kind(path) for path in files), top_k=3))) == expected


@given(st.data())
def test_kinds_may_be_mixed(classifier: Classifier, files: list[Path], data: st.DataObject) -> None:
    kinds = (
        str,
        Path.read_bytes,
        lambda path: path.open("rb"),
        Image.open,
        lambda path: np.array(Image.open(path)),
    )
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(files), st.sampled_from(kinds)), max_size=40))
    expected = results(classifier.predict([path for path, _ in chosen], top_k=3))

    with ExitStack() as stack:
        images: list[Any] = [kind(path) for path, kind in chosen]
        for image in images:
            if isinstance(image, io.IOBase | Image.Image):
                stack.callback(image.close)
        assert results(classifier.predict(images, top_k=3)) == expected


def test_a_single_image_gives_a_single_prediction(classifier: Classifier, files: list[Path]) -> None:
    assert_type(classifier.predict(files), list[Prediction])
    for path in files:
        assert_type(classifier.predict(path), Prediction)
        (expected,) = classifier.predict([path], top_k=3)
        assert classifier.predict(path, top_k=3) == classifier.predict(str(path), top_k=3) == expected
        with path.open("rb") as file, Image.open(path) as image:
            array = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
            for image_like in (path.read_bytes(), file, image, array):
                assert results([classifier.predict(image_like, top_k=3)]) == results([expected])


def test_an_array_of_four_dimensions_is_several_images(classifier: Classifier) -> None:
    images = np.stack([pattern(30, 20, 3, seed) for seed in range(40)])

    assert classifier.predict(images) == classifier.predict(list(images))
    assert classifier.predict(images[:1]) == [classifier.predict(images[0])]
    assert classifier.predict(images[:0]) == []


def test_arrays_of_the_models_size_give_the_probabilities_of_predict_proba(classifier: Classifier) -> None:
    shape = classifier.metadata.spec.image_spec.shape
    images = np.stack([pattern(*shape, seed) for seed in range(16)])

    found = [[dict(p.top)[name] for name in classifier.class_names] for p in classifier.predict(images, top_k=3)]

    assert np.array_equal(np.array(found, np.float32), classifier.predict_proba(images))


def test_arrays_and_series_of_paths_are_lists_of_paths(classifier: Classifier, files: list[Path]) -> None:
    expected = classifier.predict(files)
    paths = [str(path) for path in files]

    for several in (np.array(paths), np.array(paths, object), pandas.Series(paths), tuple(paths), iter(paths)):
        predictions = classifier.predict(several)
        assert predictions == expected
        assert {type(prediction.path) for prediction in predictions} == {str}


def test_one_buffer_may_hold_each_image_in_turn(classifier: Classifier) -> None:
    frames = [pattern(30, 20, 3, seed) for seed in range(50)]
    buffer = np.empty((30, 20, 3), np.uint8)

    def camera() -> Iterator[Any]:
        for frame in frames:
            buffer[:] = frame
            yield buffer

    assert list(classifier.iter_predictions(camera(), batch_size=7)) == classifier.predict(frames, batch_size=7)


def test_members_of_an_archive_are_classified_without_unpacking(
    classifier: Classifier, files: list[Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in files:
            archive.write(path, path.name)

    def members() -> Iterator[Any]:
        with zipfile.ZipFile(tmp_path / "images.zip") as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    yield member

    predictions = classifier.predict(members(), top_k=3)

    assert [prediction.path for prediction in predictions] == [path.name for path in files]
    assert results(predictions) == results(classifier.predict(files, top_k=3))


def test_the_path_is_the_name_of_the_file_where_it_is_known(classifier: Classifier, files: list[Path]) -> None:
    path = files[0]
    with path.open("rb") as file, Image.open(path) as image, path.open("rb", 0) as by_number:
        numbered = open(by_number.fileno(), "rb", closefd=False)  # noqa: SIM115
        images: list[Any] = [
            path,
            file,
            image,
            path.read_bytes(),
            io.BytesIO(path.read_bytes()),
            image.copy(),
            numbered,
        ]
        found = [prediction.path for prediction in classifier.predict(images)]

    assert found == [str(path)] * 3 + [""] * 4


def test_an_unusable_image_leaves_its_neighbours_alone(classifier: Classifier, files: list[Path]) -> None:
    good = classifier.predict(files[:2], top_k=3)
    images: list[Any] = [
        files[0],
        b"no image",
        io.BytesIO(),
        Image.new("F", (3, 3)),
        np.empty((0, 3), np.uint8),
        files[1],
    ]

    predictions = classifier.predict(images, top_k=3)

    assert [p for p in predictions if p.error is None] == good
    assert [p.error is None for p in predictions] == [True, False, False, False, False, True]
    failed = classifier.predict(b"no image")
    assert failed == Prediction("", None, None, error="not an image in a supported format, or damaged")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (None, r"must be a path, bytes, an open binary file, a PIL image or a uint8 array, not NoneType"),
        (5, "not int"),
        (["a.png"], "not list"),
        (io.StringIO("a.png"), r"read\(\) gave str. Open the file in mode 'rb'"),
        (
            np.zeros((8, 8), np.float32),
            "must be a uint8 array, .* not float32. Bring its values to 0 to 255 and convert",
        ),
        (np.zeros((8, 8), np.uint16), r"must be a uint8 array, .* not uint16. Pass it as PIL.Image.fromarray\(array\)"),
        (
            np.zeros((8, 8, 3), np.uint16),
            "must be a uint8 array, .* not uint16. Bring its values to 0 to 255 and convert",
        ),
        (np.zeros((8, 8), bool), "not bool"),
        (np.zeros((8, 8, 5), np.uint8), r"has shape \(8, 8, 5\). An image has the shape"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"has shape \(2, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"has shape \(8,\)"),
    ],
)
def test_what_is_no_image_is_named_by_its_position(classifier: Classifier, image: Any, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^`images\[2\]` .*{problem}"):
        classifier.predict([b"", b"", image, b""])


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (None, "must be a path, bytes, .* or several of them, not NoneType"),
        (5, "not int"),
        (
            np.zeros((60, 28, 28), np.uint8),
            r"has shape \(60, 28, 28\). .* Several images are a list, or have the shape",
        ),
        (np.zeros((8, 8), np.float64), "must be a uint8 array"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), r"has shape \(2, 2, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"has shape \(8,\)"),
        (io.StringIO("a.png"), "Open the file in mode 'rb'"),
    ],
)
def test_what_is_neither_an_image_nor_several_is_refused(classifier: Classifier, images: Any, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^`images` .*{problem}"):
        classifier.predict(images)


def test_a_prediction_becomes_plain_values(classifier: Classifier, files: list[Path]) -> None:
    for prediction in classifier.predict([files[0], b"no image"], top_k=2):
        values = prediction.to_dict()

        assert json.loads(json.dumps(values)) == values
        assert [values[name] for name in ("path", "label", "probability", "error")] == [
            prediction.path,
            prediction.label,
            prediction.probability,
            prediction.error,
        ]
        assert [(row["label"], row["probability"]) for row in values["top"]] == list(prediction.top)
