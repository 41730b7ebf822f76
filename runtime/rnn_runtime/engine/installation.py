"""The installed onnxruntime, or an error that says how to install or repair it."""

import contextlib
import ctypes
import io
from types import ModuleType
from typing import cast

from rnn_runtime.errors import MissingPackageError

UNINSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu"
_INSTALL = "pip install onnxruntime, or with an NVIDIA GPU: pip install 'onnxruntime-gpu[cuda,cudnn]'"


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        MissingPackageError: it isn't installed, or a part of it is missing; the text says how to repair it.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise (_missing() if error.name == "onnxruntime" else _broken(str(error))) from None
    except Exception as error:  # anything may be missing in a broken installation
        raise _broken(str(error)) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # Python imports a leftover folder without files as a module
        if not installed_packages():
            raise _missing()
        raise _broken("most of its files are missing, as after uninstalling one of two packages that share them")
    return cast(ModuleType, onnxruntime)


def installed_packages() -> dict[str, str]:
    """The versions of the packages that provide the module `onnxruntime`. Both install into the same folder."""
    import importlib.metadata  # takes 20 ms, and is needed only where something is wrong

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cuda_major(ort: ModuleType) -> int | None:
    """The major version of CUDA that onnxruntime was built for; None if it was built for the CPU."""
    version = str(getattr(ort, "cuda_version", "")).partition(".")[0]
    return int(version) if version.isdigit() else None


def preload_cuda(ort: ModuleType) -> None:
    """Load CUDA's and cuDNN's libraries from pip packages, where these are installed."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which libraries it doesn't find
        ort.preload_dlls()


def load_library(name: str) -> ctypes.CDLL | None:
    """Load a shared library by its name; None if the system's loader doesn't find it."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _missing() -> MissingPackageError:
    return MissingPackageError(f"onnxruntime is not installed. Install it with: {_INSTALL}")


def _broken(reason: str) -> MissingPackageError:
    packages = installed_packages()
    if len(packages) > 1:
        reason = f"{' and '.join(packages)} are installed over one another: {reason}"
    return MissingPackageError(
        f"the installed onnxruntime is broken ({reason}). Repair it with: {UNINSTALL} && {_INSTALL}"
    )
