"""Training steps of RNNs and GRUs on a CPU, computed by onnxruntime in half the time of torch's modules.

`steps.py` computes forward and backward of a whole net as one `torch.autograd.Function`; `cells.py` has the equations.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from rnn_train.recurrent.steps import OnnxruntimeSteps

# Where one of two packages that share a module was uninstalled, an empty module is left.
_NEEDED = {"onnx": "helper", "onnxruntime": "InferenceSession"}


def choose_computation(net: nn.RNNBase, *, amp: bool = False) -> "tuple[OnnxruntimeSteps | None, str | None]":
    """Choose what computes a net's training steps: onnxruntime where it is faster and installed, or the net itself.

    onnxruntime is faster for RNNs and GRUs in float32 on a CPU. An LSTM's step is one call of oneDNN for each layer and
    direction (docs/explanation/measurements.md). Under autocast, products are in bfloat16, and the buffers here have
    the dtype of the weights.

    Args:
        net: On its device, in its dtype. If onnxruntime computes its steps, it keeps both.
        amp: Whether it trains under autocast.

    Returns:
        onnxruntime's computation, or None; and for people, what would make training faster, or None.
    """
    weight = net.get_parameter("weight_hh_l0")
    suits = isinstance(net, nn.RNN | nn.GRU) and weight.dtype in (torch.float32, torch.float64)
    if not suits or amp or weight.device.type != "cpu":
        return None, None
    missing = [package for package, name in _NEEDED.items() if not _can_import(package, name)]
    if missing:
        packages, them = " and ".join(missing), "it" if len(missing) == 1 else "them"
        return None, (
            f"{packages} can't be imported, so torch's modules train. With {them}, training takes about half the time "
            "on a CPU"
        )
    from rnn_train.recurrent.steps import OnnxruntimeSteps

    return OnnxruntimeSteps(net), None


def _can_import(package: str, name: str) -> bool:
    try:
        return hasattr(import_module(package), name)
    except Exception:  # anything may be missing in a broken installation
        return False
