"""A whole recurrent net as one `torch.autograd.Function`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout

from rnn_train.recurrent.cells import Weights, make_cell
from rnn_train.recurrent.threads import Tasks, compute_in_halves


def has_function(net: nn.RNNBase) -> bool:
    """Whether `last_outputs` is faster than a net's own training step: an RNN's or a GRU's on a CPU, in float32.

    An LSTM's step is one call of oneDNN for each layer and direction (docs/explanation/measurements.md). Under
    autocast, products are in bfloat16, and the function's buffers have the dtype of the weights.
    """
    return net.mode != "LSTM" and net.weight_hh_l0.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def last_outputs(net: nn.RNNBase, inputs: Tensor, memory: "Memory") -> Tensor:
    """The last layer's outputs at the last step of each direction, with dropout between layers.

    The gradients of the net's parameters and of the inputs are autograd's, but for rounding.

    Args:
        net: An RNN or GRU in training, with biases.
        inputs: Shape `(batch, steps, features)`, in the dtype of the weights.
        memory: That of this net.

    Returns:
        Shape `(batch, directions * hidden)`.
    """
    return _LastOutputs.apply(net, memory, inputs, *net.parameters())  # type: ignore[no-any-return]


class _Layer:
    """The buffers of one layer: its cells, one per direction, and the gradient of their outputs."""

    def __init__(self, net: nn.RNNBase, inputs: Tensor) -> None:
        self.cells = [make_cell(net, inputs, reverse) for reverse in ((False, True) if net.bidirectional else (False,))]
        steps, batch, _ = inputs.shape
        self.gradient = inputs.new_empty(steps, batch, net.hidden_size * len(self.cells))
        self.inputs = inputs
        self.mask: Tensor | None = None  # what dropout multiplied the outputs by

    def outputs(self) -> Tensor:
        """All outputs, shape `(steps, batch, directions * hidden)`."""
        outputs = [cell.outputs for cell in self.cells]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def last(self, sequence: Tensor) -> list[Tensor]:
        """The parts of `(steps, batch, directions * hidden)` that are the directions' last steps."""
        parts = sequence.chunk(len(self.cells), dim=2)
        return [part[0 if cell.reverse else -1] for part, cell in zip(parts, self.cells, strict=True)]


class Memory:
    """Keeps the buffers of a net for the next step. Fresh ones would cost a page fault per 4 KB at each step."""

    def __init__(self) -> None:
        self._free: _Pass | None = None

    def take(self, net: nn.RNNBase, inputs: Tensor) -> "_Pass":
        """Buffers for inputs of this shape; new ones if those of the last pass don't fit, or aren't back yet."""
        taken, self._free = self._free, None
        if taken is None or taken.fits != (inputs.shape, inputs.dtype):
            taken = _Pass(net, inputs)
        taken.count += 1
        return taken

    def give_back(self, taken: "_Pass") -> None:
        """Let the next pass have them."""
        self._free = taken


class _Pass:
    """The buffers of all layers, and of which pass they hold the values."""

    def __init__(self, net: nn.RNNBase, inputs: Tensor) -> None:
        self.fits = (inputs.shape, inputs.dtype)
        self.count = 0
        self.layers: list[_Layer] = []
        for _ in range(net.num_layers):
            self.layers.append(_Layer(net, inputs))
            inputs = self.layers[-1].gradient  # of the shape of the outputs, which are the next layer's inputs

    def with_weights(self, parameters: Sequence[Tensor]) -> list[tuple[_Layer, list[Weights]]]:
        """The layers from the first to the last, with the weights of their cells."""
        weights = [Weights(*parameters[start : start + 4]) for start in range(0, len(parameters), 4)]
        directions = len(weights) // len(self.layers)
        return [
            (layer, weights[number * directions : (number + 1) * directions])
            for number, layer in enumerate(self.layers)
        ]


class _LastOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: nn.RNNBase, memory: Memory, inputs: Tensor, *parameters: Tensor) -> Tensor:
        inputs = inputs.transpose(0, 1).contiguous()
        taken = memory.take(net, inputs)
        for layer, weights in taken.with_weights(parameters):
            layer.inputs, layer.mask = inputs, None
            for cell, own in zip(layer.cells, weights, strict=True):
                cell.forward(inputs, own)
            inputs = layer.outputs()
            if net.dropout and layer is not taken.layers[-1]:
                layer.mask = dropout(torch.ones_like(inputs), net.dropout)
                inputs = inputs * layer.mask
        ctx.save_for_backward(*parameters)
        ctx.memory, ctx.taken, ctx.count = memory, taken, taken.count
        return torch.cat(layer.last(inputs), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        taken: _Pass = ctx.taken
        if taken.count != ctx.count:
            raise RuntimeError("another forward pass has used the buffers of this one since its backward pass")
        top, bottom = taken.layers[-1], taken.layers[0]
        top.gradient.zero_()
        for part, last in zip(gradient.chunk(len(top.cells), dim=1), top.last(top.gradient), strict=True):
            last.copy_(part)
        of_inputs = torch.empty_like(bottom.inputs) if ctx.needs_input_grad[2] else None
        below = [None, *taken.layers[:-1]]
        tasks = Tasks[tuple[Tensor, Tensor]]()
        for (layer, weights), lower in zip(taken.with_weights(ctx.saved_tensors)[::-1], below[::-1], strict=True):
            _backward(layer, weights, lower.gradient if lower else of_inputs, tasks)
            if lower and lower.mask is not None:
                lower.gradient.mul_(lower.mask)
        results = tasks.results()
        ctx.memory.give_back(taken)
        of_inputs = None if of_inputs is None else of_inputs.transpose(0, 1)
        return None, None, of_inputs, *_flatten(results, len(top.cells))


def _backward(
    layer: _Layer, weights: Sequence[Weights], of_inputs: Tensor | None, tasks: Tasks[tuple[Tensor, Tensor]]
) -> None:
    """Go back through one layer, whose `gradient` is known.

    Args:
        layer: The layer.
        weights: Those of its cells.
        of_inputs: Where to write the gradient of its inputs; None if nobody needs it.
        tasks: Gets the computation of its parameters' gradients. Nothing in this pass waits for them.
    """
    for number, (cell, own) in enumerate(zip(layer.cells, weights, strict=True)):
        gates, of_states = cell.backward(layer.gradient.chunk(len(layer.cells), dim=2)[number], own)
        tasks.add(partial(cell.differentiate_input_weights, gates, layer.inputs))
        tasks.add(partial(cell.differentiate_hidden_weights, of_states))
        if of_inputs is not None:
            _add_product(of_inputs.flatten(0, 1), gates, own.input, is_first=number == 0)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
    def add(rows: slice) -> None:
        total[rows].addmm_(left[rows], right, beta=0 if is_first else 1)

    compute_in_halves(add, len(total), 2 * len(total) * right.numel())


def _flatten(results: Sequence[tuple[Tensor, Tensor]], directions: int) -> Iterator[Tensor]:
    """Bring the parameters' gradients from the order of the tasks, last layer first, into that of the parameters."""
    per_layer = 2 * directions
    for start in range(len(results) - per_layer, -1, -per_layer):
        layer = results[start : start + per_layer]
        for (input_weight, input_bias), (hidden_weight, hidden_bias) in zip(layer[::2], layer[1::2], strict=True):
            yield from (input_weight, hidden_weight, input_bias, hidden_bias)
