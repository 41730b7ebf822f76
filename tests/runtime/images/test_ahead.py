"""Files decoded ahead, in batches."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.errors import ImageError
from rnn_runtime.images.ahead import PEEKED, ReadAhead
from rnn_runtime.images.decode import Decoded, read_images
from rnn_runtime.images.limits import MAX_PIXELS
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pattern, png_of_claimed_size

SPEC = ImageSpec(4, 3, 1)


def read(paths: Iterable[str]) -> list[Decoded | ImageError]:
    return read_images(paths, SPEC)


def mapped(function: Callable[[Iterable[str]], list[Any]], paths: Iterable[str], **options: Any) -> list[Any]:
    with ReadAhead(paths, **options).map(function) as batches:
        return list(batches)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """60 files, every seventh of them no image."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(60):
        (folder / f"{i:02}.png").write_bytes(encode(pattern(4, 3, 1, i)) if i % 7 else b"no image")
    return sorted(map(str, folder.iterdir()))


@given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 4))
def test_every_file_comes_once_in_order_whatever_the_batches(
    files: list[str], count: int, batch_size: int, threads: int
) -> None:
    batches = mapped(read, files[:count], batch_size=batch_size, threads=threads)

    assert [path for batch, _ in batches for path in batch] == files[:count]
    assert all(1 <= len(batch) <= batch_size for batch, _ in batches)
    for i, found in enumerate(found for _, batch in batches for found in batch):
        if i % 7:
            assert isinstance(found, Decoded)
            assert np.array_equal(found.pixels, pattern(4, 3, 1, i))
        else:
            assert isinstance(found, ImageError)


@pytest.mark.parametrize(
    ("count", "size", "kind", "workers"),
    [
        (1, 1 << 20, "here", 1),
        (16, 100, "here", 1),
        (17, 100, "threads", 1),  # small files hold Python's lock most of the time
        (2, 1 << 20, "threads", 4),
        (PEEKED - 1, 100, "threads", 1),
        (PEEKED, 100, "processes", 3),
        (PEEKED, 1 << 20, "threads", 4),
    ],
)
def test_who_reads_is_decided_by_number_and_size(
    tmp_path: Path, count: int, size: int, kind: str, workers: int
) -> None:
    (tmp_path / "a").write_bytes(bytes(size))

    found = ReadAhead([str(tmp_path / "a")] * count, batch_size=256, threads=4, processes=3).workers

    assert (found.kind, found.count) == (kind, workers)


def test_object_storage_is_read_by_many_threads() -> None:
    assert ReadAhead(["a.png", "s3://bucket/a.png"], batch_size=256, threads=2, processes=2).workers.count == 32


def test_reading_never_runs_far_ahead(files: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for path in itertools.cycle(files):
            taken += 1
            yield path

    with ReadAhead(endless(), batch_size=20, threads=2).map(read) as batches:
        for done in range(1, 20):
            next(batches)
            assert taken <= 20 * (done + 3) + 1


def test_threads_are_gone_when_a_reader_stops_early(files: list[str]) -> None:
    before = set(threading.enumerate())
    with ReadAhead(files * 10, batch_size=16, threads=4).map(read) as batches:
        next(batches)

    wait_until(lambda: set(threading.enumerate()) <= before)


def test_an_error_waits_for_the_files_under_way_only(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(encode(pattern(1000, 1000, 1), ".jpg"))
    begun = itertools.count(1)
    last = 0

    def fail(paths: Iterable[str]) -> list[Decoded | ImageError]:
        nonlocal last
        values: list[Decoded | ImageError] = []
        for path in paths:
            last = next(begun)
            if last == 20:
                raise KeyboardInterrupt
            values += read([path])
        return values

    with pytest.raises(KeyboardInterrupt):
        mapped(fail, [str(tmp_path / "large.jpg")] * 1000, batch_size=1000, threads=2)

    assert last < 500


def test_processes_end_with_a_reader_that_stops_early(files: list[str]) -> None:
    def process(paths: Iterable[str]) -> list[int]:
        return [os.getpid() for _ in paths]

    with ReadAhead(files * 100, batch_size=16, threads=1, processes=2).map(process) as batches:
        pids = set(next(batches)[1])
    assert os.getpid() not in pids

    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids))


def test_a_bomb_among_the_files_is_one_error(tmp_path: Path, files: list[str]) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of_claimed_size(50_000, 50_000))

    ((_, (first, second, third)),) = mapped(read, [files[1], str(bomb), files[2]], batch_size=16, threads=2)

    assert str(second) == f"the image has more than {MAX_PIXELS} pixels, the limit"
    assert isinstance(first, Decoded)
    assert isinstance(third, Decoded)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not so after 30 s")
