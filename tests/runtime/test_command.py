"""Atomic files."""

import os
import stat
from pathlib import Path

import pytest

from rnn_runtime.command import atomic_write


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    with atomic_write(path) as file:
        file.write("whole")
        assert not path.exists()

    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")

    def fail_midway() -> None:
        with atomic_write(path) as file:
            file.write("half")
            file.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_midway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_gets_the_rights_that_open_would_give(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.bin", "wb") as file:
            file.write(b"x")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "no" / "a.csv"):
        pass
