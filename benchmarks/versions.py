"""This version of the code against that of another commit: what is quick to measure, in some four minutes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.measure import Row, compare, race_once
from benchmarks.processes import write_images

ROOT = Path(__file__).parents[1]
SMALL = 10_000  # images in a folder
BATCHES = (1, 64, 1024)
EPOCHS = 3  # of digits

_INFER = "from rnn_runtime.cli import main; main()"
_TRAIN = "from rnn_train.cli import main; main()"
_EXPORT = """
import sys
from pathlib import Path
from benchmarks.models import make_peers
from rnn_runtime.model.spec import ImageSpec

make_peers(Path(sys.argv[1]), "rnn", ImageSpec(28, 28, 1))
"""
_MODEL = """
import sys, time
import numpy as np
from rnn_runtime import Classifier

classifier, batch = Classifier(sys.argv[1], "cpu"), int(sys.argv[2])
images = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
for seconds in (0.2, 1.0):  # the first to warm up
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        classifier.predict_proba(images)
        runs += 1
print(runs * batch / elapsed)
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

        def race(run: Callable[[Path, Path], float], rounds: int) -> dict[str, list[float]]:
            return dict(race_once({who: partial(run, trees[who], models[who]) for who in trees}, rounds=rounds))

        def infer(images: str) -> Callable[[Path, Path], float]:
            line = ("-c", _INFER, "-p", "cpu", folder / images, "-o", folder / "results.csv", "-m")
            return lambda where, model: _seconds(where, *line, model / "model.onnx")

        def speed(batch: int) -> Callable[[Path, Path], float]:
            return lambda where, model: float(_run(where, "-c", _MODEL, model / "model.onnx", batch))

        def train(where: Path, model: Path) -> float:
            options = ("--dataset", "digits", "--no-plots", "--epochs", EPOCHS, "-o", model / "trained.pt")
            return _seconds(where, "-c", _TRAIN, *options)

        yield compare(f"rnn-infer, {SMALL:,} PNG files of 28 x 28", "s", race(infer("small"), 5), commit)
        yield compare("rnn-infer, one image", "s", race(infer("one"), 5), commit)
        yield compare(f"rnn-train, digits, {EPOCHS} epochs", "s", race(train, 3), commit)
        for batch in BATCHES:
            yield compare(f"Classifier on arrays, batch {batch}", "images/s", race(speed(batch), 3), commit)


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
    result = subprocess.run(
        line, env=os.environ | {"PYTHONPATH": path}, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return result.stdout.decode()
