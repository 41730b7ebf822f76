"""Training steps of `nn.RNN` and `nn.GRU` on a CPU: forward and backward as one `torch.autograd.Function`.

`cells.py` has their equations as nodes of ONNX graphs, `graphs.py` opens and runs such graphs, `layer.py` has the
buffers of one direction of a layer, and `function.py` puts the net together.
"""

from rnn_train.recurrent.function import OnnxruntimeSteps, choose_computation

__all__ = ["OnnxruntimeSteps", "choose_computation"]
