"""The ways in which this machine can run a model, timed side by side."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.checks.benchmark import MOST_BYTES, check_memory, check_sizes, largest_batch
from rnn_runtime.checks.comparison import VARIANTS, Comparison, Timing, Variant
from rnn_runtime.checks.self_check import self_check, usual_tolerance
from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import InputError, ModelError, ParityError, ProviderError
from rnn_runtime.model.values import check_argument

BATCH_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384)
_ROUNDS = 5
_LONGEST_RUN = 1.0  # seconds; all sizes and variants take about a minute then


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
        batch_sizes: Batch sizes to time. A variant isn't tried with one whose runs would take more than a second, going
            by the size before, and a batch of images has at most 512 MiB.
        seconds: How long to run each variant and batch size, five times.
        threads: As for `Classifier`.
        open: Opens the model in a variant; None for `Classifier`.
        watch: Passes on the batch sizes that it is given, to show how far the comparison is.

    Raises:
        InputError: a batch size is below 1 or all batches are too large, or `seconds` isn't above 0.
        ModelError: the model is damaged.
        ProviderError: no variant can run, or none with the smallest batch.
    """
    check_argument("model", model, Path)
    check_sizes(batch_sizes, seconds)
    if not variants:
        raise InputError("`variants` is empty. Name at least one")

    def open_variant(variant: Variant) -> Classifier:
        return Classifier(model, variant.provider, threads=threads, cuda=variant.cuda)

    problems: dict[str, str] = {}
    running = _open_all(variants, open or open_variant, str(model), problems)
    if not running:
        raise ProviderError(f"{model}: none of the variants runs here: {'; '.join(problems.values())}")
    opened = tuple(variant for variant in variants if variant.name in running)
    tolerances = {name: usual_tolerance(classifier) for name, classifier in running.items()}
    shape = next(iter(running.values())).metadata.spec.image_spec.shape
    check_memory(min(batch_sizes), shape)
    timings: list[Timing] = []
    for size in watch(sorted(set(batch_sizes))):
        _leave_out(running, size, size > largest_batch(shape), timings, problems)
        if not running:
            continue
        images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
        for name, durations in _time(running, images, seconds, problems).items():
            timings.append(Timing(name, size, size / median(durations), 1000 * median(durations)))
    if not timings:
        raise ProviderError(f"{model}: no batch could be run: {'; '.join(problems.values())}")
    return Comparison(tuple(timings), opened, problems, tolerances)


def _open_all(
    variants: Sequence[Variant], open: Callable[[Variant], Classifier], model: str, problems: dict[str, str]
) -> dict[str, Classifier]:
    running = {}
    for variant in variants:
        try:
            classifier = open(variant)
            self_check(classifier)
            running[variant.name] = classifier
        except (ProviderError, ParityError) as error:
            problems[variant.name] = str(error).removeprefix(f"{model}: ")
    return running


def _leave_out(
    running: dict[str, Classifier], size: int, too_large: bool, timings: Sequence[Timing], problems: dict[str, str]
) -> None:
    """Take the variants from `running` that aren't to run batches of this size, with what they hold."""
    rates = {timing.variant: timing.images_per_second for timing in timings}  # of the size before
    for name in list(running):
        reason = None
        if too_large:
            reason = f"the images would take over {MOST_BYTES >> 20} MiB"
        elif name in rates and size / rates[name] > _LONGEST_RUN:
            reason = f"each would take over {_LONGEST_RUN:g} second"
        if reason is not None:
            problems[name] = f"no batches of {size:,} and more: {reason}"
            del running[name]


def _time(
    running: dict[str, Classifier], images: NDArray[np.uint8], seconds: float, problems: dict[str, str]
) -> dict[str, list[float]]:
    """The durations of runs by variant. A variant that fails is taken from `running`."""
    durations: dict[str, list[float]] = {}
    for turn in range(1 + _ROUNDS):
        for name in list(running):
            # Memory is allocated and algorithms are chosen in the first turn, which doesn't count.
            if turn > 1 and durations[name][0] > _LONGEST_RUN:
                continue
            try:
                found = _run_for(running[name], images, seconds if turn else 0)
            except (ProviderError, ModelError, MemoryError) as error:
                problems[name] = f"no batches of {len(images):,} and more: {str(error) or 'the memory ran out'}"
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
