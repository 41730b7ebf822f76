"""What several tests of results start from."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, digits_model: Path, digits_images: Path) -> Path:
    """A working folder: model.onnx, and images/ with 40 digits and a file that is none."""
    shutil.copy(digits_model, tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for i, path in enumerate(sorted(digits_images.rglob("*.png"))[::9]):
        shutil.copy(path, tmp_path / "images" / f"{i:03}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    return tmp_path
