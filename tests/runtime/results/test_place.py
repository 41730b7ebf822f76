"""Images copied or linked into a folder per predicted class."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rnn_runtime import Classifier
from rnn_runtime.errors import InputError, OutputError
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.place import ImagePlacer
from tests.support.commands import Run
from tests.support.processes import started

CLASSES = ("cat", "dog")
PRINTED = st.characters(exclude_categories=["Cs", "Cc"])


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


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
    result = run("rnn-infer", "-p", "cpu", "-r", "--copy-to", "images/sorted", "--output", "a.csv", "images")

    assert result.stderr.startswith("6 images, ")
    assert len(placed(folder / "images" / "sorted")) == 6


def test_uncertain_and_unreadable_images_are_not_placed(run: Run, folder: Path) -> None:
    (folder / "images" / "broken.png").write_text("no image")

    run("rnn-infer", "-r", "--copy-to", "sorted", "--min-probability", "1", "--output", "a.csv", "images")

    assert not (folder / "sorted").exists()


def test_other_images_of_the_same_name_get_names_that_later_runs_find(tmp_path: Path) -> None:
    placer = ImagePlacer(tmp_path / "sorted", CLASSES)
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x.png").write_text(str(i))
        placer.place(str(tmp_path / str(i) / "x.png"), "cat")
    again = ImagePlacer(tmp_path / "sorted", CLASSES)
    for i in (2, 0, 1):
        again.place(str(tmp_path / str(i) / "x.png"), "cat")

    assert placed(tmp_path / "sorted") == {
        "cat/x.png": b"0",
        "cat/x-6b86b273ff34fce1.png": b"1",
        "cat/x-d4735e3a265e16ee.png": b"2",
    }


def test_threads_that_place_at_once_replace_nothing(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "x.png").write_text(str(i))

    def place(i: int) -> None:
        ImagePlacer(tmp_path / "sorted", CLASSES).place(str(tmp_path / str(i) / "x.png"), "cat")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(place, range(40)))

    assert sorted(placed(tmp_path / "sorted").values()) == sorted(str(i).encode() for i in range(40))


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "sorted" / "cat").mkdir(parents=True)
    (tmp_path / "sorted" / "cat" / "x.png").write_text("mine")
    (tmp_path / "x.png").write_text("image")

    ImagePlacer(tmp_path / "sorted", CLASSES).place(str(tmp_path / "x.png"), "cat")

    assert placed(tmp_path / "sorted") == {
        "cat/x.png": b"mine",
        "cat/x-6105d6cc76af4003.png": b"image",
    }


@settings(max_examples=settings().max_examples // 5)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20), min_size=1, unique=True)
)
def test_any_class_has_a_folder_inside_that_names_it(module_folder: Path, names: list[str]) -> None:
    shutil.rmtree(module_folder / "sorted", ignore_errors=True)
    (module_folder / "x.png").write_text("image")
    try:
        placer, labels = ImagePlacer(module_folder / "sorted", names), FolderEvaluation(names)
    except InputError:
        assume(False)  # two would share a folder
    for name in names:
        placer.place(str(module_folder / "x.png"), name)

    found = sorted(map(str, (module_folder / "sorted").glob("*/x.png")))
    assert sorted(map(str, map(labels.label_of, found))) == sorted(names)


def test_classes_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would share the folder"):
        ImagePlacer(tmp_path / "sorted", ("a/b", "a_b"))


@pytest.mark.parametrize(
    ("name", "problem"), [("a" * 256, "is longer than 255 bytes"), ("\x1b[31mcat", "has control characters")]
)
def test_a_class_whose_name_no_folder_can_have_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"{problem}, so no folder can have its name"):
        ImagePlacer(tmp_path, [name, "dog"])


def test_a_file_system_without_modes_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    (tmp_path / "a.png").write_bytes(b"image")

    ImagePlacer(tmp_path / "sorted", CLASSES).place(str(tmp_path / "a.png"), "cat")

    assert placed(tmp_path / "sorted") == {"cat/a.png": b"image"}


@pytest.mark.parametrize("inputs", ["sorted", "sorted/7", "sorted/7/0.png", "./sorted/../sorted/7"])
def test_inputs_inside_the_folder_are_refused(run: Run, folder: Path, inputs: str) -> None:
    (folder / "sorted" / "7").mkdir(parents=True)
    shutil.copy(folder / "images" / "a" / "0.png", folder / "sorted" / "7")

    result = run("rnn-infer", "-p", "cpu", "-r", "--copy-to", "sorted", "--output", "a.csv", inputs)

    assert result.returncode == 2
    assert result.stderr == (
        f"Error: {inputs}: inside sorted, where images are put, so it isn't classified. Choose another folder\n"
    )
    assert not (folder / "a.csv").exists()


def test_a_run_that_is_interrupted_while_it_copies_leaves_whole_images_and_can_be_resumed(
    run: Run, folder: Path
) -> None:
    arguments = ("rnn-infer", "-p", "cpu", "-r", "-b", "1", "--copy-to", "sorted", "--output", "a.csv")
    with started(*arguments, "images", folder=folder, pause_at="os.link:1.png") as process:
        process.wait_for_pause()
        process.send_signal(signal.SIGINT)
        process.go_on()
        process.communicate(timeout=60)
    between = placed(folder / "sorted")

    result = run(*arguments, "--resume", "images")

    images = sorted(path.read_bytes() for path in (folder / "images").rglob("*.png"))
    assert process.returncode == 130
    assert 0 < len(between) < 6
    assert set(between.values()) <= set(images)
    assert result.returncode == 0
    assert sorted(placed(folder / "sorted").values()) == images


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "sorted").write_text("a file")
    (tmp_path / "x.png").write_text("image")

    with pytest.raises(OutputError, match=r"sorted/cat/x\.png: can't be written: "):
        ImagePlacer(tmp_path / "sorted", CLASSES).place(str(tmp_path / "x.png"), "cat")


def test_a_run_that_cannot_place_an_image_says_what_is_kept(run: Run, folder: Path) -> None:
    (folder / "sorted").mkdir()
    for digit in range(10):
        (folder / "sorted" / str(digit)).write_text("a file")

    result = run("rnn-infer", "-p", "cpu", "-r", "-b", "1", "--copy-to", "sorted", "--output", "a.csv", "images")

    assert result.returncode == 2
    assert "can't be written: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
