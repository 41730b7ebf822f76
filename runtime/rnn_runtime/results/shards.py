"""One list of images, classified by many processes or machines: each takes a shard, and the parts become one file."""

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import Argument, InputError, SettingsError
from rnn_runtime.files.atomic import REMOTE, atomic_write, check_output, growing_file
from rnn_runtime.files.remote import download, import_arrow, list_remote_folder, upload
from rnn_runtime.model.values import check_argument
from rnn_runtime.results.evaluation import FolderEvaluation
from rnn_runtime.results.place import ImagePlacer
from rnn_runtime.results.run import (
    DEFAULTS,
    DIGITS,
    USUALLY_UNLIKE,
    ImageList,
    Run,
    RunOptions,
    RunSummary,
    Watch,
    telling,
)
from rnn_runtime.results.write import DELIMITERS, RESUMABLE, Format, choose_format
from rnn_runtime.text import count_of

_MOST_SHARDS = 99_999
_MOST_NAMED = 10  # missing shards in an error


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
                Argument("shard"),
                f" must be K/N with K from 1 to N and N at most {_MOST_SHARDS:,}, not {self}",
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `K/N` names, such as `3/8`.

        Raises:
            SettingsError: the text names none.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
        if not found:
            raise SettingsError(Argument("shard"), f" must be K/N, such as 3/8 for the third of eight, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def bounds(self, total: int) -> tuple[int, int]:
        """Where the shard of a list of `total` begins, and where it ends. The sizes of shards differ by at most 1."""
        return total * (self.number - 1) // self.count, total * self.number // self.count


@dataclass(frozen=True, slots=True)
class Part:
    """The results of a shard. The name of its file says what they are of and what is in it, so no record is beside it.

    Parts are equal if they are of the same, whatever is in them.

    Attributes:
        shard: Which shard of the list.
        model: The first digits of the model file's SHA-256.
        images: Those of the SHA-256 of the whole list.
        settings: Those of the SHA-256 of the settings that change results.
        format: `csv`, `tsv`, `jsonl` or `parquet`.
        rows: Number of results.
        unreadable: Those of them that couldn't be read, or decoded.
        unlike: Those of them that are unlike the training images.
        content: The first digits of a SHA-256 of the file and of all that the name says, so that a file under another
            part's name is found out; empty until it is complete.
    """

    shard: Shard
    model: str
    images: str
    settings: str
    format: Format
    rows: int = field(default=0, compare=False)
    unreadable: int = field(default=0, compare=False)
    unlike: int = field(default=0, compare=False)
    content: str = field(default="", compare=False)

    @classmethod
    def of(cls, run: Run, shard: Shard, images: ImageList) -> "Part":
        """The part that a run makes of a list of images."""
        settings = hashlib.sha256(json.dumps(run.settings).encode()).hexdigest()
        return cls(shard, run.classifier.sha256[:DIGITS], images.sha256[:DIGITS], settings[:DIGITS], run.format)

    @property
    def stem(self) -> str:
        """The beginning of that name: what the results are of."""
        return (
            f"part-{self.shard.number:05}-of-{self.shard.count:05}-model-{self.model}-images-{self.images}"
            f"-settings-{self.settings}"
        )

    @property
    def name(self) -> str:
        """The name of its file."""
        counts = f"rows-{self.rows}-unreadable-{self.unreadable}-unlike-{self.unlike}"
        return f"{self.stem}-{counts}-content-{self.content}.{self.format}"

    @classmethod
    def parse(cls, name: str) -> "Part | None":
        """The part that a file's name says it is; None for any other file."""
        found = _NAME.fullmatch(name)
        if not found:
            return None
        number, count, model, images, settings, rows, unreadable, unlike, content, format = found.groups()
        counts = int(rows), int(unreadable), int(unlike)
        try:
            shard = Shard(int(number), int(count))
        except SettingsError:
            return None
        return cls(shard, model, images, settings, format, *counts, content)  # type: ignore[arg-type]

    def finished(self, summary: RunSummary, path: str | Path) -> "Part":
        """The same with what is in its file."""
        part = replace(self, rows=summary.images, unreadable=summary.unreadable, unlike=summary.unlike)
        return replace(part, content=part.digest(path))

    def digest(self, path: str | Path) -> str:
        """The first digits of the SHA-256 of a file and of what the name says besides, as in `content`."""
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(replace(self, content="").name.encode())
        return digest.hexdigest()[:DIGITS]


_NAME = re.compile(
    r"part-([0-9]{5})-of-([0-9]{5})-model-([0-9a-f]{12})-images-([0-9a-f]{12})-settings-([0-9a-f]{12})"
    r"-rows-([0-9]{1,12})-unreadable-([0-9]{1,12})-unlike-([0-9]{1,12})-content-([0-9a-f]{12})\.(csv|tsv|jsonl|parquet)",
    re.ASCII,
)


class PartFolder:
    """Where parts are written, and read to be merged.

    In object storage, a part is written on this machine first, into the folder for temporary files, and read from
    there.

    Args:
        path: A folder, or as text, the name of one in object storage: `s3://bucket/folder` or `gs://bucket/folder`.

    Raises:
        InputError: `path` is a `Path` of object storage. It has lost one of the two slashes.
    """

    def __init__(self, path: str | Path) -> None:
        self._remote = isinstance(path, str) and path.startswith(REMOTE)
        if isinstance(path, Path) and path.parts and f"{path.parts[0]}//" in REMOTE:
            raise InputError(f"{path}: a folder in object storage is given as text, not as a Path")
        self._path = str(path).rstrip("/") if self._remote else str(path)

    def __str__(self) -> str:
        return self._path

    def locate(self, name: str) -> str:
        """The path of a part."""
        return f"{self._path}/{name}" if self._remote else os.path.join(self._path, name)

    def finished(self) -> list[Part]:
        """The parts in the folder, in their order; none if it is missing. Other files don't matter.

        Raises:
            InputError: it can't be listed.
            StorageError: the storage doesn't answer, or refuses.
        """
        try:
            if self._remote:
                names = [name for name, is_folder in list_remote_folder(self._path) if not is_folder]
            else:
                names = os.listdir(self._path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self}: can't list this folder: {error.strerror or error}") from None
        return [part for part in map(Part.parse, sorted(names)) if part]

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A folder to write a part into. It is in this folder at the end of the block.

        Raises:
            StorageError: the storage doesn't answer, or refuses.
            OSError: the folder can't be created.
        """
        if not self._remote:
            os.makedirs(self._path, exist_ok=True)
            yield Path(self._path)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            for name in os.listdir(folder):
                upload(Path(folder) / name, self.locate(name))

    @contextmanager
    def reading(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """Paths to read parts from, until the end of the block.

        Raises:
            InputError: a part is gone.
            StorageError: the storage doesn't answer, or refuses.
            OSError: the disk is full.
        """
        if not self._remote:
            yield [Path(self._path) / name for name in names]
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                try:
                    download(self.locate(name), Path(folder) / name)
                except FileNotFoundError:
                    raise InputError(f"{self.locate(name)}: is no longer there. Run its shard again") from None
            yield [Path(folder) / name for name in names]


def classify_shard(
    classifier: Classifier,
    find: Callable[[], Iterable[str]],
    shard: Shard,
    folder: str | Path,
    options: RunOptions = DEFAULTS,
    *,
    evaluation: FolderEvaluation | None = None,
    placer: ImagePlacer | None = None,
    watch: Watch | None = None,
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
        options: How files are classified, and what a row shows; any format but `table`.
        evaluation: As for `classify_files`. It counts the images of this shard.
        placer: As for `classify_files`.
        watch: As for `classify_files`.

    Returns:
        The part's path, and what came out; None for a part that was there already.

    Raises:
        InputError: the list changed while the shard was classified; then there is no part. Or as for `classify_files`.
        SettingsError: as for `classify_files`, or the format is `table`.
        OutputError: the folder or file can't be written.
        StorageError: object storage can't be read or written.
        RunInterruptedError: Ctrl-C or SIGTERM.
    """
    run = Run(classifier, options, part_format(options), evaluation, placer, watch)
    images = ImageList(run.inputs(find()))
    part, parts = Part.of(run, shard, images), PartFolder(folder)
    for finished in parts.finished():
        if finished == part:
            return parts.locate(finished.name), None
    paths = _slice(run.inputs(find()), shard.bounds(images.count), images)
    with telling(lambda: (f"; start shard {shard} again",), parts.locate(part.stem)), parts.writing() as local:
        name = write_part(run, part, paths, local).name
    return parts.locate(name), run.summary


def part_format(options: RunOptions) -> Format:
    """The format of parts.

    Raises:
        SettingsError: it can't be that of parts.
    """
    if options.format == "table":
        raise SettingsError(Argument("format"), " of a shard must be csv, tsv, jsonl or parquet, not table")
    if options.format == "parquet":
        import_arrow("parquet")
    return options.format or "csv"


def write_part(run: Run, part: Part, paths: Iterable[str], folder: Path) -> Part:
    """Classify the images of a shard, and write its part into a folder on a disk, or continue one that is there."""
    path = folder / f"{part.stem}.{part.format}"
    if part.format in RESUMABLE:
        with growing_file(path, run.made_with, resume=True) as growing:
            run.grow(paths, growing)
            finished = part.finished(run.summary, growing.part)
            growing.target = str(folder / finished.name)
    else:
        with atomic_write(path, "wb") as file:
            run.write(paths, file)
        finished = part.finished(run.summary, path)
        os.replace(path, folder / finished.name)
    return finished


def _slice(paths: Iterable[str], bounds: tuple[int, int], expected: ImageList) -> Iterator[str]:
    """The paths from one bound to the other, if all of them are the expected list."""
    start, stop = bounds
    found = ImageList()
    for path in paths:
        found.add(path)
        if start < found.count <= stop:
            yield path
    if found.sha256 != expected.sha256:
        raise InputError(
            f"the images changed while their shard was classified: {expected.count:,} at the beginning, "
            f"{found.count:,} at the end. Run all shards again, once no more images are added or removed"
        )


@dataclass(slots=True)
class PartsSummary:
    """What came out of a run that writes or merges parts.

    Attributes:
        parts: Number of parts in the folder.
        images: Images of the parts that were written or merged.
        unreadable: Those of them that couldn't be read, or decoded.
        unlike: Those of them that are unlike the training images.
        earlier: Parts that were there already, and were left alone.
    """

    parts: int
    images: int = 0
    unreadable: int = 0
    unlike: int = 0
    earlier: int = 0

    def add(self, part: Part) -> None:
        """Count the images of a part."""
        self.images += part.rows
        self.unreadable += part.unreadable
        self.unlike += part.unlike

    def __str__(self) -> str:
        failed = f", {self.unreadable:,} unreadable" if self.unreadable else ""
        failed += f", {self.unlike:,} unlike the training images" if self.unlike > USUALLY_UNLIKE * self.images else ""
        earlier = f" ({self.earlier:,} from before)" if self.earlier else ""
        return f"{count_of(self.images, 'image')}{failed}, {count_of(self.parts, 'part')}{earlier}"


def merge_parts(folder: str | Path, output: str | Path | None = None) -> PartsSummary:
    """Make one file of the parts that `classify_shard` wrote into a folder, in the order of the list of images.

    The parts of all shards must be there, of one model, one list and the same settings. Before anything is written,
    the content of each is compared with the SHA-256 in its name. So the result has each image exactly once.

    Args:
        folder: Holds one part per shard. Other files in it don't matter. As text, it may be in object storage; the
            parts are copied to this machine's folder for temporary files first.
        output: The file to write, of the same format as the parts; None for standard output.

    Raises:
        InputError: there are no parts, some are missing or damaged, or they are of different models, lists or settings.
        SettingsError: `output` names another format than that of the parts, or Parquet is to go to standard output.
        MissingPackageError: the parts are Parquet or in object storage, and pyarrow isn't installed.
        StorageError: object storage can't be read.
        OSError: the file can't be written.
    """
    check_argument("output", output, Path | None)
    source = PartFolder(folder)
    parts = _find_parts(source)
    format = parts[0].format
    if output is not None:
        check_output(Path(output), [source.locate(part.name) for part in parts])
        if choose_format(output, terminal=False) != format:
            raise SettingsError(f"{output}: the parts in {folder} are {format}. Choose a name that ends in .{format}")
    elif format == "parquet":
        raise SettingsError("Parquet needs a file. Set ", Argument("output"))
    if format == "parquet":
        import_arrow("parquet")
    with source.reading([part.name for part in parts]) as paths:
        for part, path in zip(parts, paths, strict=True):
            if part.digest(path) != part.content:
                raise InputError(
                    f"{source.locate(part.name)}: damaged or renamed: its content isn't that of its name. Delete it, "
                    "and run its shard again"
                )
        if output is None:
            sys.stdout.flush()
            _join(paths, sys.stdout.buffer, format)
        else:
            with atomic_write(output, "wb") as file:
                _join(paths, file, format)
    summary = PartsSummary(len(parts))
    for part in parts:
        summary.add(part)
    return summary


_MUST_AGREE: dict[str, Callable[[Part], object]] = {
    "models": lambda part: part.model,
    "lists of images": lambda part: part.images,
    "settings": lambda part: part.settings,
    "formats": lambda part: part.format,
    "numbers of shards": lambda part: part.shard.count,
}


def _find_parts(folder: PartFolder) -> list[Part]:
    """The parts of all shards, in their order. A shard that was run twice counts once."""
    parts = {part: part for part in folder.finished()}
    if not parts:
        raise InputError(f"{folder}: no part of a shard is finished in this folder. Classify the shards first")
    for called, value_of in _MUST_AGREE.items():
        found = sorted({str(value_of(part)) for part in parts})
        if len(found) > 1:
            raise InputError(
                f"{folder}: holds parts of {len(found)} {called}: {', '.join(found)}. Delete those that aren't to be "
                "merged"
            )
    count = next(iter(parts)).shard.count
    missing = sorted(set(range(1, count + 1)) - {part.shard.number for part in parts})
    if missing:
        named = ", ".join(map(str, missing[:_MOST_NAMED])) + (" ..." if len(missing) > _MOST_NAMED else "")
        raise InputError(
            f"{folder}: {len(missing):,} of {count:,} shards missing: {named}. Run them again, such as rnn-infer "
            f"--shard {missing[0]}/{count}"
        )
    return list(parts.values())


def _join(paths: Sequence[Path], target: IO[bytes], format: Format) -> None:
    if format == "parquet":
        parquet = import_arrow("parquet")
        with parquet.ParquetWriter(target, parquet.read_schema(paths[0])) as writer:
            for path in paths:
                with parquet.ParquetFile(path) as part:
                    for batch in part.iter_batches(batch_size=1 << 16):
                        writer.write_batch(batch)
        return
    for number, path in enumerate(paths):
        with path.open("rb") as part:
            if format in DELIMITERS and number:
                part.readline()  # the header
            shutil.copyfileobj(part, target, io.DEFAULT_BUFFER_SIZE << 6)
    target.flush()
