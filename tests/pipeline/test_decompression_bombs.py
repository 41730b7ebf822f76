"""What files that claim far more than they hold may take: the memory of processes that read them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.commands import RunProcess
from tests.support.hostile_images import BOMBS, SIDE
from tests.support.results import read_results

pytestmark = pytest.mark.slow

# The memory that a process has used at most; other than ru_maxrss it doesn't begin with that of its parent.
MEASURE = """
import sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

"""
# Decodes each file whose name comes in, in a process of its own that has imported everything and decoded nothing.
DECODE = """
import os
from rnn_runtime.images.decode import decode_image, image_shape
from rnn_runtime.errors import ImageError
from rnn_runtime.model.spec import ImageSpec

def decode(path):
    data = Path(path).read_bytes()
    before, said = peak(), []
    for function in (lambda: decode_image(data, ImageSpec(28, 28, 3)).pixels.shape, lambda: image_shape(data)):
        try:
            said.append(str(function()))
        except ImageError as error:
            said.append(str(error))
    print(peak() - before, *said, sep="\\t", flush=True)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            decode(line.removesuffix("\\n"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    print(flush=True)
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


class Decoder:
    """A process that decodes files, each in a fork of its own, and tells how much memory that took."""

    def __init__(self) -> None:
        line = [sys.executable, "-c", MEASURE + DECODE]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def decode(self, path: Path) -> tuple[int, str, str]:
        """KiB that decoding took at most, what it gave or said, and the same of the shape."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().removesuffix("\n")
        assert answer, "it died of this file"
        assert self._process.stdout.readline() == "\n"
        grown_kib, decoded, shape = answer.split("\t")
        return int(grown_kib), decoded, shape

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.end()


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory(decoder: Decoder, tmp_path: Path, name: str) -> None:
    make, problem = BOMBS[name]
    (tmp_path / name).write_bytes(make())

    grown_kib, decoded, _ = decoder.decode(tmp_path / name)

    assert decoded == (problem or "(28, 28, 3)")
    assert grown_kib < 200_000


def test_a_folder_of_bombs_takes_little_memory(run_process: RunProcess, tmp_path: Path, digits_model: Path) -> None:
    for name, (make, _) in BOMBS.items():
        (tmp_path / name).write_bytes(make())

    arguments = ("--model", digits_model, "--provider", "cpu", "--output", "out.csv", tmp_path)
    *_, peak_kib = run_process("python", "-c", MEASURE + INFER, *arguments).stdout.splitlines()

    rows = {Path(row["path"]).name: row["error"] for row in read_results(tmp_path / "out.csv")}
    assert rows == {name: problem or "" for name, (_, problem) in BOMBS.items()}
    assert int(peak_kib) < 500_000


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
    decoder: Decoder, tmp_path: Path, style: str, mode: str, options: dict[str, Any]
) -> None:
    image = Image.new("I;16", (SIDE, SIDE)) if mode == "I;16" else Image.new(mode, (SIDE, SIDE))
    image.save(tmp_path / "large", style, **options)

    grown_kib, decoded, shape = decoder.decode(tmp_path / "large")

    assert decoded == "(28, 28, 3)"
    assert shape.startswith(f"({SIDE}, {SIDE}, ")
    assert grown_kib < 1.1 * (1 << 20)
    (tmp_path / "large").unlink()
