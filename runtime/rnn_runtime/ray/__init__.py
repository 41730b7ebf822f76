"""Classification on a Ray cluster: `rnn-onnx ray`, and `classify_on_ray`. It needs the extra `ray`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnn_runtime.ray.run import RaySummary, classify_on_ray

__all__ = ["RaySummary", "classify_on_ray"]


def __getattr__(name: str) -> object:
    # On first use, so that the help of the command is quick.
    if name in __all__:
        from rnn_runtime.ray import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
