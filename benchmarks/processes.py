"""Whole processes: `rnn-infer` on folders of files, start-up, memory, and the size of a deployment."""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import floors
from benchmarks.measure import Row, compare, race_once
from benchmarks.models import make_peers, smooth_pictures
from rnn_runtime.cores import usable_cores
from rnn_runtime.model.spec import ImageSpec

ROOT = Path(__file__).parents[1]
INFER = str(Path(sys.executable).with_name("rnn-infer"))
SMALL, LARGE = 10_000, 2_000  # images in a folder
DISTINCT = 50_000  # images that are all different
MANY_FILES, FEW_FILES = 100_000, 1_000


def run() -> Iterator[Row]:
    """All comparisons of this module."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peers = make_peers(folder, "rnn", ImageSpec(28, 28, 1))
        (folder / "dynamo.onnx").write_bytes(peers.dynamo)
        torch.save(peers.network.state_dict(), folder / "weights.pt")
        yield from _small_images(folder)
        yield from _all_cores(folder)
        yield from _large_images(folder)
        yield from _start_up(folder)
        yield from _memory(folder)
    yield _installed_size()


def process(*command: object, cwd: Path = ROOT) -> Callable[[], float]:
    """A function that runs a command and gives its seconds."""

    def timed() -> float:
        start = time.perf_counter()
        subprocess.run([str(word) for word in command], cwd=cwd, check=True, capture_output=True)
        return time.perf_counter() - start

    return timed


def _infer(folder: Path, images: str) -> Callable[[], float]:
    model, output = folder / "model.onnx", folder / "ours.csv"
    return process(INFER, "--provider", "cpu", "--model", model, "--output", output, folder / images)


def _small_images(folder: Path) -> Iterator[Row]:
    write_images(folder / "small", SMALL, (28, 28, 1), ".png")
    rounds = race_once(
        {
            "ours": _infer(folder, "small"),
            "Pillow + onnxruntime": _peer("pillow_onnxruntime", folder / "dynamo.onnx", folder),
            "DataLoader + PyTorch": _peer("torch_dataloader", folder / "weights.pt", folder),
            "decoding only": process(sys.executable, "-m", "benchmarks.peers.decode_only", folder / "small"),
        }
    )
    what = f"rnn-infer, {SMALL:,} PNG files of 28 x 28"
    yield compare(what, "s", rounds, "Pillow + onnxruntime", target=6.0)
    yield compare(what, "s", rounds, "DataLoader + PyTorch", target=10.0)
    yield compare(what, "s", rounds, "decoding only")


def _all_cores(folder: Path) -> Iterator[Row]:
    if usable_cores() < 2:
        print("Left out, since there is one core: all cores against one", file=sys.stderr)
        return
    write_images(folder / "distinct", DISTINCT, (28, 28, 1), ".png")
    first = str(min(os.sched_getaffinity(0)))
    line = (INFER, "-p", "cpu", "-m", folder / "model.onnx", "-o", folder / "ours.csv", folder / "distinct")
    rounds = race_once({"ours": process(*line), "one core": process("taskset", "-c", first, *line)})
    what = f"rnn-infer, {DISTINCT:,} PNG files of 28 x 28, {usable_cores()} cores"
    yield compare(what, "s", rounds, "one core", target=1.75 if usable_cores() == 2 else None)
    yield _above_the_floors(folder, ("taskset", "-c", first, *line), int(first))


def _above_the_floors(folder: Path, line: tuple[object, ...], core: int) -> Row:
    summary = folder / "summary.json"
    run = process(*line, "--summary", summary)

    def ours() -> float:
        run()
        return float(json.loads(summary.read_text())["seconds"]) / DISTINCT * 1e6

    def least() -> float:
        parts = floors.measure(folder / "distinct", folder / "ours.csv", core)
        print("floors, in microseconds per file:", json.dumps(parts), file=sys.stderr)
        return sum(parts.values())

    rounds = race_once({"ours": ours, "the sum of the floors": least}, rounds=3)
    what = f"rnn-infer, a PNG file of 28 x 28 of {DISTINCT:,}, one core"
    return compare(what, "microseconds", rounds, "the sum of the floors", target=1 / 1.3)


def _peer(name: str, model: Path, folder: Path) -> Callable[[], float]:
    return process(sys.executable, "-m", f"benchmarks.peers.{name}", model, folder / "small", folder / f"{name}.csv")


def _large_images(folder: Path) -> Iterator[Row]:
    write_images(folder / "large", LARGE, (480, 640, 3), ".jpg")
    rounds = race_once(
        {
            "ours": _infer(folder, "large"),
            "decoding only": process(sys.executable, "-m", "benchmarks.peers.decode_only", folder / "large"),
        }
    )
    yield compare(f"rnn-infer, {LARGE:,} JPEG files of 640 x 480", "s", rounds, "decoding only", target=1 / 1.25)


def _start_up(folder: Path) -> Iterator[Row]:
    write_images(folder / "one", 1, (28, 28, 1), ".png")
    rounds = race_once(
        {
            "ours": _infer(folder, "one"),
            "import torch": process(sys.executable, "-c", "import torch"),
            "--help": process(INFER, "--help"),
            "python -c pass": process(sys.executable, "-c", "pass"),
        },
        rounds=9,
    )
    yield compare("rnn-infer, one image", "s", rounds, "import torch", target=6.0)
    yield compare("rnn-infer --help", "s", rounds, "python -c pass", ours="--help")
    more = [late - early for late, early in zip(rounds["--help"], rounds["python -c pass"], strict=True)]
    allowed = {"ours": more, "0.15 s more": [0.15] * len(more)}
    yield compare("rnn-infer --help, over python -c pass", "s", allowed, "0.15 s more", target=1.0)


def _memory(folder: Path) -> Iterator[Row]:
    write_images(folder / "few", FEW_FILES, (28, 28, 1), ".png")
    (folder / "many").mkdir()
    sources = sorted((folder / "few").iterdir())
    for i in range(MANY_FILES):
        os.link(sources[i % FEW_FILES], folder / "many" / f"{i:06}.png")

    def peak(images: str) -> Callable[[], float]:
        command = [INFER, "--provider", "cpu", "--model", folder / "model.onnx", folder / images]

        def measured() -> float:
            # in a process of its own: the peak of finished children is that of the largest ever
            code = (
                "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=False,"
                "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            result = subprocess.run(
                [sys.executable, "-c", code, *map(str, command)], check=True, capture_output=True, text=True
            )
            return int(result.stdout) / 1024

        return measured

    rounds = race_once({"ours": peak("many"), "1,000 files": peak("few")}, rounds=3)
    yield compare(f"rnn-infer, peak memory, {MANY_FILES:,} files", "MiB", rounds, "1,000 files", target=1 / 1.15)


def _installed_size() -> Row:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "before", with_pip=True)
        venv.create(folder / "after", with_pip=True)
        python = folder / "after" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{ROOT}[cpu]"], check=True)
        mega_bytes = (_size(folder / "after") - _size(folder / "before")) / 1e6
    rounds = {"ours": [mega_bytes], "220 MB": [220.0]}
    return compare("deployment, installed size", "MB", rounds, "220 MB", target=1.0)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def write_images(folder: Path, count: int, shape: tuple[int, int, int], suffix: str) -> None:
    """Files of `smooth_pictures`."""
    folder.mkdir()
    for i, image in enumerate(smooth_pictures(count, shape)):
        image.save(folder / f"{i:05}{suffix}")
