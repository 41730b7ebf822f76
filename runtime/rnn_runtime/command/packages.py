"""Optional packages that a command needs."""

import importlib.util
from collections.abc import Sequence

from rnn_runtime.errors import MissingPackageError

# Where a module isn't named like its package.
_PACKAGES = {"prometheus_client": "prometheus-client", "sklearn": "scikit-learn"}


def require_packages(modules: Sequence[str]) -> None:
    """Check that optional packages are installed, before anything is done.

    Args:
        modules: Names of modules.

    Raises:
        MissingPackageError: some aren't installed; the text names all of them and the command that installs them.
    """
    missing = [_PACKAGES.get(module, module) for module in modules if not _is_installed(module)]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise MissingPackageError(f"{names} {are} not installed. Install {them} with: pip install {' '.join(missing)}")


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # no origin: a folder that an uninstalled package left behind
