"""What files that claim far more than they hold may take: the memory of processes that read them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.hostile_images import BOMBS, SIDE
from tests.support.results import read_results

# The memory that a process has used at most; other than ru_maxrss it doesn't begin with that of its parent.
MEASURE = """
import sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

"""
DECODE = """
from rnn_runtime.images.decode import decode_image, image_shape
from rnn_runtime.errors import ImageError
from rnn_runtime.model.spec import ImageSpec

data = Path(sys.argv[1]).read_bytes()
before, said = peak(), []
for function in (lambda: decode_image(data, ImageSpec(28, 28, 3)).shape, lambda: image_shape(data)):
    try:
        said.append(str(function()))
    except ImageError as error:
        said.append(str(error))
print(peak() - before, *said, sep="\\n")
"""
INFER = """
from rnn_runtime.cli import main

try:
    main(sys.argv[1:])
finally:
    print(peak())
"""

_TURNED = Image.Exif()
_TURNED[0x0112] = 6  # by 90 degrees clockwise to view


def measure(program: str, *arguments: object) -> list[str]:
    line = [sys.executable, "-c", MEASURE + program, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120).stdout.splitlines()


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory(tmp_path: Path, name: str) -> None:
    make, problem = BOMBS[name]
    (tmp_path / name).write_bytes(make())

    grown_kib, decoded, _ = measure(DECODE, tmp_path / name)

    assert decoded == (problem or "(28, 28, 3)")
    assert int(grown_kib) < 200_000


def test_a_folder_of_bombs_takes_little_memory(tmp_path: Path, digits_model: Path) -> None:
    for name, (make, _) in BOMBS.items():
        (tmp_path / name).write_bytes(make())

    *_, peak_kib = measure(
        INFER, "--model", digits_model, "--provider", "cpu", "--output", tmp_path / "out.csv", tmp_path
    )

    rows = {Path(row["path"]).name: row["error"] for row in read_results(tmp_path / "out.csv")}
    assert rows == {name: problem or "" for name, (_, problem) in BOMBS.items()}
    assert int(peak_kib) < 500_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "mode", "options"),
    [
        ("PNG", "RGBA", {"exif": _TURNED}),
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "I;16", {}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("PPM", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
    ],
)
def test_the_largest_images_take_about_a_gigabyte_at_most(
    tmp_path: Path, style: str, mode: str, options: dict[str, Any]
) -> None:
    image = Image.new("I;16", (SIDE, SIDE)) if mode == "I;16" else Image.new(mode, (SIDE, SIDE))
    image.save(tmp_path / "large", style, **options)

    grown_kib, decoded, shape = measure(DECODE, tmp_path / "large")

    assert decoded == "(28, 28, 3)"
    assert shape.startswith(f"({SIDE}, {SIDE}, ")
    assert int(grown_kib) < 1.1 * (1 << 20)
    (tmp_path / "large").unlink()
