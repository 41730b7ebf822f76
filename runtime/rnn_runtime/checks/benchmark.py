"""The speed of a model on this machine and execution provider: throughput and latency by batch size."""

import csv
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import InputError
from rnn_runtime.results.write import Format
from rnn_runtime.text import print_table

BATCH_SIZES = (1, 8, 32, 64, 256, 1024)
MOST_BYTES = 1 << 29  # of a batch of images
_WARM_UP = 3  # runs; the first ones allocate memory and, on CUDA, choose algorithms
_RUNS, _LEAST_RUNS = 10, 3  # that are made beyond the given time: up to 10 times as long, and however long


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
        seconds: How long to run each batch size. At least 10 runs are made, or 3 if 10 would take 10 times as long.

    Returns:
        One `Speed` per batch size.

    Raises:
        InputError: a batch size is below 1, or its images would take more than 512 MiB, or `seconds` isn't above 0.
    """
    check_sizes(batch_sizes, seconds)
    check_memory(max(batch_sizes), classifier.metadata.spec.image_spec.shape)
    return [_measure(classifier, batch_size, seconds) for batch_size in batch_sizes]


def check_sizes(batch_sizes: Sequence[int], seconds: float) -> None:
    """Check what to time, and for how long.

    Raises:
        InputError: there is no batch size, or one below 1, or `seconds` isn't above 0.
    """
    if not all(isinstance(size, int) for size in batch_sizes) or min(batch_sizes, default=0) < 1 or not seconds > 0:
        raise InputError(f"batch sizes must be at least 1 and seconds above 0, not {list(batch_sizes)} and {seconds}")


def check_memory(batch_size: int, shape: tuple[int, ...]) -> None:
    """Check that a batch of images isn't too large to be timed.

    Raises:
        InputError: it would take more than 512 MiB.
    """
    if batch_size > largest_batch(shape):
        raise InputError(
            f"a batch of {batch_size:,} images is too large to time: of {' x '.join(map(str, shape))} values each, at "
            f"most {largest_batch(shape):,} fit into {MOST_BYTES >> 20} MiB. Choose a smaller batch size"
        )


def largest_batch(shape: tuple[int, ...]) -> int:
    """The most images of this shape that are timed in one batch."""
    return MOST_BYTES // int(np.prod(shape))


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
    durations: list[float] = []
    start = time.perf_counter()
    for _ in range(_WARM_UP):
        _run(classifier, images)
        if time.perf_counter() - start > seconds:
            break
    end = time.perf_counter() + seconds
    while (
        time.perf_counter() < end
        or len(durations) < _LEAST_RUNS
        or (len(durations) < _RUNS and sum(durations) < 10 * seconds)
    ):
        durations.append(_run(classifier, images))
    p50, p90, p99 = (1000 * value for value in np.percentile(durations, [50, 90, 99]))
    rate = batch_size * len(durations) / sum(durations)
    return Speed(batch_size, rate, p50, p90, p99, len(durations))


def _run(classifier: Classifier, images: NDArray[np.uint8]) -> float:
    """The seconds of one run."""
    start = time.perf_counter()
    classifier.predict_proba(images)
    return time.perf_counter() - start
