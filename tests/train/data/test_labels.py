"""Training on image files whose classes are in a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_runtime.errors import DataError, SettingsError
from rnn_train import Checkpoint
from rnn_train.data import Data, DataSource, load_data
from tests.support.commands import Run
from tests.support.idx_files import write_idx_folder
from tests.support.image_folders import write_classes, write_photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images that have nothing of their classes in their names, and an `.npy`."""
    for i in range(4):
        write_photo(tmp_path / "photos" / ("more" if i == 3 else "") / f"{i}.png", seed=i)
    (tmp_path / "photos" / "notes.npy").touch()
    return tmp_path / "photos"


def load(photos: Path, *rows: str, **options: Any) -> Data:
    table = photos.parent / "labels.csv"
    table.write_text("\n".join(rows))
    return load_data(DataSource(data=str(photos), labels=str(table), **options))


def test_a_table_says_the_classes(photos: Path) -> None:
    data = load(photos, "more/3.png,dog", "0.png,dog", "2.png,cat", "1.png,Ant")

    assert data.class_names == ("Ant", "cat", "dog")
    assert [Path(path).name for path in data.train.paths] == ["1.png", "2.png", "0.png", "3.png"]
    assert data.train.labels.tolist() == [0, 1, 2, 2]
    assert (data.validation, data.test) == (None, None)


def test_images_are_those_of_a_folder_per_class(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "photos", count=3)
    paths = sorted(folder.rglob("*.png"))

    data = load(folder, "path,label", *(f"{path},{path.parent.name}" for path in reversed(paths)))

    expected = load_data(DataSource(data=str(folder)))
    assert data.class_names == expected.class_names
    assert data.train.paths == expected.train.paths
    assert np.array_equal(data.train.images, expected.train.images)


def test_what_a_table_does_not_name_is_told(photos: Path) -> None:
    data = load(photos, "0.png,cat", "1.png,dog")

    notes = " ".join(data.notes)
    assert f"{photos}: left out 2 images without a row in {photos.parent}/labels.csv: {photos}/2.png" in notes
    assert f"{photos}: ignored 1 file: 1 .npy" in notes


def test_files_in_folders_of_splits_are_those_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for i in range(2):
            write_photo(tmp_path / "photos" / split / f"{i}.png", seed=i)
    rows = [f"{split}/{i}.png,{'ab'[i]}" for split in ("train", "val", "test") for i in range(2)]

    data = load(tmp_path / "photos", *rows)

    assert data.validation is not None
    assert data.test is not None
    assert [Path(path).parent.name for path in data.validation.paths] == ["val", "val"]
    assert (len(data.train), len(data.test)) == (2, 2)


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (("train", "train", "more"), "labels.csv: line 3: .*2.png is outside train, val and test"),
        (("train", "train", "Test"), "photos: rename Test to test, and in .*labels.csv"),
    ],
)
def test_folders_that_only_look_like_splits_are_refused(tmp_path: Path, folders: tuple[str, ...], problem: str) -> None:
    for i, name in enumerate(folders):
        write_photo(tmp_path / "photos" / name / f"{i}.png", seed=i)

    with pytest.raises(DataError, match=problem):
        load(tmp_path / "photos", *(f"{name}/{i}.png,{'aba'[i]}" for i, name in enumerate(folders)))


def test_folders_named_like_splits_without_train_are_told(tmp_path: Path) -> None:
    for i in range(2):
        write_photo(tmp_path / "photos" / "test" / f"{i}.png", seed=i)

    data = load(tmp_path / "photos", "test/0.png,a", "test/1.png,b")

    assert len(data.train) == 2
    assert any("photos: test used for training, since no row of" in note for note in data.notes)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (("0.png,cat", "4.png,dog"), r"labels\.csv: line 2: there is no file '4\.png' in .*photos"),
        (("0.png,cat", "1.png,cat"), r"labels\.csv: the only label of training images is 'cat'"),
        (("0.png,cat", "notes.npy,dog"), r"1 of 2 images can't be read, the first: .*photos/notes\.npy"),
    ],
)
def test_rows_that_can_not_be_used_are_named(photos: Path, rows: tuple[str, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        load(photos, *rows)


def test_labels_are_only_for_image_files(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(SettingsError, match=r"Leave out `labels`, or add `data`"):
        DataSource(dataset="mnist", labels="labels.csv")
    with pytest.raises(DataError, match=r"a file, and labels are for a folder of image files\. Leave out `labels`"):
        load_data(DataSource(data=str(photos / "0.png"), labels="labels.csv"))
    with pytest.raises(DataError, match=r"there is no file 'x' in"):
        load(write_idx_folder(tmp_path / "idx"), "x,y")


def test_the_command_trains_and_resumes_with_a_table_that_moved(run: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", count=4)
    rows = [f"{path.relative_to(tmp_path / 'photos')},{path.parent.name}" for path in tmp_path.rglob("*.png")]
    (tmp_path / "labels.csv").write_text("\n".join(rows))

    trained = run("rnn-train", "--data", "photos", "--labels", "labels.csv", "--epochs", "1", "--hidden-size", "4")
    (tmp_path / "labels.csv").rename(tmp_path / "table.csv")
    resumed = run("rnn-train", "--resume", "model.pt", "--labels", "table.csv", "--epochs", "2")

    assert trained.returncode == 0, trained.stderr
    assert "photos: 8 training images of 6x5, gray, 2 classes: ant, bee\n" in trained.stderr
    assert resumed.returncode == 0, resumed.stderr
    assert Checkpoint.load(tmp_path / "model.pt").source.labels == "table.csv"
