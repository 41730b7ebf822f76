"""The speed of a model on this machine and execution provider: throughput and latency by batch size."""

import csv
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import IO

import numpy as np

from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import InputError
from rnn_runtime.results.write import Format
from rnn_runtime.text import print_table

BATCH_SIZES = (1, 8, 32, 64, 256, 1024)
_WARM_UP = 3  # runs; the first ones allocate memory and, on CUDA, choose algorithms


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed at one batch size: images per second, and percentiles of the milliseconds per run."""

    batch_size: int
    images_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


def measure_speed(
    classifier: Classifier, *, batch_sizes: Sequence[int] = BATCH_SIZES, seconds: float = 1.0
) -> list[Speed]:
    """Time a model on random images in memory. Reading and decoding files isn't included.

    Args:
        classifier: The model. On CUDA, copying to the device and back is included.
        batch_sizes: Batch sizes to measure.
        seconds: How long to run each batch size. At least 10 runs are made.

    Returns:
        One `Speed` per batch size.

    Raises:
        InputError: a batch size is below 1, or `seconds` isn't above 0.
    """
    if min(batch_sizes, default=0) < 1 or not seconds > 0:
        raise InputError(f"batch sizes must be at least 1 and seconds above 0, not {list(batch_sizes)} and {seconds}")
    return [_measure(classifier, batch_size, seconds) for batch_size in batch_sizes]


def write_speeds(speeds: Iterable[Speed], file: IO[str], format: Format) -> None:
    """Write the results of `measure_speed`, one row per batch size."""
    rows = [asdict(speed) for speed in speeds]
    if format == "jsonl":
        file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    names = [field.name for field in fields(Speed)]
    shown = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    if format == "csv":
        csv.writer(file, lineterminator="\n").writerows([names, *shown])
        return
    from rich.table import Table

    table = Table(*names)
    for row in shown:
        table.add_row(*row)
    print_table(table, file)


def _measure(classifier: Classifier, batch_size: int, seconds: float) -> Speed:
    shape = (batch_size, *classifier.metadata.spec.image_spec.shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for _ in range(_WARM_UP):
        classifier.predict_proba(images)
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 10 or time.perf_counter() < end:
        start = time.perf_counter()
        classifier.predict_proba(images)
        durations.append(time.perf_counter() - start)
    p50, p90, p99 = (1000 * value for value in np.percentile(durations, [50, 90, 99]))
    rate = batch_size * len(durations) / sum(durations)
    return Speed(batch_size, rate, p50, p90, p99, len(durations))
