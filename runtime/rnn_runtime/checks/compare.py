"""The ways in which this machine can run a model, timed side by side, and the command line to use."""

import csv
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.checks.self_check import self_check
from rnn_runtime.classifier import Classifier
from rnn_runtime.engine.cuda import CUDA_DEFAULTS, CudaOptions
from rnn_runtime.errors import InputError, ModelError, ParityError, ProviderError
from rnn_runtime.model.fields import check_argument
from rnn_runtime.results.write import Format
from rnn_runtime.text import print_table

BATCH_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384)
_ROUNDS = 5
_LONGEST_RUN = 2.0  # seconds; a variant that takes longer isn't tried with larger batches
_MOST_BYTES = 1 << 29  # of a batch of images
_AS_FAST = 0.95  # speeds that differ by less are taken to be equal


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run a model: an execution provider and its options. `name` is for people."""

    name: str
    provider: Literal["cpu", "cuda"]
    cuda: CudaOptions = CUDA_DEFAULTS


# In order of preference where speeds are equal: results nearest to PyTorch's come first.
VARIANTS = (
    Variant("cpu", "cpu"),
    Variant("cuda", "cuda"),
    Variant("cuda graph", "cuda", CudaOptions(graph=True)),
    Variant("cuda tf32", "cuda", CudaOptions(tf32=True)),
    Variant("cuda graph tf32", "cuda", CudaOptions(graph=True, tf32=True)),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """Images per second, and the median milliseconds per run, of a variant at a batch size."""

    variant: str
    batch_size: int
    images_per_second: float
    ms_per_run: float


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
    problems: dict[str, str] = field(default_factory=dict)

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

    def cuda_wins_from(self) -> int | None:
        """The batch size from which on CUDA is faster than the CPU, also at all larger ones that it can run.

        None if it isn't faster at the largest.
        """
        rates: dict[str, dict[int, float]] = {"cpu": {}, "cuda": {}}
        for timing in self.timings:
            fastest = rates[self.variant(timing).provider]
            fastest[timing.batch_size] = max(fastest.get(timing.batch_size, 0), timing.images_per_second)
        found = None
        for size in sorted(rates["cuda"], reverse=True):
            if rates["cuda"][size] <= rates["cpu"].get(size, 0):
                break
            found = size
        return found


def compare(
    model: str | Path,
    *,
    variants: Sequence[Variant] = VARIANTS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 0.1,
    threads: int | None = None,
    open: Callable[[Variant], Classifier] | None = None,
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Comparison:
    """Time the ways in which this machine can run a model, on random images in memory.

    Copying to the device and back is included, reading and decoding files isn't. Variants take turns, so that whatever
    else the machine does meets all of them. Each is first compared with PyTorch on the model's golden samples.

    Args:
        model: The model file.
        variants: What to try, in order of preference. One that can't run is listed with the reason.
        batch_sizes: Batch sizes to time. A variant that takes more than 2 seconds per run isn't tried with larger ones,
            and a batch of images has at most 512 MiB.
        seconds: How long to run each variant and batch size, five times.
        threads: As for `Classifier`.
        open: Opens the model in a variant; None for `Classifier`.
        watch: Passes on the batch sizes that it is given, to show how far the comparison is.

    Raises:
        InputError: a batch size is below 1, or `seconds` isn't above 0.
        ModelError: the model is damaged.
        ProviderError: no variant can run, or none with the smallest batch.
    """
    check_argument("model", model, Path)
    if min(batch_sizes, default=0) < 1 or not seconds > 0:
        raise InputError(f"batch sizes must be at least 1 and seconds above 0, not {list(batch_sizes)} and {seconds}")

    def open_variant(variant: Variant) -> Classifier:
        return Classifier(model, variant.provider, threads=threads, cuda=variant.cuda)

    problems: dict[str, str] = {}
    opened = _open_all(variants, open or open_variant, str(model), problems)
    if not opened:
        raise ProviderError(f"{model}: runs in no way here: {'; '.join(problems.values())}")
    timings: list[Timing] = []
    running = {variant.name: classifier for variant, classifier in opened}
    shape = opened[0][1].metadata.spec.image_spec.shape
    for size in watch(sorted(set(batch_sizes))):
        if size * int(np.prod(shape)) > _MOST_BYTES:
            break
        images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
        for name, durations in _time(running, images, seconds, problems).items():
            timings.append(Timing(name, size, size / median(durations), 1000 * median(durations)))
            if median(durations) > _LONGEST_RUN:
                del running[name]
    if not timings:
        raise ProviderError(f"{model}: no batch could be run: {'; '.join(problems.values())}")
    return Comparison(tuple(timings), tuple(variant for variant, _ in opened), problems)


def _open_all(
    variants: Sequence[Variant], open: Callable[[Variant], Classifier], model: str, problems: dict[str, str]
) -> list[tuple[Variant, Classifier]]:
    opened = []
    for variant in variants:
        try:
            classifier = open(variant)
            self_check(classifier)
            opened.append((variant, classifier))
        except (ProviderError, ParityError) as error:
            problems[variant.name] = str(error).removeprefix(f"{model}: ")
    return opened


def _time(
    running: dict[str, Classifier], images: NDArray[np.uint8], seconds: float, problems: dict[str, str]
) -> dict[str, list[float]]:
    """The durations of runs by variant. A variant that fails is taken from `running`."""
    durations: dict[str, list[float]] = {}
    for turn in range(1 + _ROUNDS):
        for name in list(running):
            # Memory is allocated, algorithms are chosen and graphs captured in the first turn, which doesn't count.
            if turn > 1 and durations[name][0] > _LONGEST_RUN:
                continue
            try:
                found = _run_for(running[name], images, seconds if turn else 0)
                if running[name].notice:  # it no longer runs as its name says
                    raise ProviderError(str(running[name].notice))
            except (ProviderError, ModelError) as error:
                problems[name] = f"no batches of {len(images):,} and more: {error}"
                del running[name]
                durations.pop(name, None)
            else:
                durations[name] = [*durations.get(name, []), *found] if turn > 1 else found
    return durations


def _run_for(classifier: Classifier, images: NDArray[np.uint8], seconds: float) -> list[float]:
    """The durations of as many runs as take this long, at least one."""
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
        start = time.perf_counter()
        classifier.predict_proba(images)
        durations.append(time.perf_counter() - start)
    return durations


def with_options(cuda: CudaOptions, variants: Sequence[Variant] = VARIANTS) -> tuple[Variant, ...]:
    """The variants on this GPU and with this memory limit."""
    return tuple(
        replace(variant, cuda=replace(variant.cuda, device_id=cuda.device_id, memory_limit=cuda.memory_limit))
        if variant.provider == "cuda"
        else variant
        for variant in variants
    )


def write_timings(comparison: Comparison, file: IO[str], format: Format) -> None:
    """Write the timings: CSV or JSON Lines with one row each, or a table with a column per variant."""
    if format == "jsonl":
        file.writelines(json.dumps(asdict(timing)) + "\n" for timing in comparison.timings)
        return
    if format == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("variant", "batch_size", "images_per_second", "ms_per_run"))
        for timing in comparison.timings:
            rate, duration = f"{timing.images_per_second:.3f}", f"{timing.ms_per_run:.3f}"
            writer.writerow((timing.variant, timing.batch_size, rate, duration))
        return
    from rich.table import Table

    rates = {(timing.batch_size, timing.variant): timing.images_per_second for timing in comparison.timings}
    names = [variant.name for variant in comparison.variants]
    table = Table(
        "batch size", *(name.replace(" ", "\n") for name in names), title="Images per second", title_justify="left"
    )
    for size in sorted({size for size, _ in rates}):
        table.add_row(f"{size:,}", *(f"{rates[size, name]:,.0f}" if (size, name) in rates else "" for name in names))
    print_table(table, file)


def describe_comparison(comparison: Comparison) -> list[str]:
    """What the timings include, what didn't run and why, and where CUDA wins: one sentence each, for people."""
    lines = ["Copies to the device and back are included; reading and decoding files is not."]
    by_reason: dict[str, list[str]] = {}
    for name, reason in comparison.problems.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    if len({variant.provider for variant in comparison.variants}) > 1:
        size = comparison.cuda_wins_from()
        lines.append(
            "CUDA is not faster than the CPU in the largest batches."
            if size is None
            else f"CUDA is faster than the CPU from batches of {size:,} images on."
        )
    return lines
