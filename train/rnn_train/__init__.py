"""Train many-to-one recurrent image classifiers with PyTorch.

```python
from rnn_train import DataSource, TrainSettings, train

result = train(DataSource(dataset="digits"), TrainSettings(epochs=40), "model.pt")
```
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnn_train.callbacks import CallbackList, ConsoleCallback, TrainingCallback
    from rnn_train.checkpoint import Checkpoint
    from rnn_train.data import DataSource
    from rnn_train.settings import TrainSettings
    from rnn_train.tensorboard import TensorBoardCallback
    from rnn_train.training import TrainResult, train

__all__ = [
    "CallbackList",
    "Checkpoint",
    "ConsoleCallback",
    "DataSource",
    "TensorBoardCallback",
    "TrainResult",
    "TrainSettings",
    "TrainingCallback",
    "train",
]

_MODULES = {
    "CallbackList": "callbacks",
    "Checkpoint": "checkpoint",
    "ConsoleCallback": "callbacks",
    "DataSource": "data",
    "TensorBoardCallback": "tensorboard",
    "TrainResult": "training",
    "TrainSettings": "settings",
    "TrainingCallback": "callbacks",
    "train": "training",
}


def __getattr__(name: str) -> object:
    # On first use, so that `rnn-train --help` doesn't wait for torch.
    if name in _MODULES:
        return getattr(import_module(f"rnn_train.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
