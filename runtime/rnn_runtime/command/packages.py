"""Optional packages that a command needs."""

import importlib.util
from collections.abc import Sequence

from rnn_runtime.errors import MissingPackageError


def require_packages(modules: Sequence[str], extra: str) -> None:
    """Check that optional packages are there, before anything is done.

    Args:
        modules: Names of modules that packages of the extra bring.
        extra: The extra of rnn-onnx.

    Raises:
        MissingPackageError: one isn't installed; the text names the extra that brings it.
    """
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:  # no origin: a folder that an uninstalled package left behind
            raise MissingPackageError(f"{module} is not installed. Install it with: pip install 'rnn-onnx[{extra}]'")
