"""This version of the code against that of another commit: what is quick to measure, in less than three minutes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.measure import Row, Value, compare, race_once
from benchmarks.processes import write_images

ROOT = Path(__file__).parents[1]
SMALL = 10_000  # images in a folder
BATCHES = (1, 64, 1024)
PRESETS = ("article", "accurate")
EPOCHS = 15  # of digits; the median is of no epoch that opens sessions or in which Python collects garbage
SPEED_ROUNDS = 4

_INFER = "from rnn_runtime.cli import main; main()"
_EXPORT = """
import sys
from pathlib import Path
from benchmarks.models import make_peers
from rnn_runtime.model.spec import ImageSpec

make_peers(Path(sys.argv[1]), "rnn", ImageSpec(28, 28, 1))
"""
_MODEL = """
import json, sys, time
import numpy as np
from rnn_runtime import Classifier

classifier, speeds = Classifier(sys.argv[1], "cpu"), []
for batch in map(int, sys.argv[2:]):
    images = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
    for seconds in (0.2, 0.8):  # the first to warm up
        runs, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            classifier.predict_proba(images)
            runs += 1
    speeds.append(runs * batch / elapsed)
print(json.dumps(speeds))
"""
_TRAIN = """
import json, statistics, sys
from dataclasses import replace
from rnn_train import DataSource, train
from rnn_train.settings import preset_settings

speeds = []
for preset in sys.argv[3:]:
    settings = replace(preset_settings(preset), epochs=int(sys.argv[2]))
    result = train(DataSource(dataset="digits"), settings, sys.argv[1], device="cpu", plots=False)
    speeds.append(statistics.median(row["images_per_second"] for row in result.checkpoint.metrics["epochs"]))
print(json.dumps(speeds))
"""


def run(commit: str) -> Iterator[Row]:
    """Whole runs of `rnn-infer` and `rnn-train`, and the model on arrays."""
    with tempfile.TemporaryDirectory() as name, checked_out(commit) as tree:
        folder = Path(name)
        write_images(folder / "small", SMALL, (28, 28, 1), ".png")
        write_images(folder / "one", 1, (28, 28, 1), ".png")
        trees = {"ours": ROOT, commit: tree}
        models = {who: folder / who.replace("/", "-") for who in trees}
        for who, where in trees.items():  # each version exports its own model: an old one may not read a new one's
            models[who].mkdir()
            _run(where, "-c", _EXPORT, models[who])

        def race(run: Callable[[Path, Path], Value], rounds: int) -> dict[str, list[Value]]:
            return race_once({who: partial(run, trees[who], models[who]) for who in trees}, rounds=rounds)

        def infer(images: str) -> Callable[[Path, Path], float]:
            line = ("-c", _INFER, "-p", "cpu", folder / images, "-o", folder / "results.csv", "-m")
            return lambda where, model: _seconds(where, *line, model / "model.onnx")

        def race_speeds(script: str, file: str, *arguments: object) -> list[dict[str, list[float]]]:
            """Several speeds that a script prints, each with its own rounds."""

            def speeds(where: Path, model: Path) -> list[float]:
                return json.loads(_run(where, "-c", script, model / file, *arguments))  # type: ignore[no-any-return]

            columns = {who: list(zip(*rounds, strict=True)) for who, rounds in race(speeds, SPEED_ROUNDS).items()}
            return [{who: list(columns[who][i]) for who in trees} for i in range(len(columns[commit]))]

        yield compare(f"rnn-infer, {SMALL:,} PNG files of 28 x 28", "s", race(infer("small"), 5), commit)
        yield compare("rnn-infer, one image", "s", race(infer("one"), 5), commit)
        for preset, rounds in zip(PRESETS, race_speeds(_TRAIN, "trained.pt", EPOCHS, *PRESETS), strict=True):
            yield compare(f"training on digits, preset {preset}", "images/s", rounds, commit)
        for batch, rounds in zip(BATCHES, race_speeds(_MODEL, "model.onnx", *BATCHES), strict=True):
            yield compare(f"Classifier on arrays, batch {batch}", "images/s", rounds, commit)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _seconds(tree: Path, *arguments: object) -> float:
    start = time.perf_counter()
    _run(tree, *arguments)
    return time.perf_counter() - start


def _run(tree: Path, *arguments: object) -> str:
    """Run Python with the packages of a tree, and give what it prints."""
    path = os.pathsep.join(str(tree / name) for name in (".", "runtime", "train", "export"))
    line = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path}
    # In the tree, since Python finds the modules of the current folder first.
    result = subprocess.run(
        line, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return result.stdout.decode()
