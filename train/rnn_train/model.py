"""The network: a recurrent net over the rows of an image, and one linear layer on its last output."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnn_runtime.model.spec import ModelSpec
from rnn_train.recurrent import OnnxruntimeSteps, choose_computation

EVALUATION_BATCH = 512  # images that are evaluated at once, fewer of large ones
# of the largest intermediate result. In float64 it takes 512 MiB, and PyTorch keeps a few such at a time.
_MOST_VALUES = 1 << 26


class ImageRNN(nn.Module):
    """A many-to-one recurrent image classifier, from raw pixels to logits.

    Each row of the image is a time step. The recurrent net starts from a zero state; its last layer's
    output at the last step goes through one linear layer. A bidirectional net has two last steps: the
    forward direction's is the bottom row, the backward direction's the top row, and the linear layer
    sees both (Keras' `Bidirectional(return_sequences=False)` reads the two the same way).

    After `choose_computation`, onnxruntime may compute what `rnn` would in training, but for rounding.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        kinds: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        options: dict[str, Any] = {"nonlinearity": spec.nonlinearity} if spec.cell == "rnn" else {}
        self.rnn = kinds[spec.cell](
            spec.input_size,
            spec.hidden_size,
            spec.num_layers,
            batch_first=True,
            # between layers only, so PyTorch warns about dropout in a net of one
            dropout=spec.dropout if spec.num_layers > 1 else 0.0,
            bidirectional=spec.bidirectional,
            **options,
        )
        self._onnxruntime: OnnxruntimeSteps | None = None
        self.dropout = nn.Dropout(spec.dropout)
        self.linear = nn.Linear(spec.hidden_size * spec.num_directions, len(spec.class_names))
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch.

        Args:
            images: uint8, shape `(batch, height, width, channels)`, 0 to 255.

        Returns:
            The weights' dtype, shape `(batch, classes)`.
        """
        pixels = ((images.to(self.mean.dtype) / 255 - self.mean) / self.std).flatten(start_dim=2)
        if self._onnxruntime and self.training and len(images):
            last = self._onnxruntime(pixels)
        else:
            last = self._last_outputs(pixels)
        return self.linear(self.dropout(last))  # type: ignore[no-any-return]

    def choose_computation(self, *, amp: bool = False) -> str | None:
        """Let onnxruntime compute training steps from here on, where it is installed and faster than torch's modules.

        Args:
            amp: Whether the model trains under autocast.

        Returns:
            For people, what to install for faster training; None for nothing.
        """
        self._onnxruntime, missing = choose_computation(self.rnn, amp=amp)
        return missing

    def threads_of_step(self) -> AbstractContextManager[None]:
        """The threads for a whole training step, up to the optimizer's: torch's own, or what onnxruntime needs."""
        return self._onnxruntime.threads() if self._onnxruntime else nullcontext()

    def _last_outputs(self, pixels: Tensor) -> Tensor:
        _, state = self.rnn(pixels)
        hidden = state[0] if self.spec.cell == "lstm" else state  # an LSTM's state is (hidden, cell)
        # (num_layers * num_directions, batch, hidden_size): the last layer's directions come last
        last: Tensor = hidden[-self.spec.num_directions :]
        return last.transpose(0, 1).flatten(start_dim=1)


def predict_logits(
    model: ImageRNN, images: NDArray[np.uint8], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Run a model over any number of images, without gradients and without dropout.

    Args:
        model: On `device`.
        images: uint8, shape `(images, height, width, channels)`.
        device: Where to run.

    Returns:
        Logits, in the dtype of the weights, shape `(images, classes)`.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(np.ascontiguousarray(images)), _evaluation_batch(model.spec))
        logits = torch.cat([model(batch.to(device)).cpu() for batch in batches])
    model.train(was_training)
    return logits.numpy()


def _evaluation_batch(spec: ModelSpec) -> int:
    """A divisor of `EVALUATION_BATCH`, so that processes that share images run the same batches as one."""
    per_step = max(spec.input_size, 4 * spec.hidden_size * spec.num_directions)  # an LSTM has four gates
    size = EVALUATION_BATCH
    while size > 1 and size * spec.image_spec.height * per_step > _MOST_VALUES:
        size //= 2
    return size
