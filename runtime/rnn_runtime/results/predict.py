"""Predictions of image files, by one process or, where that is faster, by several."""

import os
import time
from collections.abc import Generator, Iterable
from itertools import chain, islice

from rnn_runtime.classifier import Classifier, Prediction

_FIRST = 32  # files, since the first ones take longer
_TIMED = 128  # more files
# Seconds of processor time per file. Above, threads decode files as fast as processes: they wait less for Python's
# interpreter lock.
_QUICK = 500e-6
_LEAST = 2_000  # more files that make it worth to start processes


def predict_files(
    classifier: Classifier, paths: Iterable[str], *, top_k: int, batch_size: int, processes: int
) -> Generator[Prediction, None, None]:
    """Classify files as `Classifier.iter_predictions` does, in several processes if there are many small ones.

    On CUDA, one process does it.

    Args:
        classifier: The model.
        paths: Any number of files. Drawn only as far ahead as they are read, by some thousands at most.
        top_k: How many of the most probable classes each prediction holds.
        batch_size: Images per run of the model.
        processes: The most processes to use, this one not counted; with 1, it does all.

    Yields:
        One prediction per file, in the order of `paths`.

    Raises:
        ProcessLostError: one of the processes has ended, for instance because it was killed.
        ProviderError: as for `Classifier.predict`.
    """
    names = iter(paths)
    if processes > 1 and classifier.provider == "cpu" and hasattr(os, "fork"):
        yield from classifier.iter_predictions(islice(names, _FIRST), top_k=top_k, batch_size=batch_size)
        start = time.process_time()
        timed = list(classifier.iter_predictions(islice(names, _TIMED), top_k=top_k, batch_size=batch_size))
        quick = time.process_time() - start < _QUICK * len(timed)
        yield from timed
        following = list(islice(names, _LEAST))
        names = chain(following, names)
        if quick and len(following) == _LEAST:
            from rnn_runtime.results.processes import predict_in_processes

            yield from predict_in_processes(classifier, names, top_k=top_k, batch_size=batch_size, processes=processes)
            return
    yield from classifier.iter_predictions(names, top_k=top_k, batch_size=batch_size)
