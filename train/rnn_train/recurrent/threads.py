"""Threads of a training step: one that computes, and helpers for whole products.

torch's threads share each product, and wait for each other at its end. A step of a recurrent net has hundreds of them.
Where they are small and a core is busy, the waits take many times as long as the products.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Generic, TypeVar

import torch
from torch import nn

# Floating-point operations of a product: 0.2 ms of one core. From here on, sharing each gains more than it costs
# (docs/explanation/measurements.md).
LARGE = 16_000_000
# 0.1 ms of one core. To hand a task over and learn that it is done takes 0.06 to 0.1 ms.
WORTH_HALVING = 8_000_000

_Value = TypeVar("_Value")
_helpers: ContextVar[int] = ContextVar("helpers", default=0)


def step_threads(net: nn.RNNBase, batch: int) -> AbstractContextManager[None]:
    """Choose the threads of a training step: one and its helpers for small products, else all those of torch.

    Args:
        net: An RNN or GRU on a CPU.
        batch: How many images the step has.
    """
    weight = net.get_parameter("weight_hh_l0")
    return nullcontext() if 2 * batch * weight.numel() >= LARGE else one_thread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone. The others that it was allowed are the helpers of `Tasks`."""
    count = torch.get_num_threads()
    token = _helpers.set(count - 1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _helpers.reset(token)


class Tasks(Generic[_Value]):
    """Computations that helpers begin while this thread goes on. Outside of `one_thread`, there are no helpers.

    Within it, each is computed by one thread, so no result depends on how many there are.
    """

    def __init__(self) -> None:
        helpers = _helpers.get()
        self._executor = _start_helpers(helpers) if helpers else None
        self._tasks: list[tuple[Callable[[], _Value], Future[_Value]]] = []

    def add(self, compute: Callable[[], _Value]) -> None:
        """Have something computed, without gradients."""
        compute = torch.no_grad()(compute)
        self._tasks.append((compute, self._executor.submit(compute) if self._executor else Future()))

    def results(self) -> list[_Value]:
        """What the tasks compute, in the order in which they were added."""
        tasks = list(enumerate(self._tasks))
        # Helpers begin with the first, so this thread takes what they haven't begun from the end.
        own = {number: compute() for number, (compute, future) in reversed(tasks) if future.cancel()}
        return [own[number] if number in own else future.result() for number, (_, future) in tasks]


def compute_in_halves(compute: Callable[[slice], None], rows: int, operations: int) -> None:
    """Compute the rows of a product: two halves at the same time, if it is worth it.

    Args:
        compute: Computes some of the rows.
        rows: How many there are.
        operations: Floating-point operations in all.
    """
    if operations < WORTH_HALVING:
        compute(slice(rows))
        return
    tasks = Tasks[None]()
    for half in (slice(rows // 2), slice(rows // 2, rows)):
        tasks.add(partial(compute, half))
    tasks.results()


@cache
def _start_helpers(count: int) -> ThreadPoolExecutor:
    # torch's number of threads is each thread's own
    return ThreadPoolExecutor(count, "rnn-train", initializer=torch.set_num_threads, initargs=(1,))
