"""Classify images with a model that `rnn-export` wrote. Needs onnxruntime, not PyTorch.

```python
from rnn_runtime import Classifier

classifier = Classifier("model.onnx", provider="cpu")
classifier.predict("a.png")  # Prediction(path='a.png', label='7', probability=0.98, ...)
```

The names in `__all__` are public. The packages below serve them and the commands, and may change:

- `images/`: from what a user gives to pixels: finding files, decoding, resizing
- `model/`: the model file, its description and its metadata; what values may be
- `engine/`: onnxruntime sessions on the CPU and on CUDA
- `results/`: writing results, continuing an earlier run, shards, evaluation
- `ray.py`: shards on a Ray cluster
- `metrics/`: accuracy, calibration and other figures of predictions
- `checks/`: self-check, benchmark, comparison of providers, doctor
- `files/`: files that are complete or absent, or grow until they are; object storage
- `serve/`: the web service `rnn-serve`
- `command/`: what the commands share; only commands import click

Read `classifier.py` first. `interruption.py` handles Ctrl-C and SIGTERM, `text.py` prepares text for a terminal, and
`cli.py` and `toolbox.py` are the commands `rnn-infer` and `rnn-onnx`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Since 1.29, onnxruntime's Linux builds report each session to Microsoft unless this is set before the import
# (github.com/microsoft/onnxruntime/pull/27379). The reporting thread also keeps a forked process from ending.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from rnn_runtime.errors import (  # the environment comes first
    CheckpointError,
    DataError,
    ImageError,
    InputError,
    MissingPackageError,
    ModelError,
    OtherProcessError,
    OutputError,
    ParityError,
    ProcessLostError,
    ProviderError,
    RnnOnnxError,
    SettingsError,
    StorageError,
)
from rnn_runtime.interruption import RunInterruptedError

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier, Prediction
    from rnn_runtime.engine import CudaOptions
    from rnn_runtime.images.find import find_images
    from rnn_runtime.images.image_like import ImageLike
    from rnn_runtime.metrics.evaluation import Evaluation
    from rnn_runtime.results.evaluation import FolderEvaluation
    from rnn_runtime.results.place import ImagePlacer
    from rnn_runtime.results.run import RunOptions, RunSummary, classify_files
    from rnn_runtime.results.shards import PartsSummary, Shard, classify_shard, merge_parts

__version__ = "0.1.0"  # read by pyproject.toml

__all__ = [
    "CheckpointError",
    "Classifier",
    "CudaOptions",
    "DataError",
    "Evaluation",
    "FolderEvaluation",
    "ImageError",
    "ImageLike",
    "ImagePlacer",
    "InputError",
    "MissingPackageError",
    "ModelError",
    "OtherProcessError",
    "OutputError",
    "ParityError",
    "PartsSummary",
    "Prediction",
    "ProcessLostError",
    "ProviderError",
    "RnnOnnxError",
    "RunInterruptedError",
    "RunOptions",
    "RunSummary",
    "SettingsError",
    "Shard",
    "StorageError",
    "classify_files",
    "classify_shard",
    "find_images",
    "merge_parts",
]

_LAZY = {
    "Classifier": "classifier",
    "CudaOptions": "engine",
    "Evaluation": "metrics.evaluation",
    "FolderEvaluation": "results.evaluation",
    "ImageLike": "images.image_like",
    "ImagePlacer": "results.place",
    "PartsSummary": "results.shards",
    "Prediction": "classifier",
    "RunOptions": "results.run",
    "RunSummary": "results.run",
    "Shard": "results.shards",
    "classify_files": "results.run",
    "classify_shard": "results.shards",
    "find_images": "images.find",
    "merge_parts": "results.shards",
}


def __getattr__(name: str) -> object:
    # On first use, so that `rnn-infer --help` waits for neither numpy nor the image decoder.
    if name in _LAZY:
        return getattr(import_module(f"rnn_runtime.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
