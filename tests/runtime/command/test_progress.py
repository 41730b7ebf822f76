"""The bar that counts images while they are classified."""

import threading
from collections.abc import Iterator

import pytest

from rnn_runtime.command.progress import ImageBar
from rnn_runtime.errors import InputError
from rnn_runtime.images.ahead import PEEKED

PATHS = [f"{i}.png" for i in range(PEEKED + 100)]


def test_paths_are_found_once_ahead_of_who_takes_them() -> None:
    found: list[str] = []
    all_found = threading.Event()

    def find() -> Iterator[str]:
        for path in PATHS:
            found.append(path)
            yield path
        all_found.set()

    with ImageBar() as bar:
        paths = bar.count(find())
        first = [next(paths) for _ in range(PEEKED + 1)]
        assert all_found.wait(timeout=60)
        rest = list(paths)

    assert [*first, *rest] == found == PATHS


def test_error_while_paths_are_found_reaches_who_takes_them() -> None:
    def find() -> Iterator[str]:
        yield from PATHS
        raise InputError("can't list this folder")

    with ImageBar() as bar:
        paths = bar.count(find())
        assert [next(paths) for _ in PATHS] == PATHS
        with pytest.raises(InputError, match="can't list this folder"):
            next(paths)
