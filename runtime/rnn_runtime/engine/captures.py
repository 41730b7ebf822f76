"""CUDA graphs: which thread runs them, and what must wait while one is captured. One for the whole process.

In onnxruntime, a graph belongs to the thread that captured it (`PerThreadContext` in cuda_execution_provider.cc). CUDA
captures in the mode "global" (cuda_graph.cc): if another thread allocates memory or copies meanwhile, that fails, and
spoils the capture.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache


class CaptureLock:
    """Many runs at once, or one capture alone.

    A capture waits for the runs that are under way, and runs that come later wait for the capture.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs = 0
        self._captures = 0  # waiting or under way
        self._capturing = False

    @property
    def is_wanted(self) -> bool:
        """Whether a capture is waiting or under way."""
        return self._captures > 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For whatever uses a device without capturing."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_wanted)
            self._runs += 1
        try:
            yield
        finally:
            with self._changed:
                self._runs -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For a capture."""
        with self._changed:
            self._captures += 1
            self._changed.wait_for(lambda: not self._runs and not self._capturing)
            self._capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._captures -= 1
                self._capturing = False
                self._changed.notify_all()


CAPTURES = CaptureLock()


def graph_thread(device_id: int) -> ThreadPoolExecutor:
    """The one thread in which all CUDA graphs of a device are captured and replayed, until the process ends."""
    return _threads(os.getpid(), device_id)


@cache
def _threads(process: int, device_id: int) -> ThreadPoolExecutor:  # noqa: ARG001  # a forked process has no threads
    return ThreadPoolExecutor(1, thread_name_prefix=f"cuda-graphs-{device_id}")
