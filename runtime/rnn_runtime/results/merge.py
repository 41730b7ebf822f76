"""The parts of all shards, made into one file of results."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rnn_runtime.errors import InputError, SettingsError
from rnn_runtime.files.arrow import import_arrow
from rnn_runtime.files.atomic import atomic_write, check_output
from rnn_runtime.model.values import check_argument
from rnn_runtime.results.part_folder import PartFolder
from rnn_runtime.results.shards import ImageList, Part
from rnn_runtime.results.write import DELIMITERS, choose_format, printed_path
from rnn_runtime.text import count_of

_MOST_NAMED = 10  # missing shards in an error
_WHAT_A_PART_SAYS = {"model": "models", "images": "lists of images", "settings": "settings", "format": "formats"}


@dataclass(slots=True)
class MergeSummary:
    """What was merged.

    Attributes:
        parts: Number of parts.
        images: Images that have a result.
        unreadable: Those of them with an error.
    """

    parts: int
    images: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        failed = f", {self.unreadable:,} unreadable" if self.unreadable else ""
        return f"{count_of(self.images, 'image')}{failed}, from {count_of(self.parts, 'part')}"


def merge_parts(folder: str | Path, output: str | Path | None = None) -> MergeSummary:
    """Make one file of the parts that `classify_shard` wrote into a folder, in the order of the list of images.

    Before anything is written, the paths in the parts are compared with the list that they were made of, by its
    SHA-256. So the result has each image exactly once.

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
        raise SettingsError("Parquet needs a file. Set `output`")
    if format == "parquet":
        import_arrow("parquet")
    with source.reading([part.name for part in parts]) as paths:
        return _merge(source, parts, paths, output)


def _merge(source: PartFolder, parts: Sequence[Part], paths: Sequence[Path], output: str | Path | None) -> MergeSummary:
    summary, format = MergeSummary(len(parts)), parts[0].format
    images = ImageList.of(_check_parts(source, parts, paths, summary))
    if images.name != parts[0].images:
        raise InputError(
            f"{source}: the paths in the parts aren't the list that they were made of, so a part is damaged. Delete "
            "them, and run the shards again"
        )
    if output is None:
        sys.stdout.flush()
        _copy(paths, sys.stdout.buffer, format)
        return summary
    with atomic_write(output, "wb") as file:
        _copy(paths, file, format)
    return summary


def _find_parts(folder: PartFolder) -> list[Part]:
    """The parts of all shards, in their order."""
    parts = sorted((part for part in map(Part.parse, folder.names()) if part), key=lambda part: part.shard.number)
    if not parts:
        raise InputError(f"{folder}: no part of a shard is finished in this folder. Write some with `shard`")
    for attribute, called in _WHAT_A_PART_SAYS.items():
        found = sorted({getattr(part, attribute) for part in parts})
        if len(found) > 1:
            raise InputError(
                f"{folder}: holds parts of {len(found)} {called}: {', '.join(found)}. Delete those that aren't to be "
                "merged"
            )
    counts = sorted({part.shard.count for part in parts})
    if len(counts) > 1:
        raise InputError(
            f"{folder}: holds parts of {' and of '.join(map(str, counts))} shards. Delete those that aren't to be "
            "merged"
        )
    missing = sorted(set(range(1, counts[0] + 1)) - {part.shard.number for part in parts})
    if missing:
        named = ", ".join(map(str, missing[:_MOST_NAMED])) + (" ..." if len(missing) > _MOST_NAMED else "")
        raise InputError(
            f"{folder}: {len(missing):,} of {counts[0]:,} shards missing: {named}. Run them again, such as "
            f"rnn-infer --shard {missing[0]}/{counts[0]}"
        )
    return parts


def _check_parts(
    source: PartFolder, parts: Sequence[Part], paths: Sequence[Path], summary: MergeSummary
) -> Iterator[str]:
    """The paths in all rows. All parts must have the same columns."""
    columns: list[str] | None = None
    for part, path in zip(parts, paths, strict=True):
        try:
            for row in _read_rows(path, part.format):
                columns = columns or list(row)
                if list(row) != columns or not isinstance(row["path"], str):
                    raise ValueError(
                        f"its columns are {', '.join(map(str, row))}, and those before {', '.join(columns)}"
                    )
                summary.images += 1
                summary.unreadable += bool(row["error"])
                yield printed_path(row["path"])
        except (ValueError, TypeError, KeyError, AttributeError, csv.Error, RecursionError) as error:
            # pyarrow's errors are ValueErrors
            where = source.locate(part.name)
            raise InputError(
                f"{where}: damaged: {str(error).rstrip('.')}. Delete it, and run its shard again"
            ) from None


def _read_rows(path: Path, format: str) -> Iterator[dict[str, Any]]:
    """The rows of a part, with at least `path` and `error`."""
    if format == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["path", "error"]):
                yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as text:
        if format == "jsonl":
            yield from map(json.loads, text)
            return
        reader = csv.reader(text, delimiter=DELIMITERS[format], strict=True)  # type: ignore[index]
        names = next(reader, None)
        if names is None:
            raise ValueError("it has no header")
        for values in reader:
            if len(values) != len(names):
                raise ValueError(f"line {reader.line_num} has {len(values)} values, and the header {len(names)}")
            yield dict(zip(names, values, strict=True))


def _copy(paths: Iterable[Path], target: IO[bytes], format: str) -> None:
    if format == "parquet":
        _copy_parquet(paths, target)
        return
    for number, path in enumerate(paths):
        with path.open("rb") as part:
            if format in DELIMITERS and number:
                part.readline()  # the header
            shutil.copyfileobj(part, target, io.DEFAULT_BUFFER_SIZE << 6)
    target.flush()


def _copy_parquet(paths: Iterable[Path], target: IO[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    writer = None
    for path in paths:
        with pyarrow.parquet.ParquetFile(path) as part:
            writer = writer or pyarrow.parquet.ParquetWriter(target, part.schema_arrow)
            for batch in part.iter_batches(batch_size=1 << 16):
                writer.write_batch(batch)
    if writer:
        writer.close()
