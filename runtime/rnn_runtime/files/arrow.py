"""pyarrow, an optional package: it writes Parquet and reads object storage."""

from importlib import import_module
from typing import Any

from rnn_runtime.errors import MissingPackageError


def import_arrow(module: str) -> Any:
    """Import a module of pyarrow, such as `parquet` or `fs`.

    Raises:
        MissingPackageError: pyarrow isn't installed, or can't be imported.
    """
    try:
        return import_module(f"pyarrow.{module}")
    except ModuleNotFoundError:
        raise MissingPackageError("pyarrow is not installed. Install it with: pip install pyarrow") from None
    except ImportError as error:  # such as one that needs a newer NumPy
        raise MissingPackageError(
            f"pyarrow can't be imported: {error}. Repair it with: pip install --upgrade pyarrow numpy"
        ) from None
