"""The speed of a model on this machine, by batch size: of one classifier, or of all ways to run the model, compared."""

import csv
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.checks.self_check import self_check
from rnn_runtime.classifier import Classifier
from rnn_runtime.engine import CUDA_DEFAULTS, CudaOptions
from rnn_runtime.errors import InputError, ModelError, ParityError, ProviderError
from rnn_runtime.model.values import check_argument
from rnn_runtime.results.write import Format
from rnn_runtime.text import print_table

BATCH_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384)
_MOST_BYTES = 1 << 29  # of a batch of images
_ROUNDS = 5
_LONGEST_RUN = 1.0  # seconds; all sizes and variants take about a minute then
_AS_FAST = 0.95  # speeds that differ by less are taken to be equal


@dataclass(frozen=True, slots=True)
class Timing:
    """The speed of a variant at one batch size: percentiles of the milliseconds per run, and images/s at the median."""

    variant: str
    batch_size: int
    images_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run a model: an execution provider and its options. `name` is for people."""

    name: str
    provider: Literal["cpu", "cuda"]
    cuda: CudaOptions = CUDA_DEFAULTS


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Attributes:
        timings: One per variant and batch size that ran, in the order of batch sizes.
        variants: The variants that ran and agree with PyTorch on the golden samples, in order of preference.
        problems: Why a variant didn't run, or not with larger batches; in one line, by its name.
    """

    timings: tuple[Timing, ...]
    variants: tuple[Variant, ...]
    problems: Mapping[str, str]

    @property
    def smallest_batch(self) -> int:
        """The smallest batch size that was timed."""
        return min(timing.batch_size for timing in self.timings)

    def variant(self, timing: Timing) -> Variant:
        """The variant of a timing."""
        return next(variant for variant in self.variants if variant.name == timing.variant)

    def best(self, batch_size: int | None = None) -> Timing:
        """The timing to choose for throughput, or for a batch size.

        Of those within 5 % of the fastest it is the preferred variant's, and of these the smallest batch's.
        """
        among = [timing for timing in self.timings if batch_size in (None, timing.batch_size)]
        fastest = max(timing.images_per_second for timing in among)
        order = [variant.name for variant in self.variants]
        return min(
            (timing for timing in among if timing.images_per_second >= _AS_FAST * fastest),
            key=lambda timing: (order.index(timing.variant), timing.batch_size),
        )


def measure_speed(
    classifier: Classifier, *, batch_sizes: Sequence[int] = BATCH_SIZES, seconds: float = 0.5
) -> list[Timing]:
    """Time a model on random images in memory. Reading and decoding files isn't included.

    Args:
        classifier: The model. On CUDA, copying to the device and back is included.
        batch_sizes: Batch sizes to measure.
        seconds: How long to run each batch size; at least 5 times, or once if a run takes over a second.

    Returns:
        One `Timing` per batch size.

    Raises:
        InputError: a batch size is below 1, or its images would take more than 512 MiB, or `seconds` isn't above 0.
        ProviderError: a run failed, for instance because memory ran out.
    """
    shape = classifier.metadata.spec.image_spec.shape
    _check_sizes(batch_sizes, seconds)
    _check_memory(max(batch_sizes), shape)
    timings: list[Timing] = []
    for size in batch_sizes:
        found, failed = _time({classifier.provider: classifier}, size, shape, seconds)
        for error in failed.values():
            raise error
        timings += found
    return timings


def compare(
    model: str | Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 0.5,
    threads: int | None = None,
    cuda: CudaOptions = CUDA_DEFAULTS,
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Comparison:
    """Time the CPU, CUDA and CUDA with TF32, on random images in memory.

    Copying to the device and back is included, reading and decoding files isn't. Variants take turns, so that whatever
    else the machine does meets all of them. Each is first compared with PyTorch on the model's golden samples.

    Args:
        model: The model file.
        batch_sizes: Batch sizes to time. A variant isn't tried with one whose runs would take more than a second, going
            by the size before, and a batch of images has at most 512 MiB.
        seconds: How long to run each variant and batch size.
        threads: As for `Classifier`.
        cuda: The GPU and its memory limit.
        watch: Passes on the batch sizes that it is given, to show how far the comparison is.

    Returns:
        What ran, and why the rest didn't.

    Raises:
        InputError: a batch size is below 1 or all batches are too large, or `seconds` isn't above 0.
        ModelError: the model is damaged.
        ProviderError: no variant can run, or none with the smallest batch.
    """
    check_argument("model", model, Path)
    _check_sizes(batch_sizes, seconds)
    # In order of preference where speeds are equal: results nearest to PyTorch's come first.
    variants = (
        Variant("cpu", "cpu"),
        Variant("cuda", "cuda", replace(cuda, tf32=False)),
        Variant("cuda tf32", "cuda", replace(cuda, tf32=True)),
    )
    problems: dict[str, str] = {}
    running: dict[str, Classifier] = {}
    for variant in variants:
        try:
            classifier = Classifier(model, variant.provider, threads=threads, cuda=variant.cuda)
            self_check(classifier)
            running[variant.name] = classifier
        except (ProviderError, ParityError) as error:
            text = error.worded(lambda argument: f"{argument.name} {argument.value}")
            problems[variant.name] = text.removeprefix(f"{model}: ")
    if not running:
        raise ProviderError(f"{model}: none of the variants runs here: {'; '.join(problems.values())}")
    opened = tuple(variant for variant in variants if variant.name in running)
    shape = next(iter(running.values())).metadata.spec.image_spec.shape
    _check_memory(min(batch_sizes), shape)
    timings: list[Timing] = []
    for size in watch(sorted(set(batch_sizes))):
        rates = {timing.variant: timing.images_per_second for timing in timings}  # of the size before
        ended: dict[str, object] = {}
        for name in list(running):
            if reason := _too_much(size, shape, rates.get(name)):
                ended[name] = reason
                del running[name]  # with the memory that it holds
        found, failed = _time(running, size, shape, seconds)
        timings += found
        for name, why in {**ended, **failed}.items():
            problems[name] = f"no batches of {size:,} and more: {str(why) or 'the memory ran out'}"
    if not timings:
        raise ProviderError(f"{model}: no batch could be run: {'; '.join(problems.values())}")
    return Comparison(tuple(timings), opened, problems)


def _too_much(size: int, shape: tuple[int, ...], rate: float | None) -> str | None:
    """Why a batch of this size isn't tried; None if it is. `rate` is images per second, where they are known."""
    if size > _largest_batch(shape):
        return f"the images would take over {_MOST_BYTES >> 20} MiB"
    if rate is not None and size / rate > _LONGEST_RUN:
        return f"each would take over {_LONGEST_RUN:g} second"
    return None


def _time(
    running: dict[str, Classifier], size: int, shape: tuple[int, ...], seconds: float
) -> tuple[list[Timing], dict[str, Exception]]:
    """Time classifiers at one batch size, in turns. Those that fail are taken from `running`; their errors by name."""
    durations: dict[str, list[float]] = {}
    errors: dict[str, Exception] = {}
    if not running:
        return [], errors
    images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
    for turn in range(1 + _ROUNDS):
        for name in list(running):
            # Memory is allocated and algorithms are chosen in the first turn, which doesn't count.
            if turn > 1 and durations[name][0] > _LONGEST_RUN:
                continue
            try:
                found = _run_for(running[name], images, seconds / _ROUNDS if turn else 0)
            except (ProviderError, ModelError, MemoryError) as error:
                errors[name] = error.with_traceback(None)  # which would keep the classifier, and its memory
                durations.pop(name, None)
                del running[name]
            else:
                durations[name] = [*durations.get(name, []), *found] if turn > 1 else found
    timings = []
    for name, found in durations.items():
        p50, p90, p99 = (1000 * float(value) for value in np.percentile(found, [50, 90, 99]))
        timings.append(Timing(name, size, 1000 * size / p50, p50, p90, p99, len(found)))
    return timings, errors


def _run_for(classifier: Classifier, images: NDArray[np.uint8], seconds: float) -> list[float]:
    """The durations of as many runs as take this long, at least one."""
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
        start = time.perf_counter()
        classifier.predict_proba(images)
        durations.append(time.perf_counter() - start)
    return durations


def _check_sizes(batch_sizes: Sequence[int], seconds: float) -> None:
    if not all(isinstance(size, int) for size in batch_sizes) or min(batch_sizes, default=0) < 1 or not seconds > 0:
        raise InputError(f"batch sizes must be at least 1 and seconds above 0, not {list(batch_sizes)} and {seconds}")


def _check_memory(batch_size: int, shape: tuple[int, ...]) -> None:
    if batch_size > _largest_batch(shape):
        raise InputError(
            f"a batch of {batch_size:,} images is too large to time: of {' x '.join(map(str, shape))} values each, at "
            f"most {_largest_batch(shape):,} fit into {_MOST_BYTES >> 20} MiB. Choose a smaller batch size"
        )


def _largest_batch(shape: tuple[int, ...]) -> int:
    """The most images of this shape that are timed in one batch."""
    return _MOST_BYTES // int(np.prod(shape))


def write_timings(timings: Sequence[Timing], file: IO[str], format: Format) -> None:
    """Write timings: one row each, or a table with a column per variant if there are several."""
    rows = [asdict(timing) for timing in timings]
    if format == "jsonl":
        file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    names = [field.name for field in fields(Timing)]
    shown = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    if format == "csv":
        csv.writer(file, lineterminator="\n").writerows([names, *shown])
        return
    from rich.table import Table

    variants = list(dict.fromkeys(timing.variant for timing in timings))
    if len(variants) > 1:
        rates = {(timing.batch_size, timing.variant): f"{timing.images_per_second:,.0f}" for timing in timings}
        table = Table("batch size", *variants, title="Images per second", title_justify="left")
        for size in sorted({size for size, _ in rates}):
            table.add_row(f"{size:,}", *(rates.get((size, variant), "") for variant in variants))
    else:
        table = Table(*names)
        for row in shown:
            table.add_row(*row)
    print_table(table, file)


def describe_comparison(comparison: Comparison) -> list[str]:
    """What was compared, and what didn't run and why: one sentence each, for people."""
    lines = [
        "Copies to the device and back are included; reading and decoding files is not.",
        "All that were timed agree with PyTorch on the golden samples.",
    ]
    problems = comparison.problems
    for reason in dict.fromkeys(problems.values()):
        names = ", ".join(name for name, found in problems.items() if found == reason)
        lines.append(f"{names}: {reason}")
    return lines
