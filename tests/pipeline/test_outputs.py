"""Where commands may write: never over somebody's images."""

import shutil
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
