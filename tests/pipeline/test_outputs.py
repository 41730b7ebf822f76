"""Where commands may write: never over somebody's images, nor through links that others may have planted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rnn_runtime import Classifier, RunOptions, classify_files, find_images
from rnn_runtime.errors import InputError
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run
from tests.support.idx_files import write_idx_folder


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """model.onnx, model.pt, data/ to train on, and images/ with digits."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    random_checkpoint(ModelSpec(ImageSpec(8, 8, 1), ("a", "b"), hidden_size=4)).save(tmp_path / "model.pt")
    write_idx_folder(tmp_path / "data")
    (tmp_path / "images").mkdir()
    for i, path in enumerate(sorted(digits_images.rglob("*.png"))[:3]):
        shutil.copy(path, tmp_path / "images" / f"{i}.PNG")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        ("rnn-infer", "-p", "cpu", "--output", "images/1.PNG", "--format", "csv", "images"),
        ("rnn-infer", "-p", "cpu", "--output", "results.csv", "--summary", "images/1.PNG", "images"),
        ("rnn-infer", "-p", "cpu", "--output", "images/new.jpeg", "--format", "jsonl", "images"),
        ("rnn-train", "--data", "data", "--epochs", "1", "--no-plots", "--output", "images/1.PNG"),
        ("rnn-export", "model.pt", "images/1.PNG"),
    ],
)
def test_no_command_writes_to_a_file_that_is_named_like_an_image(run: Run, folder: Path, line: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    result = run(*line)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "Choose " in result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_nor_does_the_library(folder: Path) -> None:
    classifier, images = Classifier(folder / "model.onnx", "cpu"), folder / "images"

    with pytest.raises(InputError, match="named like an image"):
        classify_files(classifier, find_images([str(images)]), images / "1.PNG", RunOptions(format="csv"))


OTHER = 12345  # a user's id
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
LINES = {
    "results.csv": ("rnn-infer", "-p", "cpu", "--output", "results.csv", "images"),
    "summary.json": ("rnn-infer", "-p", "cpu", "--summary", "summary.json", "images"),
    "new.pt": ("rnn-train", "--data", "data", "--epochs", "1", "--no-plots", "--output", "new.pt"),
    "new.onnx": ("rnn-export", "model.pt", "new.onnx"),
    "sorted/7": ("rnn-infer", "-p", "cpu", "--copy-to", "sorted", "images"),
}


@as_root
@pytest.mark.parametrize("name", LINES)
def test_another_users_link_is_not_followed(run: Run, folder: Path, name: str) -> None:
    if name == "sorted/7":
        for label in "0123456789":
            plant(folder / "sorted" / label, folder / "precious")
        (folder / "precious").mkdir()
    else:
        (folder / "precious").write_text("mine")
        plant(folder / "between", folder / "precious")
        (folder / name).symlink_to(folder / "between")  # one's own link, which leads to another user's

    result = run(*LINES[name])

    assert result.returncode != 0
    assert "it is another user's link, which isn't followed" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    precious = folder / "precious"
    assert not list(precious.iterdir()) if precious.is_dir() else precious.read_text() == "mine"


def plant(link: Path, target: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    os.lchown(link, OTHER, OTHER)


@pytest.mark.parametrize("name", ["results.csv", "new.pt", "new.onnx"])
def test_ones_own_link_is_followed(run: Run, folder: Path, name: str) -> None:
    (folder / "elsewhere").mkdir()
    (folder / name).symlink_to(Path("elsewhere") / "file")

    result = run(*LINES[name])

    assert result.returncode == 0, result.stderr
    assert (folder / name).is_symlink()
    assert (folder / "elsewhere" / "file").stat().st_size > 0


def second_name(path: Path) -> None:
    """Give somebody's file this name, too."""
    mine = path.with_name("mine")
    mine.touch()
    os.link(mine, path)


@pytest.mark.parametrize("make", [second_name, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize(
    ("beside", "name"),
    [("results.csv.part", "results.csv"), ("results.csv.part.json", "results.csv"), (".rnn-train.lock", "new.pt")],
)
def test_what_is_planted_beside_an_output_is_neither_opened_nor_waited_for(
    run: Run, folder: Path, beside: str, name: str, make: Callable[[Path], None]
) -> None:
    make(folder / beside)

    result = run(*LINES[name])

    assert "Traceback" not in result.stderr
    if beside.endswith(".json") and make is not Path.mkdir:  # replaced, and not opened
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert not (folder / name).exists()
    assert not (folder / "mine").exists() or (folder / "mine").stat().st_size == 0
