"""The onnxruntime that is installed: imported without its noise, or an error that says how to mend it."""

import contextlib
import ctypes
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import cast

from rnn_runtime.errors import MissingPackageError, signal_of
from rnn_runtime.interruption import StopRequest

UNINSTALL = "pip uninstall --yes onnxruntime onnxruntime-gpu"
_INSTALL = "pip install 'rnn-onnx[cpu]', or with an NVIDIA GPU 'rnn-onnx[cuda]'"


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime, and turn off its log.

    Raises:
        MissingPackageError: it isn't installed, or a part of it is missing; the text says how to mend it.
    """
    try:
        with _silent_stderr():
            import onnxruntime
    except ModuleNotFoundError as error:
        raise (_missing() if error.name == "onnxruntime" else _broken(str(error))) from None
    except Exception as error:  # of half an installation, anything may be missing
        raise _broken(str(error)) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # a folder without a module in it, which Python takes for one
        if not installed_packages():
            raise _missing()
        raise _broken("most of its files are missing, as after uninstalling one of two packages that share them")
    # Its log goes to stderr past Python; what matters in it, our own errors say.
    onnxruntime.set_default_logger_severity(4)
    return cast(ModuleType, onnxruntime)


def installed_packages() -> dict[str, str]:
    """The packages that bring the module `onnxruntime`, and their versions: both of them install into one folder."""
    import importlib.metadata  # 20 ms, and where all is well nobody asks

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
    """Load CUDA's and cuDNN's libraries from where pip installed them, as far as they are there."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it doesn't find
        ort.preload_dlls()


def load_library(name: str) -> ctypes.CDLL | None:
    """A shared library, by its name; None if the system's loader doesn't find it."""
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
        f"the installed onnxruntime is broken ({reason}). Mend it with: {UNINSTALL} && {_INSTALL}"
    )


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    # Some releases look for GPUs while they are imported, and warn past Python's sys.stderr of whatever isn't one; no
    # setting of theirs comes before that (github.com/microsoft/onnxruntime/issues/27092). So for this first import the
    # file descriptor itself leads elsewhere.
    if "onnxruntime" in sys.modules:
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # closed: there is nothing to keep quiet
        yield
        return
    with StopRequest() as stop:
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    if stop.interrupt:  # now that what is said of it gets to stderr
        signal.raise_signal(signal_of(stop.interrupt))
