"""What a comparison of the ways to run a model found, and how to tell it."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO, Literal, TypeVar

from rnn_runtime.engine import CUDA_DEFAULTS, CudaOptions
from rnn_runtime.results.write import Format
from rnn_runtime.text import print_table

_AS_FAST = 0.95  # speeds that differ by less are taken to be equal

_Found = TypeVar("_Found")


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
    Variant("cuda tf32", "cuda", CudaOptions(tf32=True)),
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
        tolerances: The absolute and relative tolerance of logits that a variant of `variants` was held to, by its name.
    """

    timings: tuple[Timing, ...]
    variants: tuple[Variant, ...]
    problems: dict[str, str] = field(default_factory=dict)
    tolerances: dict[str, tuple[float, float]] = field(default_factory=dict)

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
        """The smallest batch size at which CUDA is faster than the CPU, as it is at all larger ones that it can run.

        None if it isn't faster at the largest.
        """
        cpu, cuda = self._fastest("cpu"), self._fastest("cuda")
        found = None
        for size in sorted(cuda, reverse=True):
            if cuda[size] <= cpu.get(size, 0):
                break
            found = size
        return found

    def cuda_ever_wins(self) -> bool:
        """Whether CUDA is faster than the CPU at any batch size."""
        cpu, cuda = self._fastest("cpu"), self._fastest("cuda")
        return any(rate > cpu.get(size, 0) for size, rate in cuda.items())

    def _fastest(self, provider: str) -> dict[int, float]:
        """Images per second of the provider's fastest variant, by batch size."""
        found: dict[int, float] = {}
        for timing in self.timings:
            if self.variant(timing).provider == provider:
                found[timing.batch_size] = max(found.get(timing.batch_size, 0), timing.images_per_second)
        return found


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
    """What was compared, what didn't run and why, and where CUDA wins: one sentence each, for people."""
    lines = ["Copies to the device and back are included; reading and decoding files is not."]
    lines += [
        f"{names}: golden samples agree with PyTorch (atol={atol:.2g}, rtol={rtol:.2g})"
        for (atol, rtol), names in _names_by(comparison.tolerances).items()
    ]
    lines += [f"{names}: {reason}" for reason, names in _names_by(comparison.problems).items()]
    if {variant.provider for variant in comparison.variants} == {"cpu", "cuda"}:
        lines.append(f"CUDA is {_where_cuda_wins(comparison)}.")
    return lines


def _names_by(found: dict[str, _Found]) -> dict[_Found, str]:
    """The variants for which the same was found, as `a, b, c`."""
    names: dict[_Found, list[str]] = {}
    for name, value in found.items():
        names.setdefault(value, []).append(name)
    return {value: ", ".join(variants) for value, variants in names.items()}


def _where_cuda_wins(comparison: Comparison) -> str:
    size = comparison.cuda_wins_from()
    if size == comparison.smallest_batch:
        return "faster than the CPU at every batch size that it ran"
    if size is not None:
        return f"faster than the CPU in batches of {size:,} images and more"
    if comparison.cuda_ever_wins():
        return "faster than the CPU at some batch sizes, but not at the largest"
    return "faster than the CPU at no batch size"
