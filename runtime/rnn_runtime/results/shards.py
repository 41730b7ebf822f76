"""One list of images, classified by many processes or machines: each takes a shard, and writes its part."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import InputError, SettingsError
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.part_folder import PartFolder
from rnn_runtime.results.place import ImagePlacer
from rnn_runtime.results.run import RunSummary, classify_files
from rnn_runtime.results.write import Format, printed_path

_DIGITS = 12  # of a SHA-256 in a file name
_MOST_SHARDS = 99_999


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal parts of a list.

    Attributes:
        number: Which one, from 1 on.
        count: How many there are.

    Raises:
        SettingsError: `number` isn't from 1 to `count`, or there are too many.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= _MOST_SHARDS:
            raise SettingsError(
                f"`shard` must be K/N with K from 1 to N and N at most {_MOST_SHARDS:,}, not {self.number}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `K/N` names, such as `3/8`.

        Raises:
            SettingsError: the text names none.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
        if not found:
            raise SettingsError(f"`shard` must be K/N, such as 3/8 for the third of eight, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def bounds(self, total: int) -> tuple[int, int]:
        """Where the shard of a list of `total` begins, and where it ends. The sizes of shards differ by at most 1."""
        return total * (self.number - 1) // self.count, total * self.number // self.count


@dataclass(frozen=True, slots=True)
class Part:
    """The file of a shard's results. Its name says what they are of, so that only parts that fit are merged.

    Attributes:
        shard: Which shard of the list.
        model: The first digits of the model file's SHA-256.
        images: Those of the SHA-256 of the list.
        settings: Those of the SHA-256 of the settings that change results.
        format: `csv`, `tsv`, `jsonl` or `parquet`.
    """

    shard: Shard
    model: str
    images: str
    settings: str
    format: Format

    @property
    def name(self) -> str:
        """The file's name."""
        return (
            f"part-{self.shard.number:05}-of-{self.shard.count:05}-model-{self.model}-images-{self.images}"
            f"-settings-{self.settings}.{self.format}"
        )

    @classmethod
    def parse(cls, name: str) -> "Part | None":
        """The part that a file's name says it is; None for any other file."""
        found = _NAME.fullmatch(name)
        if not found:
            return None
        number, count, model, images, settings, format = found.groups()
        try:
            return cls(Shard(int(number), int(count)), model, images, settings, format)  # type: ignore[arg-type]
        except SettingsError:
            return None


_NAME = re.compile(
    r"part-([0-9]{5})-of-([0-9]{5})-model-([0-9a-f]{12})-images-([0-9a-f]{12})-settings-([0-9a-f]{12})"
    r"\.(csv|tsv|jsonl|parquet)",
    re.ASCII,
)


class ImageList:
    """The hash of a list of paths, which grows as they pass.

    Paths are hashed as Parquet holds them, so that the list can be recognized in results of any format.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count, self._digest = 0, hashlib.sha256()

    def watch(self, paths: Iterable[str]) -> Iterator[str]:
        """Pass paths on, and add each."""
        for path in paths:
            self.count += 1
            self._digest.update(printed_path(path).encode() + b"\0")
            yield path

    @property
    def name(self) -> str:
        """The first digits of the SHA-256 so far."""
        return self._digest.hexdigest()[:_DIGITS]

    @classmethod
    def of(cls, paths: Iterable[str]) -> "ImageList":
        """The list of all paths."""
        images = cls()
        for _ in images.watch(paths):
            pass
        return images


def make_part(
    classifier: Classifier,
    shard: Shard,
    images: ImageList,
    format: Format,
    *,
    top_k: int,
    min_probability: float | None,
    checkpoint_column: bool,
    true_label: bool = False,
) -> Part:
    """The part of a shard of a list that is complete. Arguments are those of `classify_shard`."""
    columns = {
        "top_k": min(top_k, len(classifier.class_names)),
        "min_probability": min_probability,
        "checkpoint_column": checkpoint_column,
        "true_label": true_label,
    }
    settings = hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:_DIGITS]
    return Part(shard, classifier.sha256[:_DIGITS], images.name, settings, format)


def classify_shard(
    classifier: Classifier,
    find: Callable[[], Iterable[str]],
    shard: Shard,
    folder: str | Path,
    *,
    format: Format = "csv",
    top_k: int = 1,
    min_probability: float | None = None,
    checkpoint_column: bool = False,
    evaluation: FolderEvaluation | None = None,
    placer: ImagePlacer | None = None,
    **options: Any,
) -> tuple[str, RunSummary | None]:
    """Classify one shard of a list of images, and write its part of the results into a folder.

    Run it for every shard, on any machines that see the same files under the same names. Then `merge_parts` makes one
    file of the parts. A part that is there already is left alone, and one that a killed run has begun is continued
    (Parquet and object storage: begun again), so that a scheduler may repeat the same call.

    Args:
        classifier: The model.
        find: Lists all images, in the same order each time. Called twice: to count and to classify.
        shard: Which part of the list.
        folder: Gets the part. It is created if it is missing. As text, it may be in object storage:
            `s3://bucket/folder`.
        format: `csv`, `tsv`, `jsonl` or `parquet`.
        top_k: As for `classify_files`.
        min_probability: As for `classify_files`.
        checkpoint_column: As for `classify_files`.
        evaluation: As for `classify_files`. It counts the images of this shard.
        placer: As for `classify_files`.
        options: More for `classify_files`: `batch_size`, `watch`.

    Returns:
        The part's path, and what came out; None for a part that was there already.

    Raises:
        InputError: the list changed while the shard was classified; then there is no part. Or as for `classify_files`.
        SettingsError: as for `classify_files`, or `format` is `table`.
        OutputError: the folder or file can't be written.
        StorageError: object storage can't be read or written.
        RunInterruptedError: Ctrl-C or SIGTERM.
    """
    if format == "table":
        raise SettingsError("`format` of a shard must be csv, tsv, jsonl or parquet, not table")

    def find_inputs() -> Iterable[str]:
        return itertools.filterfalse(placer.contains, find()) if placer else find()

    images = ImageList.of(find_inputs())
    part = make_part(
        classifier,
        shard,
        images,
        format,
        top_k=top_k,
        min_probability=min_probability,
        checkpoint_column=checkpoint_column,
        true_label=evaluation is not None,
    )
    parts = PartFolder(folder)
    path = parts.locate(part.name)
    if part.name in parts.names(missing_ok=True):
        return path, None
    with parts.writing(part.name) as file:
        summary = classify_files(
            classifier,
            _slice(find_inputs(), shard.bounds(images.count), images),
            file,
            format=format,
            top_k=top_k,
            min_probability=min_probability,
            checkpoint_column=checkpoint_column,
            evaluation=evaluation,
            placer=placer,
            resume=format != "parquet",
            remedy=f"start shard {shard.number}/{shard.count} again",
            **options,
        )
    return path, summary


def _slice(paths: Iterable[str], bounds: tuple[int, int], expected: ImageList) -> Iterator[str]:
    """The paths from one bound to the other, if all of them are the expected list."""
    start, stop = bounds
    found = ImageList()
    listed = found.watch(paths)
    yield from itertools.islice(listed, start, stop)
    for _ in listed:  # the rest is part of the hash
        pass
    if (found.count, found.name) != (expected.count, expected.name):
        raise InputError(
            f"the images changed while their shard was classified: {expected.count:,} at the beginning, "
            f"{found.count:,} at the end. Run all shards again, once no more images are added or removed"
        )
