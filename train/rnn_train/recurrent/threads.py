"""Threads of a training step: one that computes, and helpers for parts of the batch.

torch's threads share each product, and wait for each other at its end. A step of a recurrent net has hundreds of them.
Where they are small and a core is busy, the waits take many times as long as the products.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Generic, TypeVar

import torch

_Value = TypeVar("_Value")
_helpers: ContextVar[int] = ContextVar("helpers", default=0)


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


@cache
def _start_helpers(count: int) -> ThreadPoolExecutor:
    # torch's number of threads is each thread's own
    return ThreadPoolExecutor(count, "rnn-train", initializer=torch.set_num_threads, initargs=(1,))
