"""Many images on a Ray cluster: each actor opens the model once, and classifies shards with it."""

import os
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnn_runtime.classifier import BATCH_SIZE, Classifier
from rnn_runtime.engine import Provider
from rnn_runtime.errors import InputError, ModelError, ProcessLostError, RnnOnnxError, SettingsError
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.files.remote import is_remote
from rnn_runtime.model.values import Count, check_argument
from rnn_runtime.ray.cluster import Layout, connect, import_ray, lay_out
from rnn_runtime.results.part_folder import PartFolder
from rnn_runtime.results.run import classify_files
from rnn_runtime.results.shards import ImageList, Part, Shard, make_part
from rnn_runtime.results.write import Format
from rnn_runtime.text import count_of

IMAGES_PER_SHARD = 10_000  # some seconds, so that little is lost with an actor
_RETRIES = 3  # of a shard whose actor died
_REMEDY = "start again; finished parts are kept"


@dataclass(slots=True)
class RaySummary:
    """What came out of a run.

    Attributes:
        parts: Number of parts in the folder.
        earlier: Those of them that were there already.
        images: Images of the parts that this run wrote.
        unreadable: Those of them with an error.
    """

    parts: int
    earlier: int = 0
    images: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        earlier = f" ({self.earlier:,} from before)" if self.earlier else ""
        failed = f", {self.unreadable:,} unreadable" if self.unreadable else ""
        return f"{count_of(self.images, 'image')}{failed}, {count_of(self.parts, 'part')}{earlier}"


def classify_on_ray(
    model: str | Path,
    paths: Iterable[str],
    folder: str | Path,
    *,
    provider: Provider = "auto",
    actors: int | None = None,
    threads: int | None = None,
    shards: int | None = None,
    format: Format = "csv",
    top_k: int = 1,
    min_probability: float | None = None,
    checkpoint_column: bool = False,
    batch_size: int = BATCH_SIZE,
) -> RaySummary:
    """Classify images on a Ray cluster, and write parts as `classify_shard` does, for `merge_parts`.

    It runs on the cluster that the variable RAY_ADDRESS names, or else on one that it starts on this machine, for as
    long as it takes. All machines must see the model and the images under the same names, and have this package; the
    parts are written by the caller's machine. Parts that are there already are left alone.

    Args:
        model: The model. Each actor opens it, and checks that it is the caller's by its SHA-256.
        paths: Image files, as `find_images` gives them.
        folder: Gets the parts. It is created if it is missing. As text, it may be in object storage:
            `s3://bucket/folder`.
        provider: `cpu`; `cuda`, with one GPU per actor; or `auto`, which is `cuda` if the cluster has GPUs.
        actors: How many; None for one per GPU or machine.
        threads: CPU threads per actor; None for all of its machine, or its share of them.
        shards: How many parts; None for one per 10,000 images.
        format: `csv`, `tsv`, `jsonl` or `parquet`.
        top_k: As for `classify_files`.
        min_probability: As for `classify_files`.
        checkpoint_column: As for `classify_files`.
        batch_size: As for `classify_files`.

    Raises:
        MissingPackageError: Ray isn't installed.
        InputError: there are no images, or `paths` is a single text.
        SettingsError: a value is out of range, or the cluster has fewer CPUs or GPUs.
        ModelError, ProviderError, StorageError: as for `Classifier` and `classify_files`, from any actor.
        ProcessLostError: the cluster doesn't answer, or actors died again and again on one shard.
        OSError: a part can't be written.
    """
    check_argument("provider", provider, Provider)
    check_argument("actors", actors, Count | None)
    check_argument("shards", shards, Count | None)
    ray = import_ray()
    if format == "table":
        raise SettingsError("`format` of parts must be csv, tsv, jsonl or parquet, not table")
    classifier = Classifier(model, "cpu", threads=1)  # so that a wrong model is found before anything is started
    if isinstance(paths, str):
        raise InputError("`paths` is a single text. Put it into a list")
    names = list(paths)
    if not names:
        raise InputError("no images are given. Name some")
    options: dict[str, Any] = {
        "top_k": top_k,
        "min_probability": min_probability,
        "checkpoint_column": checkpoint_column,
    }
    images, count = ImageList.of(names), shards or -(-len(names) // IMAGES_PER_SHARD)
    parts = [make_part(classifier, Shard(number, count), images, format, **options) for number in range(1, count + 1)]
    work = _Work(
        model=os.path.abspath(model),
        sha256=classifier.sha256,
        folder=None if all(is_remote(name) or os.path.isabs(name) for name in names) else os.getcwd(),
        options=options | {"format": format, "batch_size": batch_size},
    )
    target = PartFolder(folder)
    there = target.names(missing_ok=True)
    missing = [part for part in parts if part.name not in there]
    summary = RaySummary(len(parts), len(parts) - len(missing))
    if missing:
        with connect(ray):
            for result in _run(ray, work, lay_out(ray, provider, actors, threads), names, missing):
                with target.writing(result.name) as path, atomic_write(path, "wb") as file:
                    file.write(result.content)
                summary.images += result.images
                summary.unreadable += result.unreadable
    return summary


@dataclass(frozen=True, slots=True)
class _Work:
    """What each actor is told.

    Attributes:
        model: The model's path.
        sha256: What its SHA-256 must be.
        folder: What relative names of images are relative to; None if there are none.
        options: For `classify_files`.
    """

    model: str
    sha256: str
    folder: str | None
    options: Mapping[str, Any]


class _ShardClassifier:
    """An actor. What it raises would be a traceback of Ray's, so errors of ours are results."""

    def __init__(self, work: _Work, layout: Layout) -> None:
        self._work = work
        self._classifier: Classifier | None = None
        self._error: RnnOnnxError | None = None
        try:
            if work.folder is not None:
                _enter(work.folder)
            self._classifier = Classifier(work.model, layout.provider, threads=layout.threads)
            if self._classifier.sha256 != work.sha256:
                raise ModelError(f"{work.model}: another model than the one on the machine that started the run")
        except RnnOnnxError as error:
            self._error = error

    def ready(self) -> RnnOnnxError | None:
        """What went wrong at the start; None if nothing did."""
        return self._error

    def classify(self, name: str, images: Sequence[str]) -> "_Written | RnnOnnxError":
        """Classify the images of a shard."""
        assert self._classifier is not None
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                summary = classify_files(self._classifier, images, path, remedy=_REMEDY, **self._work.options)
                return _Written(name, path.read_bytes(), summary.images, summary.unreadable)
        except RnnOnnxError as error:
            return error


@dataclass(frozen=True, slots=True)
class _Written:
    """A part: its name, its content, and what is in it."""

    name: str
    content: bytes
    images: int
    unreadable: int


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: {socket.gethostname()} can't read the images there: {error.strerror}. Name them by absolute "
            "paths that all machines have"
        ) from None


def _run(ray: Any, work: _Work, layout: Layout, names: Sequence[str], missing: Sequence[Part]) -> Iterator[_Written]:
    """The parts' content, as they are finished.

    Ray's own pools and retries give a shard up when its machine vanishes, since that may take some seconds to be
    known. Here its actor is replaced and the shard begun anew, which changes nothing else: nothing is written before
    the caller does it. A new actor gets shards once it has started, for which there may be no room any more.
    """
    actor = ray.remote(num_cpus=layout.threads, num_gpus=1 if layout.provider == "cuda" else 0)(_ShardClassifier)
    waiting, failures = deque(missing), Counter[Part | None]()
    running: dict[Any, tuple[Any, Part | None]] = {}  # without a part, an actor that starts

    def start() -> None:
        new = actor.remote(work, layout)
        running[new.ready.remote()] = new, None

    for _ in range(layout.actors):
        start()
    while waiting or any(part for _, part in running.values()):
        (done,), _ = ray.wait(list(running))
        one, part = running.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError):  # a mistake of ours, not a loss
                raise
            ray.kill(one)
            _count_failure(failures, part, error)
            if part:
                waiting.appendleft(part)
            start()
            continue
        if isinstance(result, RnnOnnxError):
            raise result
        if waiting:
            following = waiting.popleft()
            images = names[slice(*following.shard.bounds(len(names)))]
            running[one.classify.remote(following.name, images)] = one, following
        if part:
            yield result


def _count_failure(failures: Counter[Part | None], part: Part | None, error: Exception) -> None:
    failures[part] += 1
    if failures[part] > _RETRIES:
        reason = " ".join(str(error).split("\n", 1)[0].rstrip(".").split())
        what = f"shard {part.shard.number}/{part.shard.count}" if part else "starting actors"
        raise ProcessLostError(f"{what} failed {failures[part]} times: {reason}; {_REMEDY}")
