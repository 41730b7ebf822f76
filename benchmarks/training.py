"""Training: steps against torch's modules, and `rnn-train` against the article's script, on Fashion-MNIST."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, compare, race_throughput
from rnn_train.recurrent import OnnxruntimeSteps

ROOT = Path(__file__).parents[1]
TRAIN = str(Path(sys.executable).with_name("rnn-train"))
FASHION_MNIST = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
EPOCHS = 2
SEEDS = (0, 1, 2)
# cell, batch, hidden size, layers, directions
NETS = (
    ("rnn", 100, 128, 2, 1),
    ("gru", 128, 128, 2, 1),
    ("rnn", 16, 32, 1, 1),
    ("gru", 16, 32, 1, 1),
    ("gru", 128, 128, 1, 2),
    ("rnn", 128, 256, 2, 1),
    ("gru", 128, 256, 2, 1),
    ("rnn", 64, 512, 1, 1),
    ("gru", 512, 128, 2, 1),
)


def run() -> Iterator[Row]:
    """Steps on one thread and on all, and whole runs."""
    threads = torch.get_num_threads()
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            yield from map(_step, NETS)
    finally:
        torch.set_num_threads(threads)
    yield from _whole_runs()


def _step(net: tuple[str, int, int, int, int]) -> Row:
    """Forward and backward through the recurrent net, for images of 28x28."""
    cell, batch, hidden_size, layers, directions = net
    kind: Callable[..., nn.RNNBase] = {"rnn": nn.RNN, "gru": nn.GRU}[cell]
    module = kind(28, hidden_size, layers, batch_first=True, bidirectional=directions == 2)
    images, steps = torch.rand(batch, 28, 28), OnnxruntimeSteps(module)

    def ours() -> None:
        with steps.threads():
            _go_back(steps(images))

    def stock() -> None:
        _go_back(module(images)[0][:, -1])

    rounds = race_throughput({"ours": ours, "torch's module": stock}, batch, rounds=7)
    shape = f"{layers} x {hidden_size}{', bidirectional' if directions == 2 else ''}"
    what = f"a step of training, {cell} {shape}, batch {batch}, {torch.get_num_threads()} threads"
    return compare(what, "images/s", rounds, "torch's module", target=1.0)


def _go_back(outputs: Tensor) -> None:
    outputs.backward(torch.ones_like(outputs))  # type: ignore[no-untyped-call]


def _whole_runs() -> Iterator[Row]:
    """Images a second, and on stderr the accuracies, which chance decides; nothing where Fashion-MNIST isn't."""
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
    for name, found in accuracies.items():
        print(f"{name}: " + ", ".join(f"{100 * accuracy:.1f} %" for accuracy in found), file=sys.stderr)


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
