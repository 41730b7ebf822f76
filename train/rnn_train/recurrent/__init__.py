"""Training steps of `nn.RNN` and `nn.GRU` on a CPU: forward and backward as one `torch.autograd.Function`.

`cells.py` has their equations as nodes of ONNX graphs, `graphs.py` opens and runs such graphs, `layer.py` has the
buffers of one direction of a layer, and `function.py` puts the net together.
"""

from rnn_train.recurrent.function import Memory, has_function, has_onnxruntime, last_outputs, suits
from rnn_train.recurrent.threads import one_thread

__all__ = ["Memory", "has_function", "has_onnxruntime", "last_outputs", "one_thread", "suits"]
