"""The cells: the recurrence of one layer in one direction, forward and backward, a step at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnn_train.recurrent.threads import compute_in_halves


class Weights(NamedTuple):
    """The parameters of one layer in one direction, as `nn.RNNBase` orders them.

    Attributes:
        input: Shape `(gates * hidden, features)`.
        hidden: Shape `(gates * hidden, hidden)`.
        input_bias: Shape `(gates * hidden,)`.
        hidden_bias: Likewise.
    """

    input: Tensor
    hidden: Tensor
    input_bias: Tensor
    hidden_bias: Tensor


class Cell(ABC):
    """One layer in one direction. Its buffers serve for all batches of one size.

    Attributes:
        before: The state before each step, shape `(steps, batch, hidden)`.
        outputs: The state after each step, likewise. `forward` computes both.
    """

    def __init__(self, steps: int, batch: int, size: int, like: Tensor, reverse: bool) -> None:
        self.reverse = reverse
        states = like.new_zeros(steps + 1, batch, size)  # the state at the start stays zero
        self.before, self.outputs = (states[1:], states[:-1]) if reverse else (states[:-1], states[1:])

    @abstractmethod
    def forward(self, inputs: Tensor, weights: Weights) -> None:
        """Compute `outputs`.

        Args:
            inputs: Contiguous, shape `(steps, batch, features)`.
            weights: The parameters.
        """

    @abstractmethod
    def backward(self, gradient: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """The gradients of the sums that the gates are functions of.

        Args:
            gradient: That of `outputs`, which this changes.
            weights: The parameters.

        Returns:
            Of the products with the inputs, and of those with the states, shape `(steps * batch, gates * hidden)`.
        """

    def differentiate_input_weights(self, gates: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `Weights.input` and `Weights.input_bias`."""
        return torch.mm(gates.t(), inputs.flatten(0, 1)), gates.sum(0)

    def differentiate_hidden_weights(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `Weights.hidden` and `Weights.hidden_bias`."""
        return torch.mm(gates.t(), self.before.flatten(0, 1)), gates.sum(0)

    def _in_order(self, *sequences: Tensor) -> Iterable[tuple[Tensor, ...]]:
        return _pair_steps(sequences, self.reverse)

    def _in_reverse_order(self, *sequences: Tensor) -> Iterable[tuple[Tensor, ...]]:
        return _pair_steps(sequences, not self.reverse)


class RNNCell(Cell):
    """`h = tanh(x @ W.t() + h @ U.t() + b)`, or ReLU in place of tanh."""

    def __init__(self, steps: int, batch: int, size: int, like: Tensor, reverse: bool, *, relu: bool = False) -> None:
        super().__init__(steps, batch, size, like, reverse)
        self.relu = relu
        self._slope = torch.empty_like(self.outputs)

    def forward(self, inputs: Tensor, weights: Weights) -> None:
        # tanh(x) = 2 * sigmoid(2 * x) - 1, and torch computes sigmoid in a third of tanh's time
        factor = 1 if self.relu else 2
        bias, flat = factor * (weights.input_bias + weights.hidden_bias), inputs.flatten(0, 1)
        sums, from_input = self.outputs.flatten(0, 1), weights.input.t()

        def project(rows: slice) -> None:
            torch.addmm(bias, flat[rows], from_input, alpha=factor, out=sums[rows])

        compute_in_halves(project, len(flat), 2 * len(flat) * from_input.numel())
        from_state, minus_one = weights.hidden.t().contiguous(), inputs.new_tensor(-1.0)
        for before, state in self._in_order(self.before, self.outputs):
            state.addmm_(before, from_state, alpha=factor)
            if self.relu:
                state.relu_()
            else:
                torch.add(minus_one, state.sigmoid_(), alpha=2, out=state)

    def backward(self, gradient: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        if self.relu:
            torch.sign(self.outputs, out=self._slope)
        else:
            torch.addcmul(gradient.new_ones(()), self.outputs, self.outputs, value=-1, out=self._slope)
        later = None
        for sums, slope in self._in_reverse_order(gradient, self._slope):
            if later is not None:
                sums.addmm_(later, weights.hidden)
            later = sums.mul_(slope)
        flat = gradient.flatten(0, 1)
        return flat, flat


class GRUCell(Cell):
    """`h = (1 - z) * n + z * h` with `n = tanh(x @ W.t() + b + r * (h @ U.t() + c))`; `r` and `z` are sigmoids."""

    def __init__(self, steps: int, batch: int, size: int, like: Tensor, reverse: bool) -> None:
        super().__init__(steps, batch, size, like, reverse)
        self._size = size
        self._gates = like.new_empty(steps, batch, 2 * size)
        self._reset, self._update = torch.split(self._gates, size, dim=2)
        self._new, self._new_of_state = torch.empty_like(self.outputs), torch.empty_like(self.outputs)
        # Of the part of n that the state makes, of r, z and n: the first three belong to U, the last three to W.
        self._sums = like.new_empty(steps, batch, 4 * size)

    def forward(self, inputs: Tensor, weights: Weights) -> None:
        size, flat = self._size, inputs.flatten(0, 1)
        gates_bias = weights.input_bias[: 2 * size] + weights.hidden_bias[: 2 * size]
        gates_sums, new_sums = self._gates.flatten(0, 1), self._new.flatten(0, 1)

        def project(rows: slice) -> None:
            torch.addmm(gates_bias, flat[rows], weights.input[: 2 * size].t(), out=gates_sums[rows])
            # n is a tanh: see `RNNCell`
            bias = 2 * weights.input_bias[2 * size :]
            torch.addmm(bias, flat[rows], weights.input[2 * size :].t(), alpha=2, out=new_sums[rows])

        compute_in_halves(project, len(flat), 2 * len(flat) * weights.input.numel())
        to_gates, to_new = (part.t().contiguous() for part in torch.split(weights.hidden, [2 * size, size]))
        new_bias, minus_one = weights.hidden_bias[2 * size :], inputs.new_tensor(-1.0)
        for before, gates, reset, update, new, new_of_state, state in self._in_order(
            self.before, self._gates, self._reset, self._update, self._new, self._new_of_state, self.outputs
        ):
            gates.addmm_(before, to_gates).sigmoid_()
            torch.addmm(new_bias, before, to_new, out=new_of_state)
            torch.add(minus_one, new.addcmul_(reset, new_of_state, value=2).sigmoid_(), alpha=2, out=new)
            torch.lerp(new, before, update, out=state)

    def backward(self, gradient: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        size = self._size
        self._derive_by_outputs()
        of_state = self._sums[..., : 3 * size]
        from_sums = weights.hidden.roll(size, 0)  # n first
        parts = self._sums.view(*self._sums.shape[:2], 4, size)
        later = None
        for state, sums, sums_of_state, update in self._in_reverse_order(gradient, parts, of_state, self._update):
            if later is not None:
                state.add_(later)
            sums.mul_(state.unsqueeze(1))
            later = torch.mul(state, update).addmm_(sums_of_state, from_sums)
        return self._sums[..., size:].flatten(0, 1), of_state.flatten(0, 1)

    def _derive_by_outputs(self) -> None:
        """Fill `_sums` with the derivatives of each step's output, by which its gradient is then multiplied."""
        new_of_state, reset, update, new = torch.split(self._sums, self._size, dim=2)
        torch.addcmul(new.new_ones(()), self._new, self._new, value=-1, out=new)
        new.addcmul_(new, self._update, value=-1)  # (1 - n²) * (1 - z)
        torch.mul(new, self._reset, out=new_of_state)
        torch.mul(new_of_state, self._new_of_state, out=reset)
        reset.addcmul_(reset, self._reset, value=-1)
        torch.sub(self.before, self._new, out=update)
        update.mul_(self._update)
        update.addcmul_(update, self._update, value=-1)

    def differentiate_hidden_weights(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = super().differentiate_hidden_weights(gates)
        return weight.roll(-self._size, 0), bias.roll(-self._size, 0)


def make_cell(net: nn.RNNBase, inputs: Tensor, reverse: bool) -> Cell:
    """A cell of a net, for inputs of shape `(steps, batch, features)`."""
    steps, batch, _ = inputs.shape
    if isinstance(net, nn.GRU):
        return GRUCell(steps, batch, net.hidden_size, inputs, reverse)
    return RNNCell(steps, batch, net.hidden_size, inputs, reverse, relu=net.mode == "RNN_RELU")


def _pair_steps(sequences: Iterable[Tensor], reverse: bool) -> Iterable[tuple[Tensor, ...]]:
    steps = (sequence.unbind(0) for sequence in sequences)
    return zip(*(reversed(parts) if reverse else parts for parts in steps), strict=True)
