"""Training steps of `nn.RNN` and `nn.GRU` on a CPU: forward and backward as one `torch.autograd.Function`."""

from rnn_train.recurrent.function import Memory, has_function, last_outputs
from rnn_train.recurrent.threads import one_thread, step_threads

__all__ = ["Memory", "has_function", "last_outputs", "one_thread", "step_threads"]
