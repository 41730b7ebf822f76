"""What in a data set will disappoint is said before training."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import Run
from tests.support.image_folders import write_classes

CHECK = ("rnn-train", "--data", "photos", "--image-size", "12", "--check-data")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/train and photos/val, with nothing to say about them: a blot in different places, 60 per class."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(60):
                write_blot(folder / f"{i:02}.png", random)
    return tmp_path / "photos"


def write_blot(path: Path, random: np.random.Generator, *, inverted: bool = False) -> None:
    pixels = random.integers(0, 8, (12, 12)).astype(np.uint8)
    row, column = random.integers(2, 5, 2)
    pixels[row : row + 5, column : column + 5] = random.integers(180, 250, (5, 5))
    Image.fromarray(255 - pixels if inverted else pixels).save(path)


def said(run: Run) -> list[str]:
    result = run(*CHECK)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[1:]


def test_data_without_faults_gets_one_line(run: Run, photos: Path) -> None:
    assert said(run) == ["Nothing in it stands out"]
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


def test_the_same_image_in_two_classes_is_named(run: Run, photos: Path) -> None:
    shutil.copy(photos / "train/ant/00.png", photos / "train/bee/new.png")

    assert said(run) == [
        "1 image is in more than one class, such as photos/train/ant/00.png in 'ant' and photos/train/bee/new.png in "
        "'bee'",
        "1 training image repeats others, pixel by pixel, such as photos/train/ant/00.png and photos/train/bee/new.png",
    ]


def test_images_in_two_splits_and_repeated_ones_are_counted(run: Run, photos: Path) -> None:
    for i in range(3):
        shutil.copy(photos / f"train/ant/0{i}.png", photos / f"val/ant/new{i}.png")
        Image.open(photos / f"train/bee/0{i}.png").save(photos / f"train/bee/again{i}.bmp")

    across, within = said(run)

    assert across.startswith(
        "3 images are in more than one split, so figures on held-out images are too good, such as "
    )
    assert within.startswith("3 training images repeat others, pixel by pixel, such as photos/train/bee/0")


def test_an_image_unlike_the_others_of_its_class_is_named(run: Run, photos: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (12, 12), np.uint8)
    Image.fromarray(noise).save(photos / "train/bee/30.png")

    assert said(run) == [
        "1 training image is unlike the others of the same class, the most photos/train/bee/30.png in 'bee'"
    ]


def test_mixed_polarity_is_said(run: Run, photos: Path) -> None:
    random = np.random.default_rng(2)
    for i in range(12):
        write_blot(photos / f"train/ant/{i:02}.png", random, inverted=True)

    lines = said(run)

    assert any(
        line.startswith("12 training images are dark on light, and 108 light on dark, such as photos/train/ant/00.png")
        for line in lines
    )
    assert "Consider --fit glyph" in "".join(lines)


def test_names_that_are_alike_are_questioned(run: Run, photos: Path) -> None:
    for split in ("train", "val"):
        (photos / split / "bee").rename(photos / split / "A n-t")

    assert said(run) == [
        "The classes 'A n-t' and 'ant' differ only in case, spaces or the form of letters. Are they one?"
    ]


def test_few_validation_images_are_said(run: Run, photos: Path) -> None:
    for path in (photos / "val").rglob("[1-5]*.png"):
        path.unlink()

    assert said(run) == [
        "20 validation images are too few to calibrate probabilities, which takes 50, and to choose the best epoch well"
    ]


def test_training_says_the_same_and_the_report_shows_the_images(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=20)
    shutil.copy(tmp_path / "photos/ant/0.png", tmp_path / "photos/bee/new.png")

    result = run("rnn-train", "--data", "photos", "--epochs", "1")

    text = "1 image is in more than one class, such as photos/ant/0.png in 'ant' and photos/bee/new.png in 'bee'"
    assert text in result.stderr.splitlines()
    report = (tmp_path / "report.html").read_text()
    data = report[report.index('<section id="data">') : report.index('<section id="settings">')]
    assert text.replace("'", "&#39;") in data
    assert data.count('<img src="data:image/png;base64,') >= 2
