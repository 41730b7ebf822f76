"""The script that compares a folder of images with Pillow, file by file."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.collection import compare_folder, describe


def test_each_file_is_in_one_row_of_the_report(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    (tmp_path / "below").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "below" / "b.bmp")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")  # Pillow clips it to 8 bits
    Image.new("F", (8, 8)).save(tmp_path / "float.tif")
    (tmp_path / "text.png").write_text("no image")

    found = compare_folder(tmp_path)

    assert found.equal == 2
    assert list(found.differences) == [str(tmp_path / "deep.png")]
    assert list(found.refused.values()) == [[str(tmp_path / "float.tif")]]
    assert list(found.neither.values()) == [[str(tmp_path / "text.png")]]
    report = list(describe(found))
    assert report[0] == "2 files have Pillow's pixels"
    assert "1 files are refused here, and read by Pillow" in report
    assert f"  1: not an image in a supported format, or damaged ({tmp_path / 'text.png'})" in report
