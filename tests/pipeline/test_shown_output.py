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


@pytest.mark.slow
def test_readme(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write_photos(tmp_path / "photos" / split / name, 4)
    write_photos(tmp_path / "new-photos", 3)

    check_page("README.md", tmp_path)

    assert len((tmp_path / "results.csv").read_text().splitlines()) == 4


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("page", ["inference", "scaling", "exporting", "gpus", "deploying", "several-processes"])
def test_guides(page: str, tmp_path: Path, digits_checkpoint: Path, digits_model: Path, digits_images: Path) -> None:
    shutil.copy(digits_checkpoint, tmp_path / "model.pt")
    shutil.copy(digits_model, tmp_path / "model.onnx")
    shutil.copytree(digits_images, tmp_path / "images")

    check_page(f"guides/{page}.md", tmp_path)


def test_numbers_hashes_and_widths_may_differ_from_what_a_page_shows() -> None:
    shown = "┏━━━┓\n┃ true ┃\n│ 36   │\n36 images, 0.2 s, checkpoint e29986115245\n"
    printed = "┏━━━━━━┓\n┃ true  ┃\n│ .     │\n1,360 images, 12 s, checkpoint 0a1b2c3d4e5f\n"

    assert difference(shown, printed) is None


@pytest.mark.parametrize("printed", ["Wrote model.pt\nmore\n", "Wrote model.onnx\n", "", "Epoch 1\nWrote model.pt\n"])
def test_other_words_and_lines_may_not(printed: str) -> None:
    assert difference("Wrote model.pt\n", printed) is not None


def test_dots_are_any_number_of_lines() -> None:
    assert difference("first\n...\nlast\n", "first\na\nb\nlast\n") is None
    assert difference("first\n...\nlast\n", "first\nlast\n") is None
    assert difference("first\n...\nlast\n", "first\na\n") is not None


def test_a_command_that_fails_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\$ echo before; false"):
        run_at_a_terminal("echo before; false", tmp_path)


def test_what_a_bar_wrote_over_is_gone(tmp_path: Path) -> None:
    assert run_at_a_terminal(r"printf 'bar 1\r\033[2Kbar 2\n\033[1A\r\033[2Kdone\n'", tmp_path) == "done\n"


def test_commands_and_their_output_are_told_apart() -> None:
    block = "$ one\noutput\nmore\n$ two\n$ three \\\n  continued\nend\n"

    assert list(shown_commands(block)) == [
        ("one", "output\nmore\n"),
        ("two", ""),
        ("three \\\n  continued", "end\n"),
    ]


def write_idx(folder: Path, prefix: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
