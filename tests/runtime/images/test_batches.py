"""Files decoded ahead, in batches."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_runtime.images.batches import decode_images
from rnn_runtime.images.limits import MAX_PIXELS
from rnn_runtime.model.spec import ImageSpec
from tests.support.encoded_images import encode, pattern, png_of_claimed_size

SPEC = ImageSpec(4, 3, 1)


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
    batches = list(decode_images(files[:count], SPEC, batch_size=batch_size, threads=threads))

    assert [path for batch in batches for path in batch.names] == files[:count]
    assert all(1 <= len(batch.names) <= batch_size for batch in batches)
    rows = [(batch, row) for batch in batches for row in range(len(batch.names))]
    for i, (batch, row) in enumerate(rows):
        if i % 7:
            assert np.array_equal(batch.images[batch.readable.index(row)], pattern(4, 3, 1, i))
        assert (row in batch.errors) == (i % 7 == 0)


def test_reading_never_runs_far_ahead(files: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for path in itertools.cycle(files):
            taken += 1
            yield path

    with closing(decode_images(endless(), SPEC, batch_size=20, threads=2)) as batches:
        for done in range(1, 20):
            next(batches)
            assert taken <= 20 * (done + 3)


def test_threads_are_gone_when_a_reader_stops_early(files: list[str]) -> None:
    before = threading.active_count()
    batches = decode_images(files * 10, SPEC, batch_size=16, threads=4)
    next(batches)

    batches.close()

    assert threading.active_count() == before


def test_an_interruption_waits_for_the_files_under_way_only(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(encode(pattern(1000, 1000, 1), ".jpg"))
    begun = set()

    class Interrupting:
        """A path whose 20th reading is interrupted, as if Ctrl-C came while the batch is waited for."""

        def __fspath__(self) -> str:
            begun.add(self)
            if len(begun) == 20:
                raise KeyboardInterrupt
            return str(tmp_path / "large.jpg")

    paths = [Interrupting() for _ in range(1000)]
    batches = decode_images(paths, SPEC, batch_size=1000, threads=2)  # type: ignore[arg-type]
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        next(batches)

    assert len(begun) < 500


def test_a_bomb_among_the_files_is_one_error(tmp_path: Path, files: list[str]) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of_claimed_size(50_000, 50_000))

    (batch,) = decode_images([files[1], str(bomb), files[2]], SPEC, batch_size=16, threads=2)

    assert batch.errors == {1: f"the image has more than {MAX_PIXELS} pixels, the limit"}
