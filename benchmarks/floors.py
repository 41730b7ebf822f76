"""The least time that a small PNG file can take on one core: reading, inflating, products and writing, each alone.

Run it as a process of its own on one core: `taskset -c 0 python -m benchmarks.floors FOLDER RESULTS` prints
microseconds per file, as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from benchmarks import product_limit
from benchmarks.product_limit import MFLOP_AN_IMAGE

ROUNDS = 3


def measure(folder: Path, results: Path, core: int) -> dict[str, float]:
    """Microseconds per file and part, on one core, for a folder of PNG files and the results that it gives."""
    line = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.floors", str(folder), str(results)]
    printed = subprocess.run(line, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True).stdout
    return json.loads(printed)  # type: ignore[no-any-return]


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    content = os.read(descriptor, 1 << 20)
    os.close(descriptor)
    return content


def _compressed(content: bytes) -> bytes:
    """The image data of a PNG file: what its IDAT chunks hold."""
    found, place = b"", 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"IDAT":
            found += content[place + 8 : place + 8 + length]
        place += length + 12
    return found


def _best_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print the floors for a folder of PNG files and a file of results."""
    paths = [entry.path for entry in os.scandir(sys.argv[1])]
    contents = [_read(path) for path in paths]
    streams = [_compressed(content) for content in contents]
    text = Path(sys.argv[2]).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        seconds = {
            "reading": _best_seconds(lambda: [_read(path) for path in paths]),
            "inflating": _best_seconds(lambda: [zlib.decompress(stream) for stream in streams]),
            "writing": _best_seconds(lambda: Path(folder, "written").write_bytes(text)),
        }
    floors = {name: value / len(paths) * 1e6 for name, value in seconds.items()}
    print(json.dumps(floors | {"products": MFLOP_AN_IMAGE * 1e3 / product_limit.measure(256)}))


if __name__ == "__main__":
    main()
