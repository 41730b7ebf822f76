"""Turn a checkpoint into one self-contained ONNX file, and prove that it computes what PyTorch does.

```python
from rnn_export import export_onnx

report = export_onnx("model.pt", "model.onnx")
```
"""

from typing import TYPE_CHECKING

import rnn_runtime  # noqa: F401  # before onnxruntime, whose telemetry it turns off

if TYPE_CHECKING:
    from rnn_export.export import ExportReport, export_onnx
    from rnn_export.triton import export_triton

__all__ = ["ExportReport", "export_onnx", "export_triton"]


def __getattr__(name: str) -> object:
    # On first use, so that `rnn-export --help` doesn't wait for torch.
    if name in __all__:
        from rnn_export import export, triton

        return getattr(triton if name == "export_triton" else export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
