"""Data sets in one file: Keras's `.npz` and Kaggle's table of pixels."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_runtime.errors import DataError
from rnn_train import Checkpoint
from rnn_train.data import DataSource, load_data
from tests.support.commands import Run

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 5)).astype(np.uint8)
LABELS = (np.arange(12) % 3).astype(np.uint8)
ARRAYS: dict[str, Any] = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:6], "y_test": LABELS[:6]}


def write_table(path: Path, *, names: bool = True, end: str = "\n") -> Path:
    lines = [f"label,{','.join(f'pixel{i}' for i in range(25))}"] if names else []
    lines += [",".join(map(str, [label, *image.ravel()])) for image, label in zip(IMAGES, LABELS, strict=True)]
    path.write_bytes((end.join(lines) + end).encode())
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"x_train": IMAGES[..., np.newaxis]},
        {"x_train": np.asfortranarray(IMAGES), "y_train": LABELS.astype(np.int32)[:, np.newaxis]},
        {"x_train": IMAGES.astype(np.int64)},
    ],
    ids=["as Keras has it", "with a channel", "labels in a column", "whole numbers of 64 bits"],
)
def test_an_npz_is_training_and_test_images(tmp_path: Path, changes: dict[str, Any]) -> None:
    np.savez_compressed(tmp_path / "mnist.npz", **(ARRAYS | changes))

    data = load_data(DataSource(data=str(tmp_path / "mnist.npz")))

    assert data.test is not None
    assert data.class_names == ("0", "1", "2")
    for split, images, labels in ((data.train, IMAGES, LABELS), (data.test, IMAGES[:6], LABELS[:6])):
        assert np.array_equal(split.images[..., 0], images)
        assert np.array_equal(split.labels, labels)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64


def test_an_npz_may_hold_color_and_no_test_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "photos.npz", x_train=np.stack([IMAGES] * 3, axis=-1), y_train=LABELS)

    data = load_data(DataSource(data=str(tmp_path / "photos.npz"), class_names=("ant", "bee", "cat"), val_split=0.5))

    assert data.test is None
    assert data.image_spec.shape == (5, 5, 3)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.validation is not None


def broken(row: int, value: int) -> Any:
    values = IMAGES.astype(np.int64)
    values[row, 1, 1] = value
    return values


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"x_train": IMAGES / 255},
            "x_train holds float64, and must .* make (x_train * 255).astype('uint8')",
        ),
        ({"x_train": broken(7, 256)}, "x_train[7] holds values from"),
        ({"x_test": broken(3, -1)[:6]}, "x_test[3] holds values from -1 to"),
        ({"y_train": LABELS.astype(np.int64) - 1}, "y_train[0] holds values from -1 to -1"),
        ({"y_train": np.full(12, 10**9)}, "y_train[0] holds values from 1000000000 to"),
        ({"y_train": LABELS / 2}, "y_train holds float64, and must hold whole numbers from 0 to"),
        ({"y_train": LABELS[:5]}, "y_train has the shape (5,); expected (12,), one per image"),
        ({"x_train": IMAGES.reshape(12, 25)}, "x_train has the shape (12, 25); expected (images, height, width)"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "x_train has the shape (0, 5, 5)"),
        ({"x_test": IMAGES[:6, :4]}, "training and test images differ in size. Resize them with `image_size`"),
        ({"x_train": np.array([{}], object)}, "not arrays that NumPy wrote, or damaged ones: Object arrays"),
    ],
)
def test_arrays_that_can_not_be_used_are_named_with_the_row(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "mnist.npz"
    np.savez(path, **(ARRAYS | changes))

    with pytest.raises(DataError) as error:
        load_data(DataSource(data=str(path)))

    start, _, end = problem.partition(" .* ")
    assert str(error.value).startswith(f"{path}: {start}")
    assert end in str(error.value)


@pytest.mark.parametrize("names", [("x_train",), ("x_train", "y_train", "x_test"), ("x_test", "y_test"), ()])
def test_an_npz_with_other_arrays_says_what_it_holds(tmp_path: Path, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", **{name: ARRAYS[name] for name in names}, images=IMAGES)

    with pytest.raises(DataError, match=rf"holds {', '.join([*names, 'images'])}\. It must hold x_train, y_train,"):
        load_data(DataSource(data=str(tmp_path / "a.npz")))


@pytest.mark.parametrize("damage", ["text", "cut", "bits", "array"])
def test_a_damaged_npz_is_a_data_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **ARRAYS)
    content = bytearray(path.read_bytes())
    if damage == "text":
        content = bytearray(b"letters")
    elif damage == "cut":
        del content[100:]
    elif damage == "bits":
        with zipfile.ZipFile(path) as archive:
            place = archive.infolist()[0].header_offset + 60
        content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    if damage == "array":
        np.save(tmp_path / "one.npy", IMAGES)
        (tmp_path / "one.npy").rename(path)

    with pytest.raises(DataError, match=r"mnist\.npz: not (an \.npz file|arrays that NumPy wrote), or (a )?damaged"):
        load_data(DataSource(data=str(path)))


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_of_pixels_is_training_images(tmp_path: Path, names: bool, end: str) -> None:
    path = write_table(tmp_path / "train.csv", names=names, end=end)

    data = load_data(DataSource(data=str(path), dataset="mnist", fit="stretch"))

    assert np.array_equal(data.train.images[..., 0], IMAGES)
    assert np.array_equal(data.train.labels, LABELS)
    assert data.class_names == tuple("0123456789")
    assert data.test is None


def test_the_label_of_a_table_of_pixels_may_come_last(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("\ufeffa,b,c,d,Label\n1,2,3,4,1\n\n5,6,7,255,0\n", encoding="utf-8")

    data = load_data(DataSource(data=str(tmp_path / "train.csv")))

    assert data.train.images.reshape(2, 4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 255]]
    assert data.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("label,a,b,c,d\n1,2,3,4,5\n0,2,3,4,256\n", "line 3: holds something else than whole numbers from 0 to 255"),
        ("label,a,b,c,d\n1,2,3,4,5\n0,2,3,4,-1\n", "line 3: holds something else than whole numbers"),
        ("label,a,b,c,d\n1,2,3,4,5\n\n0,2,x,4,5\n", "line 4: holds something else than whole numbers"),
        ("1,2,3,4,5\n0,2,3,4\n", "line 2: 4 values instead of 5"),
        ("label,a,b,c\n1,2,3,4\n", "line 1: 3 pixels, which are no square image"),
        ("a,b,c,d\n1,2,3,4\n", "line 1: no column label"),  # Kaggle's test.csv
        ("path,label\na.png,cat\n", "line 2: holds something else than"),
        ("", "line 1: no column label"),
        ("label,a,b,c,d\n", "no rows"),
        ("\0\xff", "line 1: no column label"),
    ],
)
def test_a_row_that_is_no_image_is_named(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(content)

    with pytest.raises(DataError) as error:
        load_data(DataSource(data=str(path)))

    assert str(error.value).startswith(f"{path}: {problem}")


def test_options_for_image_files_are_refused_for_arrays(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.csv")

    with pytest.raises(DataError, match=r"Leave out `channels`"):
        load_data(DataSource(data=str(path), channels=3))
    with pytest.raises(DataError, match=r"Leave out `depth_range`"):
        load_data(DataSource(data=str(path), depth_range="auto"))


def test_the_command_trains_on_a_table_of_pixels(run: Run, tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv")

    result = run("rnn-train", "--data", "train.csv", "--val-split", "0.5", "--hidden-size", "4", "--epochs", "1")

    assert result.returncode == 0, result.stderr
    assert "train.csv: 6 training, 6 validation images of 5x5, gray, 3 classes: 0, 1, 2\n" in result.stderr
    assert Checkpoint.load(tmp_path / "model.pt").source.data == "train.csv"
