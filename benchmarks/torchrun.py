"""`rnn-train` by two processes of one thread each, against one process with two threads, on Fashion-MNIST."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Row, compare, race_once
from benchmarks.training import FASHION_MNIST

BATCH_SIZES = (100, 800)


def run() -> Iterator[Row]:
    """Images per second in the second epoch; nothing where Fashion-MNIST isn't."""
    if not FASHION_MNIST.is_dir():
        print(f"Left out, since there is no {FASHION_MNIST}: training by two processes", file=sys.stderr)
        return
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for size in BATCH_SIZES:
        rounds = race_once(
            {
                "2 processes, 1 thread each": _train([*together, "-m", "rnn_train"], size, threads=1),
                "1 process, 2 threads": _train([sys.executable, "-m", "rnn_train"], size, threads=2),
                "1 process, 1 thread": _train([sys.executable, "-m", "rnn_train"], size, threads=1),
            },
            rounds=3,
        )
        for peer in list(rounds)[1:]:
            what = f"training by 2 processes of 1 thread, batches of {size}"
            yield compare(what, "images/s", rounds, peer, ours=next(iter(rounds)))


def _train(command: list[str], batch_size: int, *, threads: int) -> Callable[[], float]:
    options = [
        "--dataset",
        "fashion-mnist",
        "--data",
        str(FASHION_MNIST),
        "--batch-size",
        str(batch_size),
        "--no-plots",
    ]

    def train() -> float:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [*command, *options, "--epochs", "2"], cwd=folder, env=environment, check=True, capture_output=True
            )
            _, _, second = (Path(folder) / "metrics.csv").read_text().splitlines()
        return float(second.rsplit(",", 1)[1])

    return train
