"""Whether a checkpoint was trained as a command line or a caller says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnn_runtime.errors import SettingsError
from rnn_train.checkpoint import Checkpoint


def check_unchanged(saved: Checkpoint, path: str | Path, expected: Mapping[str, Any]) -> None:
    """Compare what a checkpoint was trained with.

    Args:
        saved: The checkpoint.
        path: Its file, for the error.
        expected: Values by the names of the fields of `TrainSettings` and `DataSource`.

    Raises:
        SettingsError: one differs; the text names it, with both values.
    """
    for name, value in expected.items():
        before = _value(saved, name)
        if before != value:
            was = f"with `{name}={before!r}`" if before is not None else f"without `{name}`"
            raise SettingsError(
                f"`{name}={value!r}`: {path} was trained {was}. Leave it out to continue that run, or choose another "
                "`output` for a new one"
            )


def _value(saved: Checkpoint, name: str) -> Any:
    if name == "dataset" and saved.source.data is None:
        return saved.source.dataset or "mnist"
    return getattr(saved.settings if hasattr(saved.settings, name) else saved.source, name)
