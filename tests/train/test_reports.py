"""Metrics and plots: there for every kind of data and of class name, and readable."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rnn_train.data import LabeledImages
from rnn_train.reports import write_metrics, write_reports

PLOTS = ("curves.png", "confusion_matrix.png", "examples.png")
HISTORY = [
    {"epoch": 1, "learning_rate": 0.1, "train_loss": 1.5, "train_accuracy": 0.25, "seconds": 0.5},
    {"epoch": 2, "learning_rate": 0.1, "train_loss": 0.5, "train_accuracy": 0.75, "seconds": 0.4},
]


def held_out(count: int, classes: int, channels: int = 1) -> LabeledImages:
    images = np.random.default_rng(0).integers(0, 256, (count, 6, 5, channels), np.uint8)
    return LabeledImages(images, np.arange(count) % classes)


def assert_plots_are_drawn(folder: Path) -> None:
    for name in PLOTS:
        pixels = read_rgb(folder / name)
        assert min(pixels.shape[:2]) > 150
        assert pixels.std() > 1


def read_rgb(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def draw(folder: Path, names: tuple[str, ...], count: int = 12) -> None:
    data = held_out(count, len(names))
    write_reports(folder, HISTORY, names, data, data.labels[::-1])


def test_metrics_have_a_row_an_epoch_and_a_column_a_quantity(tmp_path: Path) -> None:
    write_metrics(tmp_path, HISTORY)

    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == HISTORY
    assert b"\r" not in (tmp_path / "metrics.csv").read_bytes()


def test_plots_are_written_over_those_of_an_earlier_run(tmp_path: Path) -> None:
    for name in PLOTS:
        (tmp_path / name).write_bytes(b"old")

    draw(tmp_path, ("ant", "bee", "cat"))

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PLOTS)
    assert_plots_are_drawn(tmp_path)


def test_without_plots_those_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    data = held_out(4, 2)
    (tmp_path / "curves.png").write_bytes(b"old")

    write_reports(tmp_path, HISTORY, ("a", "b"), data, data.labels, plots=False)

    assert list(tmp_path.iterdir()) == []


def test_without_images_to_evaluate_on_only_curves_are_drawn(tmp_path: Path) -> None:
    write_reports(tmp_path, HISTORY, ("a", "b"), None, None)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png"]


@pytest.mark.parametrize(
    ("classes", "channels"),
    [(2, 3), pytest.param(30, 1, marks=pytest.mark.slow), pytest.param(40, 1, marks=pytest.mark.slow)],
)
def test_any_number_of_classes_can_be_drawn(tmp_path: Path, classes: int, channels: int) -> None:
    data = held_out(8, classes, channels)

    write_reports(tmp_path, HISTORY, tuple(map(str, range(classes))), data, data.labels)

    assert_plots_are_drawn(tmp_path)


# warnings would stand among the command's lines
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("$", "$\\frac{$", "$1 to $5"), id="dollars that are no formula"),
        pytest.param(("猫", "кошка", "🐈"), id="not Latin", marks=pytest.mark.slow),
        pytest.param(("a" * 300, "b " * 100, "a\nb"), id="long", marks=pytest.mark.slow),
        pytest.param(("caf\udce9", "_hidden", "%s"), id="a folder's name that is no UTF-8"),
    ],
)
def test_any_class_name_can_be_drawn_without_a_warning(tmp_path: Path, names: tuple[str, ...]) -> None:
    draw(tmp_path, names, count=3)

    assert_plots_are_drawn(tmp_path)


@pytest.mark.parametrize("wrong_by", [0, 1], ids=["all right", "all wrong"])
def test_results_all_right_or_all_wrong_can_be_drawn(tmp_path: Path, wrong_by: int) -> None:
    data = held_out(3, 3)

    write_reports(tmp_path, HISTORY, ("a", "b", "c"), data, (data.labels + wrong_by) % 3)

    assert_plots_are_drawn(tmp_path)


def test_validation_is_drawn_as_a_second_curve(tmp_path: Path) -> None:
    history: list[dict[str, Any]] = [row | {"validation_loss": 1.0, "validation_accuracy": 0.5} for row in HISTORY]

    write_reports(tmp_path, HISTORY, ("a", "b"), None, None)
    one = read_rgb(tmp_path / "curves.png")
    write_reports(tmp_path, history, ("a", "b"), None, None)
    two = read_rgb(tmp_path / "curves.png")

    orange = np.array([255, 127, 14])  # matplotlib's second color
    assert not (one == orange).all(axis=2).any()
    assert (two == orange).all(axis=2).any()
