"""Training steps of RNNs and GRUs on a CPU, computed by onnxruntime in half the time of torch's modules.

`steps.py` chooses, and computes forward and backward of a whole net as one `torch.autograd.Function`. `cells.py` has
the equations.
"""

from rnn_train.recurrent.steps import OnnxruntimeSteps, choose_computation

__all__ = ["OnnxruntimeSteps", "choose_computation"]
