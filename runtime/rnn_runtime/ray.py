"""Many images on a Ray cluster: a task for each shard, whose part the caller writes.

It needs the extra `ray`. `rnn-onnx ray` is the command.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from rnn_runtime.classifier import Classifier
from rnn_runtime.engine import Provider
from rnn_runtime.errors import (
    Argument,
    InputError,
    MissingPackageError,
    ModelError,
    ProcessLostError,
    ProviderError,
    RnnOnnxError,
    SettingsError,
)
from rnn_runtime.files.atomic import REMOTE, atomic_write
from rnn_runtime.interruption import POLL_SECONDS, kept_handlers, stop_if_signaled
from rnn_runtime.model.values import Count, check_argument
from rnn_runtime.results.run import DEFAULTS, ImageList, Run, RunOptions, telling
from rnn_runtime.results.shards import Part, PartFolder, PartsSummary, Shard, part_format, write_part

IMAGES_PER_SHARD = 10_000  # some seconds, so that little is lost with a worker
# For a cluster that is started here. It listens on 127.0.0.1 only, since whoever reaches its ports can run code.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

_SECONDS = 10  # in which a cluster must take a connection
_RETRIES = 3  # of a shard whose worker or machine is lost
_REMEDY = "; start again; finished parts are kept"


def classify_on_ray(
    model: str | Path,
    paths: Iterable[str],
    folder: str | Path,
    options: RunOptions = DEFAULTS,
    *,
    provider: Provider = "auto",
    threads: int | None = None,
    shards: int | None = None,
    invert: bool = False,
) -> PartsSummary:
    """Classify images on a Ray cluster, and write parts as `classify_shard` does, for `merge_parts`.

    It runs on the cluster that the variable RAY_ADDRESS names, or else on one that it starts on this machine, for as
    long as it takes. All machines must see the model and the images under the same names, and have this package; the
    parts are written by the caller's machine. Parts that are there already are left alone.

    Args:
        model: The model. Each worker opens it, and checks that it is the caller's by its SHA-256.
        paths: Image files, as `find_images` gives them.
        folder: Gets the parts. It is created if it is missing. As text, it may be in object storage:
            `s3://bucket/folder`.
        options: How files are classified, and what a row shows; any format but `table`. `processes` isn't used.
        provider: `cpu`; `cuda`, with one GPU per task; or `auto`, which is `cuda` if the cluster has GPUs.
        threads: CPU threads per task; None for one on the CPU, and for a GPU its share of the cores.
        shards: How many parts; None for one per 10,000 images.
        invert: As for `Classifier`.

    Raises:
        MissingPackageError: Ray isn't installed.
        InputError: there are no images, or `paths` is a single text.
        SettingsError: a value is out of range, or the cluster has fewer CPUs.
        ModelError, ProviderError, StorageError: as for `Classifier` and `classify_files`, from any worker.
        ProcessLostError: the cluster doesn't answer, or workers died again and again on one shard.
        OutputError: a part can't be written.
    """
    check_argument("provider", provider, Provider)
    check_argument("shards", shards, Count | None)
    ray = _import_ray()
    # A wrong model is found before anything is started.
    classifier = Classifier(model, "cpu", threads=1, invert=invert)
    if isinstance(paths, str):
        raise InputError(Argument("paths"), " is a single text. Put it into a list")
    names = list(paths)
    if not names:
        raise InputError("no images are given. Name some")
    run = Run(classifier, options, part_format(options))
    count, images = shards or -(-len(names) // IMAGES_PER_SHARD), ImageList(names)
    parts = [Part.of(run, Shard(number, count), images) for number in range(1, count + 1)]
    target = PartFolder(folder)
    there = set(target.finished())
    missing = [part for part in parts if part not in there]
    summary = PartsSummary(len(parts), earlier=len(parts) - len(missing))
    if missing:
        relative = not all(name.startswith(REMOTE) or os.path.isabs(name) for name in names)
        with telling(lambda: (_REMEDY,), folder), _connected(ray):
            work = _Work(
                os.path.abspath(model),
                *_lay_out(ray, provider, threads),
                os.getcwd() if relative else None,
                options,
                invert,
            )
            images_of = {part: names[slice(*part.shard.bounds(len(names)))] for part in missing}
            for part, content in _run(ray, work, images_of):
                with target.writing() as local, atomic_write(local / part.name, "wb") as file:
                    file.write(content)
                summary.add(part)
    return summary


@dataclass(frozen=True, slots=True)
class _Work:
    """What a task needs to know.

    Attributes:
        model: The model's path.
        provider: What runs the model. On CUDA, a task has one GPU.
        threads: CPU threads.
        folder: What relative names of images are relative to; None if there are none.
        options: As for `classify_files`.
        invert: As for `Classifier`.
    """

    model: str
    provider: Literal["cpu", "cuda"]
    threads: int
    folder: str | None
    options: RunOptions
    invert: bool


_open = cache(Classifier)  # in a worker, for all its shards


def _classify_part(work: _Work, part: Part, images: Sequence[str]) -> tuple[Part, bytes] | RnnOnnxError:
    """Classify the images of a shard, in a worker. Ray would show an error as a traceback, so ours are results."""
    try:
        if work.folder is not None:
            _enter(work.folder)
        classifier = _open(work.model, work.provider, threads=work.threads, invert=work.invert)
        if not classifier.sha256.startswith(part.model):
            raise ModelError(f"{work.model}: another model than the one on the machine that started the run")
        run = Run(classifier, work.options, part.format)
        with tempfile.TemporaryDirectory() as folder:
            finished = write_part(run, part, images, Path(folder))
            return finished, Path(folder, finished.name).read_bytes()
    except RnnOnnxError as error:
        return error


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: {socket.gethostname()} can't read the images there: {error.strerror}. Name them by absolute "
            "paths that all machines have"
        ) from None


def _run(ray: Any, work: _Work, images: Mapping[Part, Sequence[str]]) -> Iterator[tuple[Part, bytes]]:
    """The parts as they are finished. Ray begins a task again whose worker or machine is lost."""
    gpus = 1 if work.provider == "cuda" else 0
    task = ray.remote(num_cpus=work.threads, num_gpus=gpus, max_retries=_RETRIES)(_classify_part)
    under_way = {task.remote(work, part, names): part for part, names in images.items()}
    while under_way:
        stop_if_signaled()
        for done in ray.wait(list(under_way), timeout=POLL_SECONDS)[0]:
            yield _result(ray, done, under_way.pop(done))


def _result(ray: Any, done: Any, part: Part) -> tuple[Part, bytes]:
    try:
        result: tuple[Part, bytes] | RnnOnnxError = ray.get(done)
    except ray.exceptions.RayTaskError:  # a mistake of ours, not a loss
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split("\n", 1)[0].rstrip(".").split())
        raise ProcessLostError(f"shard {part.shard} failed {1 + _RETRIES} times: {reason}") from None
    if isinstance(result, RnnOnnxError):
        raise result
    return result


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingPackageError(f"Ray can't be imported ({error}). Install it with: pip install ray") from None


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connect to the cluster until the end of the block. A connection that is there already is used, and kept."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    for name, value in {} if address else _LOCAL.items():
        os.environ.setdefault(name, value)
    try:
        with kept_handlers():  # Ray's own would end the process at SIGTERM
            ray.init(
                address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} doesn't answer" if address else "Ray can't be started"
        raise ProcessLostError(f"{where}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that something listens at an address. Ray itself would go on trying for a quarter of an hour."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():  # such as `auto`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ProcessLostError(f"the Ray cluster at {address} doesn't answer: {error}. Check RAY_ADDRESS") from None


def _lay_out(ray: Any, provider: str, threads: int | None) -> tuple[Literal["cpu", "cuda"], int]:
    """What runs the model in each task, and its threads: a core, or a GPU with its share of the cores."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if provider == "cuda" and not gpus:
        raise ProviderError("the Ray cluster has no GPU. Choose ", Argument("provider", "cpu"))
    most = int(max(node["CPU"] for node in nodes))
    if threads and threads > most:
        raise SettingsError(
            Argument("threads", threads), f": no machine of the Ray cluster has more than {most} CPUs. Choose fewer"
        )
    if gpus and provider != "cpu":
        share = max(1, min(int(node["CPU"]) // int(node["GPU"]) for node in nodes if node.get("GPU")))
        return "cuda", threads or share
    return "cpu", threads or 1
