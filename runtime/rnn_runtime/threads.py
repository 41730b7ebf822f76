"""Pools of threads where the number of threads may be limited (`docker --pids-limit`, `ulimit -u`)."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Value = TypeVar("_Value")


class ThreadPool(ThreadPoolExecutor):
    """A pool that goes on with the threads that can be started. Without any, tasks run where they are submitted."""

    _has_any = _lacks = False

    def submit(
        self, function: Callable[_Parameters, _Value], /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> "Future[_Value]":
        """Run a task, in a thread of the pool if there is one."""
        if self._has_any or not self._lacks:
            try:
                future = super().submit(function, *args, **kwargs)
                self._has_any = True
                return future
            except RuntimeError:
                if not self._lacks:  # the pool was shut down
                    raise
        here: Future[_Value] = Future()
        try:
            here.set_result(function(*args, **kwargs))
        except BaseException as error:
            here.set_exception(error)
        return here

    def _adjust_thread_count(self) -> None:
        # CPython calls it in `submit`, once the task waits in the queue. A thread that runs will take it from there.
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            self._lacks = True
            if not self._has_any:
                raise
