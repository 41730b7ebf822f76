"""Likely mistakes in a call from Python get an error that names the argument."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnn_export import export_onnx
from rnn_runtime.errors import SettingsError
from rnn_train import Checkpoint, DataSource, TrainSettings, train

DIGITS, SETTINGS = DataSource(dataset="digits"), TrainSettings(hidden_size=4, epochs=1)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "problem"),
    [
        (train, (DIGITS, SETTINGS, "new.pt"), {"device": "tpu"}, "`device` must be one of auto, cpu, cuda, not 'tpu'"),
        (train, (DIGITS, SETTINGS, 5), {}, "`output` must be a path, not 5"),
        (train, ("digits", SETTINGS, "new.pt"), {}, "`source` must be DataSource, not 'digits'"),
        (train, (DIGITS, {"epochs": 1}, "new.pt"), {}, "`settings` must be TrainSettings, not {'epochs': 1}"),
        (
            train,
            (DIGITS, SETTINGS, "new.pt"),
            {"checkpoint_every": "2"},
            "`checkpoint_every` must be a whole number from 1 up, not '2'",
        ),
        (train, (DIGITS, SETTINGS, "new.pt"), {"resume": True}, "`resume` must be a path, not True"),
        (Checkpoint.load, (None,), {}, "`path` must be a path, not None"),
        (export_onnx, (5, "new.onnx"), {}, "`checkpoint` must be a path, not 5"),
        (export_onnx, ("model.pt", None), {}, "`output` must be a path, not None"),
        (export_onnx, ("model.pt", "new.onnx"), {"atol": "x"}, "`atol` must be a number from 0 up, not 'x'"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SettingsError, match=f"^{re.escape(problem)}$"):
        function(*arguments, **options)

    assert list(tmp_path.iterdir()) == []
