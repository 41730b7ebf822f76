"""Classify images with a model that `rnn-export` wrote; needs onnxruntime, not PyTorch.

```python
from rnn_runtime import Classifier

classifier = Classifier("model.onnx", provider="cpu")
classifier.predict(["a.png"])  # [Prediction(path='a.png', label='7', probability=0.98, ...)]
```
"""

import os
from typing import TYPE_CHECKING

# Since 1.29, onnxruntime's Linux builds report each session to their maker unless this is set before it is imported
# (github.com/microsoft/onnxruntime/pull/27379). The thread that does it also keeps a forked process from ending.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from rnn_runtime.classifier import Classifier, Prediction
    from rnn_runtime.engine.session import CudaOptions

__version__ = "0.1.0"  # as in pyproject.toml; to ask the installed package takes 30 ms

__all__ = ["Classifier", "CudaOptions", "Prediction"]


def __getattr__(name: str) -> object:
    # On first use, so that `rnn-infer --help` waits for neither numpy nor the image decoder.
    if name in __all__:
        from rnn_runtime import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
