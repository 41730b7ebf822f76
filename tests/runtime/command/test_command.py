"""Errors in one line, atomic files, and packages that have to be there."""

import os
import resource
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rnn_runtime.command.command import Command, require_packages
from rnn_runtime.errors import InputError, MissingPackageError
from rnn_runtime.files.atomic import atomic_write
from tests.support.commands import UNMEASURED, RunProcess


def error_of(text: str) -> str:
    """What a command prints of an error with this text."""

    @click.command(cls=Command)
    def fail() -> None:
        raise InputError(text)

    return CliRunner().invoke(fail).output  # click 8.1 has its stderr in it only


def test_errors_are_a_line_without_control_characters() -> None:
    shown = error_of("a\nb: \x1b[31m\x07\x9b\u202e, class 'caf\xe9\udcff', in\tall\n")

    assert shown == "Error: a b: \\x1b[31m\\x07\\x9b\\u202e, class 'caf\xe9\\udcff', in all\n"


def test_long_errors_are_cut_in_the_middle() -> None:
    shown = error_of("model.onnx: " + "x" * 5_000_000 + "; export it again")

    assert 1500 < len(shown) < 2100
    assert shown.startswith("Error: model.onnx: xxx")
    assert shown.endswith("xxx; export it again\n")


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


def test_folder_that_an_uninstalled_package_left_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_behind" / "capi").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(MissingPackageError, match=r"left_behind is not installed. .*pip install left_behind"):
        require_packages(("left_behind",))


COMMANDS = ["rnn-infer", "rnn-export", "rnn-train"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_to_a_full_disk_is_an_error_in_a_line(run_process: RunProcess, tmp_path: Path, command: str) -> None:
    with (tmp_path / "help.txt").open("wb") as file:
        result = run_process(
            command,
            "--help",
            env=UNMEASURED,
            stdout=file,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )

    assert result.returncode == 2
    assert result.stderr == "Error: standard output: File too large\n"
