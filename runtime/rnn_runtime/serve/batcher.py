"""Requests that wait while the model runs become the next batch."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import ModelError, ProviderError

Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of the images of a request.

    Attributes:
        values: float32 `(batch, classes)` per output.
        unlike: In what each image is unlike the training images, as `Classifier.find_unlike` says.
    """

    values: Values
    unlike: list[str | None]


@dataclass(slots=True, eq=False)
class _Job:
    images: NDArray[np.uint8]
    outputs: frozenset[str]
    aspect_ratios: Sequence[float]
    result: "asyncio.Future[Answer]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Runs a model on what several requests ask for at the same time.

    A request waits for the batch under way and no longer: no time is spent on waiting for more requests. Used in one
    event loop; the model runs in a thread of its own.

    Args:
        classifier: The model.
        batch_size: The most images per batch, and per request.
        watch: Called with the number of images of each batch that has run.

    Raises:
        RuntimeError: its thread can't be started.
    """

    def __init__(self, classifier: Classifier, batch_size: int, watch: Callable[[int], object]) -> None:
        self._classifier, self._batch_size, self._watch = classifier, batch_size, watch
        self._waiting: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._thread.submit(int).result()
        self._worker: asyncio.Task[None] | None = None

    async def run(
        self, images: NDArray[np.uint8], outputs: Sequence[str], aspect_ratios: Sequence[float] = ()
    ) -> Answer:
        """Run the model.

        Args:
            images: uint8 `(batch, height, width, channels)`, batch from 1 to `batch_size`.
            outputs: `logits`, `probabilities` or both.
            aspect_ratios: Width / height of each image before it was fitted; empty where that isn't known.

        Raises:
            ModelError: an output isn't finite.
            ProviderError: the run failed.
        """
        job = _Job(images, frozenset(outputs), aspect_ratios or [math.nan] * len(images))
        self._waiting.append(job)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await job.result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            results: Sequence[Answer | Exception]
            try:
                results = await loop.run_in_executor(self._thread, self._run_each, batch)
            except Exception as error:  # a bug, or no memory for a thread; nobody must wait forever
                results = [error] * len(batch)
            for job, result in zip(batch, results, strict=True):
                if job.result.cancelled():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)
        self._worker = None

    def _next_batch(self) -> list[_Job]:
        batch: list[_Job] = []
        images = 0
        while self._waiting and images + len(self._waiting[0].images) <= self._batch_size:
            job = self._waiting.popleft()
            if not job.result.cancelled():
                batch.append(job)
                images += len(job.images)
        return batch

    def _run_each(self, batch: list[_Job]) -> "list[Answer] | list[Answer | Exception]":
        """In the model's thread: run a batch; if that fails, each of its requests alone."""
        try:
            return self._run(batch)
        except (ModelError, ProviderError):
            return [self._run_alone(job) for job in batch]

    def _run_alone(self, job: _Job) -> "Answer | Exception":
        try:
            return self._run([job])[0]
        except (ModelError, ProviderError) as error:
            return error

    def _run(self, batch: list[_Job]) -> list[Answer]:
        images = batch[0].images if len(batch) == 1 else np.concatenate([job.images for job in batch])
        wanted = frozenset[str]().union(*(job.outputs for job in batch))
        run = {"logits": self._classifier.predict_logits, "probabilities": self._classifier.predict_proba}
        values = {name: run[name](images) for name in wanted}
        unlike = self._classifier.find_unlike(images, [ratio for job in batch for ratio in job.aspect_ratios])
        self._watch(len(images))
        answers, start = [], 0
        for job in batch:
            end = start + len(job.images)
            answers.append(Answer({name: values[name][start:end] for name in job.outputs}, unlike[start:end]))
            start = end
        return answers
