"""Commands and Python code on the pages run as they are there, and print what the pages show."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from tests.support.idx_files import idx_bytes
from tests.support.pages import blocks
from tests.support.shown_output import difference, run_at_a_terminal, shown_commands

pytestmark = pytest.mark.slow


def check_page(page: str, folder: Path) -> None:
    """Run a page's `console` and `python` blocks in their order, in one folder."""
    for block in blocks(page):
        if block.language == "console":
            for command, shown in shown_commands(block.code):
                printed = run_at_a_terminal(command, folder)
                # Nothing is shown where the output isn't the point.
                problem = difference(shown, printed) if shown else None
                assert problem is None, f"{page}: $ {command}\n{problem}"
        elif block.language == "python":
            (folder / "page.py").write_text(block.code)
            printed = run_at_a_terminal("python page.py", folder)
            problem = difference(block.output or "", printed)
            assert problem is None, f"{page}: {problem}"


def write_photos(folder: Path, count: int) -> None:
    """Write color photos of several sizes into a folder, or into a folder per class."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (70 + i, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")


def test_readme(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write_photos(tmp_path / "photos" / split / name, 4)
    write_photos(tmp_path / "new-photos", 3)

    check_page("README.md", tmp_path)

    assert len((tmp_path / "results.csv").read_text().splitlines()) == 4


def test_tutorial(tmp_path: Path) -> None:
    # What torchvision finds there it doesn't download: digits of scikit-learn, enlarged, instead of MNIST's.
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = load_digits()
    images = np.kron(digits.images * (255 / 16), np.ones((3, 3))).astype(np.uint8)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[7:]  # the first is a 7, as in MNIST's test images
    labels = digits.target.astype(np.uint8)[7:]
    write_idx(raw, "train", np.tile(images[400:], (8, 1, 1)), np.tile(labels[400:], 8))
    write_idx(raw, "t10k", np.tile(images[:400], (3, 1, 1)), np.tile(labels[:400], 3))

    check_page("tutorial.md", tmp_path)

    assert (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("page", ["inference", "scaling", "exporting", "gpus", "deploying"])
def test_guides(page: str, tmp_path: Path, digits_checkpoint: Path, digits_model: Path, digits_images: Path) -> None:
    shutil.copy(digits_checkpoint, tmp_path / "model.pt")
    shutil.copy(digits_model, tmp_path / "model.onnx")
    shutil.copytree(digits_images, tmp_path / "images")

    check_page(f"guides/{page}.md", tmp_path)


def write_idx(folder: Path, prefix: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
