"""Measuring contestants side by side, so that a busy machine slows them all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")
Rounds = Mapping[str, list[float]]
PAUSE = 0.3  # seconds; threads of OpenMP and onnxruntime wait actively for a while after their work


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: how we compare with one peer.

    Attributes:
        what: What was done.
        unit: Of `ours` and `theirs`, medians over the rounds.
        peer: Against whom.
        ratio: Median of the rounds' ratios; above 1, we are better, whichever way the unit points.
        spread: The rounds' lower and upper quartile of that ratio.
        target: What was aimed for, in the same sense; None where the row only informs.
    """

    what: str
    unit: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    spread: tuple[float, float]
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.ratio >= self.target


def compare(what: str, unit: str, rounds: Rounds, peer: str, *, ours: str = "ours", target: float | None = None) -> Row:
    """A row from two contestants of a race; a unit that ends in `/s` is better high, any other low."""
    pairs = list(zip(rounds[ours], rounds[peer], strict=True))
    ratios = [mine / other if unit.endswith("/s") else other / mine for mine, other in pairs]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    medians = statistics.median(rounds[ours]), statistics.median(rounds[peer])
    return Row(what, unit, medians[0], peer, medians[1], statistics.median(ratios), (low, high), target)


def race_throughput(
    contestants: Mapping[str, Callable[[], object]], images: int, *, rounds: int = 9, seconds: float = 0.25
) -> Rounds:
    """Images a second of functions that each handle `images` a call, warmed up, taking turns.

    A turn lasts at least `seconds`, after a pause in which the threads of the one before stop to spin. The order is
    turned around every other round.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in sorted(contestants, reverse=bool(turn % 2)):
            time.sleep(PAUSE)
            contestants[name]()
            calls, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                contestants[name]()
                calls += 1
            found[name].append(calls * images / elapsed)
    return found


def race_once(contestants: Mapping[str, Callable[[], Value]], *, rounds: int = 5) -> dict[str, list[Value]]:
    """What the functions return, such as seconds: one call a round, taking turns after one to warm up."""
    found: dict[str, list[Value]] = {name: [] for name in contestants}
    for turn in range(-1, rounds):
        for name in sorted(contestants, reverse=bool(turn % 2)):
            value = contestants[name]()
            if turn >= 0:
                found[name].append(value)
    return found
