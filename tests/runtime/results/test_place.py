"""Images copied or linked into a folder per predicted class."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime import Classifier
from rnn_runtime.errors import OutputError
from rnn_runtime.results.place import ImagePlacer, class_folder
from tests.support.commands import Run


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder: model.onnx, and images/a and images/b with three digits each, of the same names."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    paths = sorted(digits_images.rglob("*.png"))[::60]
    for i, path in enumerate(paths[:6]):
        target = tmp_path / "images" / "ab"[i % 2] / f"{i // 2}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def placed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["--copy-to", "--link-to"])
def test_each_image_gets_into_the_folder_of_its_class(run: Run, folder: Path, option: str) -> None:
    result = run("rnn-infer", "-r", option, "sorted", "--output", "a.csv", "images")

    expected = []
    for prediction in Classifier(folder / "model.onnx", provider="cpu").predict((folder / "images").rglob("*.png")):
        expected.append((prediction.label, Path(str(prediction.path)).read_bytes()))
    assert result.returncode == 0
    assert sorted(expected) == sorted((name.split("/")[0], data) for name, data in placed(folder / "sorted").items())
    assert all(path.is_symlink() == (option == "--link-to") for path in (folder / "sorted").rglob("*.png"))


@pytest.mark.parametrize("option", ["--copy-to", "--link-to"])
def test_a_second_run_finds_the_images_there(run: Run, folder: Path, option: str) -> None:
    run("rnn-infer", "-r", option, "sorted", "--output", "a.csv", "images")
    before = placed(folder / "sorted")

    run("rnn-infer", "-r", option, "sorted", "--output", "a.csv", "images")

    assert placed(folder / "sorted") == before


def test_images_in_the_folder_itself_are_not_classified(run: Run, folder: Path) -> None:
    run("rnn-infer", "-r", "--copy-to", "images/sorted", "--output", "a.csv", "images")
    result = run("rnn-infer", "-r", "--copy-to", "images/sorted", "--output", "a.csv", "images")

    assert result.stderr.startswith("6 images, ")
    assert len(placed(folder / "images" / "sorted")) == 6


def test_uncertain_and_unreadable_images_are_not_placed(run: Run, folder: Path) -> None:
    (folder / "images" / "broken.png").write_text("no image")

    run("rnn-infer", "-r", "--copy-to", "sorted", "--min-probability", "1", "--output", "a.csv", "images")

    assert not (folder / "sorted").exists()


def test_other_images_of_the_same_name_get_numbers(tmp_path: Path) -> None:
    placer = ImagePlacer(tmp_path / "sorted")
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x.png").write_text(str(i))
        placer.place(str(tmp_path / str(i) / "x.png"), "cat")
    again = ImagePlacer(tmp_path / "sorted")
    for i in (2, 0, 1):
        again.place(str(tmp_path / str(i) / "x.png"), "cat")

    assert placed(tmp_path / "sorted") == {"cat/x.png": b"0", "cat/x-2.png": b"1", "cat/x-3.png": b"2"}


def test_threads_that_place_at_once_replace_nothing(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x.png").write_text(str(i))

    def place(i: int) -> None:
        ImagePlacer(tmp_path / "sorted").place(str(tmp_path / str(i) / "x.png"), "cat")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(place, range(40)))

    assert sorted(placed(tmp_path / "sorted").values()) == sorted(str(i).encode() for i in range(40))


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "sorted" / "cat").mkdir(parents=True)
    (tmp_path / "sorted" / "cat" / "x.png").write_text("mine")
    (tmp_path / "x.png").write_text("image")

    ImagePlacer(tmp_path / "sorted").place(str(tmp_path / "x.png"), "cat")

    assert placed(tmp_path / "sorted") == {"cat/x.png": b"mine", "cat/x-2.png": b"image"}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.text(max_size=40))
def test_class_names_become_different_safe_folder_names(name: str, other: str) -> None:
    folder = class_folder(name)

    assert folder not in ("", ".", "..")
    assert "/" not in folder
    assert "\0" not in folder
    assert (class_folder(other) == folder) == (name == other)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "sorted").write_text("a file")
    (tmp_path / "x.png").write_text("image")

    with pytest.raises(OutputError, match=r"sorted/cat/x\.png: can't be written: "):
        ImagePlacer(tmp_path / "sorted").place(str(tmp_path / "x.png"), "cat")


def test_a_run_that_cannot_place_an_image_says_what_is_kept(run: Run, folder: Path) -> None:
    (folder / "sorted").mkdir()
    for digit in range(10):
        (folder / "sorted" / str(digit)).write_text("a file")

    result = run("rnn-infer", "-r", "-b", "1", "--copy-to", "sorted", "--output", "a.csv", "images")

    assert result.returncode == 2
    assert "can't be written: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
