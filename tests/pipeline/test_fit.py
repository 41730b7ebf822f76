"""How images become the model's input: chosen in training, kept by the model, applied in serving."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rnn_runtime import Classifier
from rnn_runtime.checks.self_check import self_check
from tests.support.commands import Run
from tests.support.results import read_results

TRAINING = ("--data", "signs", "--epochs", "12", "--learning-rate", "0.01", "--batch-size", "4", "--no-plots")


def draw(sign: str, ink: tuple[int, ...], paper: tuple[int, ...], *, side: int = 60, shift: int = 0) -> Image.Image:
    """A minus or a bar, somewhere on paper."""
    image = Image.new("RGBA" if len(paper) == 4 else "RGB", (side, side), paper)
    box = (12, 26, 44, 34) if sign == "minus" else (26, 12, 34, 44)
    ImageDraw.Draw(image).rectangle([value + shift for value in box], fill=ink)
    return image


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    """A folder `signs` of bars and minuses, white on black and here and there."""
    for name in ("bar", "minus"):
        (tmp_path / "signs" / name).mkdir(parents=True)
        for i in range(8):
            draw(name, (255,) * 3, (0,) * 3, shift=i - 4).save(tmp_path / "signs" / name / f"{i}.png")
    return tmp_path / "signs"


@pytest.mark.usefixtures("signs")
def test_a_model_of_glyphs_reads_drawings_of_any_kind(run: Run, tmp_path: Path) -> None:
    run("rnn-train", *TRAINING, "--image-size", "14", "--fit", "glyph")
    run("rnn-export", "model.pt", "model.onnx")
    (tmp_path / "sent").mkdir()
    for name in ("bar", "minus"):
        draw(name, (0, 0, 0), (255, 255, 255)).save(tmp_path / "sent" / f"{name}-scan.png")
        draw(name, (0, 0, 0, 255), (0, 0, 0, 0)).save(tmp_path / "sent" / f"{name}-canvas.png")
        draw(name, (200, 40, 40), (40, 120, 40), side=200, shift=90).save(tmp_path / "sent" / f"{name}-corner.png")

    result = run("rnn-infer", "--provider", "cpu", "--output", "out.csv", "sent")

    assert result.returncode == 0
    assert "colors are ignored" not in result.stderr
    rows = read_results(tmp_path / "out.csv")
    assert len(rows) == 6
    assert all(Path(row["path"]).name.startswith(row["label"]) for row in rows)
    assert Classifier(tmp_path / "model.onnx", "cpu").image_spec.fit == "glyph"


def test_the_background_of_training_is_that_of_serving(run: Run, signs: Path, tmp_path: Path) -> None:
    for path in signs.rglob("*.png"):
        white = Image.open(path).convert("L")
        black = Image.new("L", white.size)
        Image.merge("LA", (black, white)).save(path)  # black strokes, transparent around them

    run("rnn-train", *TRAINING, "--image-size", "14")
    run("rnn-export", "model.pt", "model.onnx")

    classifier = Classifier(tmp_path / "model.onnx", "cpu")
    assert classifier.image_spec.background == (255, 255, 255)
    transparent = classifier.predict(sorted(map(str, signs.rglob("*.png"))))
    flat = [np.full((60, 60), 255, np.uint8) - np.asarray(Image.open(image.path))[..., 1] for image in transparent]
    assert [image.top for image in transparent] == [image.top for image in classifier.predict(flat)]


def test_training_on_identical_images_says_what_may_be_wrong(run: Run, signs: Path) -> None:
    for path in signs.rglob("*.png"):
        Image.new("RGBA", (60, 60), (9, 9, 9, 255)).save(path)

    result = run("rnn-train", *TRAINING)

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "all 16 training images are one color each" in result.stderr
    assert "choose another --fit" in result.stderr


def test_training_images_of_one_color_each_are_counted(run: Run, signs: Path) -> None:
    for i, path in enumerate(sorted(signs.rglob("*.png"))[8:]):
        Image.new("L", (60, 60), 10 * i).save(path)

    result = run("rnn-train", *TRAINING)

    assert result.returncode == 0
    assert "8 of 16 training images are of one color after decoding" in result.stderr + result.stdout
    assert f"the first: signs{os.sep}minus{os.sep}0.png" in result.stderr + result.stdout


@pytest.mark.usefixtures("signs")
@pytest.mark.parametrize(
    ("paper", "said"),
    [((255, 255, 255), "8 have a dark and 8 a light background. Consider --fit glyph"), ((0, 0, 0), None)],
)
def test_a_fit_that_suits_the_images_is_suggested(
    run: Run, signs: Path, paper: tuple[int, ...], said: str | None
) -> None:
    for path in (signs / "bar").iterdir():
        draw("bar", tuple(255 - value for value in paper), paper).save(path)

    result = run("rnn-train", *TRAINING, "--image-size", "14")

    assert ("Consider --fit" in result.stderr + result.stdout) == (said is not None)
    assert (said or "") in result.stderr + result.stdout


def test_inverted_images_get_the_results_of_their_negatives(
    run: Run, tmp_path: Path, digits_model: Path, digits_images: Path
) -> None:
    (tmp_path / "negatives").mkdir()
    paths = sorted(digits_images.rglob("*.png"))[::9]
    for i, path in enumerate(paths):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(tmp_path / "negatives" / f"{i:02}.png")
    expected = [prediction.top for prediction in Classifier(digits_model, "cpu").predict(paths)]

    options = ("--model", digits_model, "--provider", "cpu", "--output", "out.csv")
    inverted = run("rnn-infer", *options, "--invert", "negatives")

    assert inverted.returncode == 0
    assert [row["label"] for row in read_results(tmp_path / "out.csv")] == [top[0][0] for top in expected]
    classifier = pickle.loads(pickle.dumps(Classifier(digits_model, "cpu", invert=True)))
    negatives = [255 - np.asarray(Image.open(path)) for path in paths]
    assert [prediction.top for prediction in classifier.predict(negatives)] == expected


def test_the_models_own_input_is_taken_as_it_is(digits_model: Path, digits_images: Path) -> None:
    images = np.stack([np.asarray(Image.open(path))[..., np.newaxis] for path in digits_images.rglob("*.png")])
    plain, inverting = (Classifier(digits_model, "cpu", invert=invert) for invert in (False, True))

    assert np.array_equal(inverting.predict_proba(images), plain.predict_proba(images))
    assert np.array_equal(inverting.predict_logits(images), plain.predict_logits(images))
    assert inverting.find_unlike(images) == plain.find_unlike(images)
    assert self_check(inverting) == self_check(plain)
