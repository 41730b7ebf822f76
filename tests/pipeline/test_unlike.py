"""Images unlike a model's training images are noticed, in each way of using the model."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.unlike import find_unlike, make_pictures
from rnn_runtime import Classifier
from rnn_train import Checkpoint
from rnn_train.data import Data, DataSource, LabeledImages, load_data
from tests.support.commands import Run
from tests.support.encoded_images import encode
from tests.support.image_folders import write_classes
from tests.support.services import serving

LIGHT = "light where those are dark"
DIGITS = load_data(DataSource(dataset="digits"))
assert DIGITS.test is not None
PICTURES = make_pictures(DIGITS.test, 20)


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A model, the 36 test images of a digit, and these inverted."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    shutil.copytree(digits_images / "7", tmp_path / "images")
    (tmp_path / "inverted").mkdir()
    for path in (tmp_path / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(tmp_path / "inverted" / path.name)
    return tmp_path


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_images_like_those_in_training_are_not_flagged(digits_model: Path) -> None:
    assert DIGITS.test is not None
    found = Classifier(digits_model, "cpu").find_unlike(DIGITS.test.images)

    assert sum(difference is not None for difference in found) <= 0.01 * len(found)


@pytest.mark.parametrize("kind", PICTURES)
def test_each_kind_of_picture_that_is_none_of_them_is_flagged(kind: str) -> None:
    found = find_unlike(DIGITS, {kind: PICTURES[kind]})[kind]

    assert sum(difference is not None for difference in found) >= 0.95 * len(found)


def test_a_run_ends_with_the_difference_and_the_remedy(run: Run, folder: Path) -> None:
    found = run("rnn-infer", "-p", "cpu", "--summary", "run.json", "inverted")
    remedied = run("rnn-infer", "-p", "cpu", "--invert", "inverted")
    usual = run("rnn-infer", "-p", "cpu", "images")

    line = f"36 of 36 images are unlike the training images: {LIGHT}. Try --invert"
    assert found.stderr.splitlines()[-1] == line
    assert found.returncode == 0
    summary = json.loads((folder / "run.json").read_text())
    assert (summary["unlike"], summary["differences"], summary["rejected"]) == (36, {LIGHT: 36}, 0)
    assert "unlike" not in remedied.stderr
    assert [row["label"] for row in rows_of(remedied.stdout)] == [row["label"] for row in rows_of(usual.stdout)]


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_a_column_names_the_difference(run: Run, folder: Path, style: str) -> None:
    shutil.copy(folder / "inverted" / "00000.png", folder / "images" / "z.png")

    text = run("rnn-infer", "-p", "cpu", "--unlike", "column", "--format", style, "images").stdout

    rows = rows_of(text) if style == "csv" else list(map(json.loads, text.splitlines()))
    assert list(rows[0]) == ["path", "label", "probability", "unlike", "error"]
    assert [row["unlike"] or None for row in rows[-2:]] == [None, LIGHT]
    assert rows[-1]["label"]


def test_such_images_can_be_errors(run: Run, folder: Path) -> None:
    shutil.copy(folder / "inverted" / "00000.png", folder / "images" / "z.png")

    options = ["--unlike", "error", "--copy-to", "sorted", "--summary", "run.json"]
    result = run("rnn-infer", "-p", "cpu", *options, "images")

    *usual, last = rows_of(result.stdout)
    assert all(row["label"] and not row["error"] for row in usual)
    assert last["label"] == last["probability"] == ""
    assert last["error"] == f"unlike the training images: {LIGHT}"
    assert result.returncode == 1
    summary = json.loads((folder / "run.json").read_text())
    assert (summary["unlike"], summary["rejected"], summary["unreadable"], summary["placed"]) == (1, 1, 0, 36)
    assert not list((folder / "sorted").rglob("z.png"))


@pytest.mark.parametrize("unlike", ["warn", "column", "error"])
def test_a_continued_run_and_shards_count_them_as_a_single_run_does(run: Run, folder: Path, unlike: str) -> None:
    options = ["-p", "cpu", "--unlike", unlike, "-r"]
    shutil.move(folder / "images", folder / "both" / "images")
    shutil.move(folder / "inverted", folder / "both" / "inverted")
    single = run("rnn-infer", *options, "-o", "single.csv", "--summary", "single.json", "both")
    run("rnn-infer", *options, "-o", "again.csv", "both")
    again = run("rnn-infer", *options, "-o", "again.csv", "--resume", "--summary", "again.json", "both")
    for k in (1, 2):
        run("rnn-infer", *options, "--shard", f"{k}/2", "-o", "parts", "both")
    merged = run("rnn-onnx", "merge", "parts", "-o", "merged.csv")

    assert (folder / "merged.csv").read_text() == (folder / "single.csv").read_text()
    assert "72 images, 36 unlike the training images, 2 parts" in merged.stderr
    before, after = (json.loads((folder / name).read_text()) for name in ("single.json", "again.json"))
    assert before["unlike"] == 36
    if unlike != "warn":  # which leaves no trace in the file
        assert (after["unlike"], after["rejected"]) == (36, before["rejected"])
        assert single.returncode == again.returncode


@pytest.mark.usefixtures("folder")
def test_parts_made_in_different_ways_are_not_joined(run: Run) -> None:
    run("rnn-infer", "-p", "cpu", "--shard", "1/2", "-o", "parts", "inverted")
    run("rnn-infer", "-p", "cpu", "--shard", "2/2", "--unlike", "error", "-o", "parts", "inverted")

    merged = run("rnn-onnx", "merge", "parts")

    assert "2 settings" in merged.stderr


def test_images_that_are_all_the_same_to_the_model_are_said(run: Run, folder: Path) -> None:
    for shade in range(3):  # black strokes on a transparent background that this model takes for black
        pixels = np.zeros((20, 20, 4), np.uint8)
        pixels[..., 0] = shade
        Image.fromarray(pixels).save(folder / f"{shade}.png")

    result = run("rnn-infer", "-p", "cpu", "0.png", "1.png", "2.png")
    usual = run("rnn-infer", "-p", "cpu", "0.png", "images")

    assert "All 3 images became the same input of the model" in result.stderr
    assert "same input" not in usual.stderr


def test_a_classifier_says_so_of_files_arrays_and_pil_images(digits_model: Path) -> None:
    classifier = Classifier(digits_model, "cpu")
    assert DIGITS.test is not None
    image = DIGITS.test.images[0]
    wide = np.hstack([np.zeros_like(image), image, np.zeros_like(image)])

    for pixels, difference in ((image, None), (255 - image, LIGHT), (wide, "wider in proportion")):
        for given in (pixels, Image.fromarray(pixels[..., 0]), encode(pixels)):
            assert classifier.predict(given).unlike == difference
    assert classifier.predict(255 - image).to_dict()["unlike"] == LIGHT
    assert classifier.predict(b"no image").unlike is None


def test_an_image_is_judged_the_same_alone_and_among_others(digits_model: Path) -> None:
    classifier = Classifier(digits_model, "cpu")
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (300, 8, 8, 1), np.uint8)
    images = np.concatenate([DIGITS.train.images[:300], noise, (noise // 3) + 20])

    together = classifier.find_unlike(images)

    assert together == [classifier.find_unlike(images[i : i + 1])[0] for i in range(len(images))]
    assert len(set(together)) > 3


@pytest.fixture(scope="module")
def address(digits_model: Path) -> Iterator[str]:
    with serving(digits_model) as service:
        yield service.url


def test_a_service_says_so_in_its_answer_and_counts_them(address: str) -> None:
    assert DIGITS.test is not None
    image = DIGITS.test.images[0]

    answer = httpx.post(f"{address}/classify", content=encode(255 - image)).json()
    usual = httpx.post(f"{address}/classify", content=encode(image)).json()
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 8, 8, 1]}
    data = [*(255 - image).ravel().tolist(), *image.ravel().tolist()]
    inferred = httpx.post(f"{address}/v2/models/rnn/infer", json={"inputs": [{**tensor, "data": data}]}).json()

    assert (answer["unlike"], usual["unlike"]) == (LIGHT, None)
    assert inferred["parameters"] == {"unlike_images": 1}
    assert f'rnn_unlike_images_total{{difference="{LIGHT}"}} 2.0' in httpx.get(f"{address}/metrics").text


def test_the_profile_travels_from_training_to_the_model(digits_checkpoint: Path, digits_model: Path) -> None:
    profile = Checkpoint.load(digits_checkpoint).spec.profile

    assert profile is not None
    assert profile.aspect_ratios == (1.0, 1.0)
    assert Classifier(digits_model, "cpu").metadata.spec.profile == profile


def test_images_in_color_are_told_by_their_colors() -> None:
    random = np.random.default_rng(0)
    reddish = random.integers(0, 120, (300, 12, 10, 3), np.uint8) + np.array([120, 20, 0], np.uint8)
    data = Data(LabeledImages(reddish[:280], np.zeros(280, np.int64)), None, None, ("a", "b"))

    found = find_unlike(data, {"own": as_images(reddish[280:]), "bluish": as_images(reddish[280:, :, :, ::-1])})

    assert found["own"].count(None) >= 19
    assert set(found["bluish"]) <= {"less red", "more blue"}


def test_pixels_as_the_model_takes_them_have_no_shape_of_their_own(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "wide", count=30)  # 5 pixels wide, 6 high
    run("rnn-train", "--data", "wide", "--image-size", "12x24", "--epochs", "1")
    run("rnn-export", "model.pt", "model.onnx")
    images = load_data(DataSource(data=str(tmp_path / "wide"), image_size=(12, 24))).train.images
    tensor = {"name": "images", "shape": images.shape, "datatype": "UINT8", "data": images.ravel().tolist()}

    with serving(tmp_path / "model.onnx") as service:
        answer = httpx.post(f"{service.url}/v2/models/rnn/infer", json={"inputs": [tensor]}).json()

    assert answer["parameters"]["unlike_images"] <= 1


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Parts of two photographs, in color, of 24x24 pixels."""
    random = np.random.default_rng(0)
    wholes = [Image.fromarray(image) for image in load_sample_images().images]
    boxes = [(*random.integers(0, 300, 2), int(random.integers(60, 120))) for _ in range(400)]
    return [
        wholes[index % 2].resize((24, 24), box=(int(left), int(top), int(left) + side, int(top) + side))
        for index, (left, top, side) in enumerate(boxes)
    ]


def test_a_picture_of_any_single_color_is_noticed_among_photographs(photographs: list[Image.Image]) -> None:
    colors = ("red", "navy", "skyblue", "olive", "gray", "white", "pink", "#101820")
    solid = [Image.new("RGB", (24, 24), color) for color in colors]

    found = find_unlike(data_of(photographs[:320]), {"own": photographs[320:], "solid": solid})

    assert found["own"].count(None) >= 78
    assert found["solid"] == ["a single color"] * len(solid)


def test_a_photograph_small_in_the_corner_of_a_canvas_of_any_color_is_noticed(photographs: list[Image.Image]) -> None:
    canvases = []
    for photograph, color in zip(photographs[320:], ("red", "navy", "skyblue", "olive") * 20, strict=True):
        canvases.append(Image.new("RGB", (72, 72), color))
        canvases[-1].paste(photograph, (3, 3))

    found = find_unlike(data_of(photographs[:320]), {"corner": canvases})

    assert found["corner"].count(None) <= 4


def data_of(images: list[Image.Image]) -> Data:
    pixels = np.stack([np.asarray(image) for image in images])
    return Data(LabeledImages(pixels, np.zeros(len(pixels), np.int64)), None, None, ("a", "b"))


def as_images(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in pixels]


def test_a_model_of_a_few_images_says_that_it_cannot_notice_others(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=9)

    trained = run("rnn-train", "--data", "photos", "--epochs", "1")
    run("rnn-export", "model.pt", "model.onnx")
    warned = run("rnn-infer", "photos/ant")
    refused = run("rnn-infer", "--unlike", "column", "photos/ant")

    assert "With fewer than 20 training images, the model won't notice images that are unlike them" in trained.stderr
    assert (warned.returncode, refused.returncode) == (0, 2), warned.stderr
    assert refused.stderr == (
        "Error: model.onnx: trained on fewer than 20 images, so it can't tell which images are unlike them. Leave out "
        "--unlike column\n"
    )


def test_a_few_inverted_images_among_many_are_to_be_classified_apart(run: Run, folder: Path) -> None:
    for path in sorted((folder / "inverted").iterdir())[:4]:
        shutil.copy(path, folder / "images" / f"inverted-{path.name}")

    result = run("rnn-infer", "images")

    last = result.stderr.splitlines()[-1]
    assert last.startswith("4 of 40 images are unlike the training images: light where those are dark")
    assert last.endswith(". Classify them apart, with --invert")


@pytest.mark.parametrize("fit", ["warn", "error"])
def test_rejected_images_are_counted_where_the_exit_code_tells_of_them(run: Run, folder: Path, fit: str) -> None:
    (folder / "all" / "7").mkdir(parents=True)
    for path in (folder / "inverted").iterdir():
        shutil.copy(path, folder / "all" / "7" / path.name)

    result = run("rnn-infer", "-q", "--unlike", fit, "--labels-from-folders", "-o", "a.csv", "all")

    if fit == "warn":
        assert (result.returncode, result.stderr) == (0, "")
        assert "Accuracy: " in result.stdout
    else:
        assert result.returncode == 1
        assert "36 images, 36 unlike the training images, " in result.stderr
        assert "Accuracy: none, since no image with a label has a true class" in result.stdout
        assert "Not evaluated: 36 images unlike the training images" in result.stderr


@pytest.mark.parametrize("color", ["red", "beige", "darkgreen", "gray"])
def test_images_of_one_color_are_called_that(color: str) -> None:
    reddish = np.random.default_rng(3).integers(0, 256, (300, 12, 10, 3), np.uint8)
    data = Data(LabeledImages(reddish, np.zeros(300, np.int64)), None, None, ("a", "b"))

    found = find_unlike(data, {"plain": [Image.new("RGB", (10, 12), color)]})

    assert found["plain"] == ["a single color"]
