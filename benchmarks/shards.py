"""200,000 small files by one `rnn-infer`, by shards, and by Ray, on one machine."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Row, compare, race_once
from benchmarks.models import make_peers
from rnn_runtime.model.spec import ImageSpec

FILES, DISTINCT = 200_000, 4_000
_INFER = str(Path(sys.executable).with_name("rnn-infer"))
_TOOLS = str(Path(sys.executable).with_name("rnn-onnx"))
_RAY = [_TOOLS, "ray", "--provider", "cpu", "--shards", "8", "--quiet", "-o", "parts"]


def run() -> Iterator[Row]:
    """Seconds from the start of the first process to the one file with all results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_peers(folder, "rnn", ImageSpec(28, 28, 1))  # with model.onnx
        _write_images(folder / "images")
        shards = f"seq 8 | xargs -P 2 -I K {_INFER} -q -p cpu -j 1 --shard K/8 -o parts images"
        merge = f"{_TOOLS} merge -q parts -o merged.csv"
        rounds = race_once(
            {
                "rnn-infer": _timed(folder, f"{_INFER} -q -p cpu -o single.csv images", "single.csv"),
                "8 shards by xargs": _timed(folder, f"{shards} && {merge}", "merged.csv"),
                "Ray": _timed(folder, f"{' '.join(_RAY)} images && {merge}", "merged.csv"),
            },
            rounds=3,
        )
        for peer in list(rounds)[1:]:
            yield compare(f"{FILES:,} PNG of 28 x 28, one rnn-infer", "s", rounds, peer, ours="rnn-infer")


def _write_images(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(FILES):
        path = folder / f"{i:06}.png"
        if i < DISTINCT:
            Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(path)
        else:
            os.link(folder / f"{i % DISTINCT:06}.png", path)


def _timed(folder: Path, command: str, output: str) -> Callable[[], float]:
    def run_once() -> float:
        shutil.rmtree(folder / "parts", ignore_errors=True)
        start = time.perf_counter()
        subprocess.run(["bash", "-c", command], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        with (folder / output).open() as file:
            assert sum(1 for _ in file) == FILES + 1
        return seconds

    return run_once
