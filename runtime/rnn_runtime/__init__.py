"""Classify images with a model that `rnn-export` wrote; needs onnxruntime, not PyTorch.

```python
from rnn_runtime import Classifier

classifier = Classifier("model.onnx", provider="cpu")
classifier.predict(["a.png"])  # [Prediction(path='a.png', label='7', probability=0.98, ...)]
```

What this module exports is public. The rooms below are for the three commands, and may change:

- `images/`: bytes to pixels, finding files, decoding many of them
- `model/`: what a model is: its description, its metadata, the file
- `engine/`: onnxruntime: sessions on the CPU and on CUDA
- `results/`: rows out, continuing an earlier run, evaluation
- `checks/`: self-check, benchmark, doctor
- `files/`: files that are whole or not there
- `command/`: what the three commands share; only they import click

Beside them, `classifier.py` is the module to read first, `interruption.py` is Ctrl-C and SIGTERM, `text.py` is text for
people, and `cli.py` the command `rnn-infer`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Since 1.29, onnxruntime's Linux builds report each session to their maker unless this is set before it is imported
# (github.com/microsoft/onnxruntime/pull/27379). The thread that does it also keeps a forked process from ending.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from rnn_runtime.errors import (  # the environment comes first
    CheckpointError,
    DataError,
    ImageError,
    InputError,
    MissingPackageError,
    ModelError,
    OutputError,
    ParityError,
    ProviderError,
    RnnOnnxError,
    SettingsError,
)
from rnn_runtime.interruption import RunInterruptedError

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier, Prediction
    from rnn_runtime.engine.cuda import CudaOptions

__version__ = "0.1.0"  # read by pyproject.toml

__all__ = [
    "CheckpointError",
    "Classifier",
    "CudaOptions",
    "DataError",
    "ImageError",
    "InputError",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "ParityError",
    "Prediction",
    "ProviderError",
    "RnnOnnxError",
    "RunInterruptedError",
    "SettingsError",
]

_LAZY = {"Classifier": "classifier", "CudaOptions": "engine.cuda", "Prediction": "classifier"}


def __getattr__(name: str) -> object:
    # On first use, so that `rnn-infer --help` waits for neither numpy nor the image decoder.
    if name in _LAZY:
        return getattr(import_module(f"rnn_runtime.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
