"""Small image files, read, decoded and classified by several processes.

Python's interpreter lock lets one thread at a time do most of that work, so threads use little more than one core.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue

from rnn_runtime.classifier import Classifier, Prediction, Ranking
from rnn_runtime.errors import ProcessLostError
from rnn_runtime.files.remote import is_remote
from rnn_runtime.interruption import SIGNALS

_LARGEST_BATCH = 1_024  # files that a process takes at a time, so that all have some
_AHEAD = 3  # batches per process
_MOST = 16  # processes; from some six on, they wait for this one, which writes the results


def predict_in_processes(
    classifier: Classifier, paths: Iterable[str], *, top_k: int, batch_size: int, processes: int
) -> Generator[Prediction, None, None]:
    """Classify files on the CPU, in processes that are forked from this one and end with it.

    Files in object storage are classified here, since connections to it can't be shared with a forked process.

    Arguments, results and errors are those of `predict_files`.
    """
    names = iter(paths)
    local = _LocalBatches(names, min(batch_size, _LARGEST_BATCH))
    batches = iter(local)
    processes = min(processes, _MOST)
    ended, end = multiprocessing.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_begin, initargs=(classifier, ended, end)
    )
    top = min(top_k, len(classifier.class_names))
    try:
        with _signals_held():
            waiting = deque(_Task(executor, batch, top) for batch in islice(batches, _AHEAD * processes))
        while waiting:
            task = waiting.popleft()
            ranking = task.wait()
            waiting.extend(_Task(executor, batch, top) for batch in islice(batches, 1))
            yield from classifier.name_ranking(task.names, ranking)
    except BrokenProcessPool:
        # The executor sends SIGTERM, which the others ignore. One of them may wait for a lock of the one that ended.
        end.close()
        raise ProcessLostError("a process that classified images has ended: it was killed, or memory ran out") from None
    finally:
        executor.shutdown(cancel_futures=True)
        end.close()
        ended.close()
    yield from classifier.iter_predictions(chain(local.rest, names), top_k=top_k, batch_size=batch_size)


class _LocalBatches:
    """The batches of a list of names, up to the first in object storage.

    Attributes:
        rest: The names of the batch that holds it.
    """

    def __init__(self, names: Iterator[str], size: int) -> None:
        self._names, self._size = names, size
        self.rest: list[str] = []

    def __iter__(self) -> Iterator[list[str]]:
        while not self.rest and (batch := list(islice(self._names, self._size))):
            if any(map(is_remote, batch)):
                self.rest = batch
            else:
                yield batch


class _Task:
    """A batch that another process classifies."""

    def __init__(self, executor: ProcessPoolExecutor, names: Sequence[str], top_k: int) -> None:
        self.names = names
        # Waited for instead of the future, for the reason that images/pool.py gives.
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._ranking: Future[Ranking] = executor.submit(_rank, names, top_k)
        self._ranking.add_done_callback(lambda _: self._finished.put(None))

    def wait(self) -> Ranking:
        self._finished.get()
        return self._ranking.result()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that ignore Ctrl-C and SIGTERM, which may reach all: this process ends them in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on: a thread may hold a lock at the fork. Those that decode have ended by now, and a
            # classifier forgets its own in the new process.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_classifier: Classifier  # of a process that was started here


def _begin(classifier: Classifier, ended: Connection, end: Connection) -> None:
    global _classifier
    _classifier = classifier
    end.close()  # the parent's is the only one then, so closing that is noticed
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()


def _end_with_parent(ended: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel, ended])
    os._exit(1)


def _rank(names: Sequence[str], top_k: int) -> Ranking:
    return _classifier.rank_files(names, top_k)
