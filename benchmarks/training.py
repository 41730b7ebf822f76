"""`rnn-train` with the article's settings against the article's script, on Fashion-MNIST."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, compare

ROOT = Path(__file__).parents[1]
TRAIN = str(Path(sys.executable).with_name("rnn-train"))
FASHION_MNIST = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
EPOCHS = 2
SEEDS = (0, 1, 2)


def run() -> Iterator[Row]:
    """Images a second, and how far the accuracies are apart; nothing where Fashion-MNIST isn't."""
    if not FASHION_MNIST.is_dir():
        print(f"Left out, since there is no {FASHION_MNIST}: training", file=sys.stderr)
        return
    speeds: dict[str, list[float]] = {"ours": [], "article's script": []}
    accuracies: dict[str, list[float]] = {"ours": [], "article's script": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lay_out_for_torchvision(folder / "data")
        for seed in SEEDS:
            for contestant, (speed, accuracy) in (
                ("ours", _ours(folder, seed)),
                ("article's script", _article(folder / "data", seed)),
            ):
                speeds[contestant].append(speed)
                accuracies[contestant].append(accuracy)
    yield compare("training, the article's settings", "images/s", speeds, "article's script", target=2.5)
    mine, theirs = (100 * statistics.mean(accuracies[name]) for name in ("ours", "article's script"))
    for name, found in accuracies.items():
        print(f"{name}: " + ", ".join(f"{100 * accuracy:.1f} %" for accuracy in found), file=sys.stderr)
    apart = abs(mine - theirs)
    what = f"training, mean accuracy over {len(SEEDS)} seeds, {mine:.1f} and {theirs:.1f} %, apart"
    yield compare(what, "points", {"ours": [max(apart, 1e-3)], "1.5 points": [1.5]}, "1.5 points", target=1.0)


def _lay_out_for_torchvision(root: Path) -> None:
    import gzip

    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in FASHION_MNIST.glob("*.gz"):
        with gzip.open(path) as source, (raw / path.stem).open("wb") as target:
            shutil.copyfileobj(source, target)


def _ours(folder: Path, seed: int) -> tuple[float, float]:
    command = [TRAIN, "--dataset", "fashion-mnist", "--data", str(FASHION_MNIST), "--no-plots", "--seed", str(seed)]
    result = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    found = re.search(r"Accuracy of the network on the 10000 test images: ([\d.]+) %", result.stdout)
    assert found, result.stdout
    _, *epochs = (folder / "metrics.csv").read_text().splitlines()
    seconds = sum(float(line.split(",")[-2]) for line in epochs)
    return EPOCHS * 60_000 / seconds, float(found[1]) / 100


def _article(root: Path, seed: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.peers.article", str(root), str(seed), str(EPOCHS)]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(result.stdout)
    return EPOCHS * 60_000 / found["seconds"], found["accuracy"]
