"""Whether a checkpoint was trained with the settings and data that a run is to continue with."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rnn_runtime.errors import SettingsError
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import DataSource
from rnn_train.settings import TrainSettings

PLACES = ("data", "data_root")  # where the data is; it is recognized by its content
_CHANGEABLE = ("epochs", "patience", *PLACES)  # a continued run may have other values of these


def all_values(settings: TrainSettings, source: DataSource) -> dict[str, Any]:
    """The values of both, by the names of their fields."""
    return {field.name: getattr(part, field.name) for part in (settings, source) for field in fields(part)}


def check_unchanged(saved: Checkpoint, path: str | Path, expected: Mapping[str, Any]) -> None:
    """Compare what a checkpoint was trained with.

    Args:
        saved: The checkpoint.
        path: Its file, for the error.
        expected: Values by the names of the fields of `TrainSettings` and `DataSource`. Those that a continued run may
            change aren't compared.

    Raises:
        SettingsError: one differs; the text names it, with both values.
    """
    values = all_values(saved.settings, saved.source)
    for name, value in expected.items():
        before = values[name]
        if name == "dataset" and expected.get("data") is None and saved.source.data is None:
            before, value = before or "mnist", value or "mnist"
        if before != value and name not in _CHANGEABLE:
            raise SettingsError(
                f"{_describe(name, value)}: {path} was trained {_describe(name, before, 'with ')}. Use that value to "
                "continue the run, or another `output` to start a new one"
            )


def _describe(name: str, value: Any, preposition: str = "") -> str:
    return f"without `{name}`" if value is None else f"{preposition}`{name}={value!r}`"
