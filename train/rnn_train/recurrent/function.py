"""A whole recurrent net as one `torch.autograd.Function`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnn_train.recurrent.cells import CELLS, Cell
from rnn_train.recurrent.graphs import Computation, add_products
from rnn_train.recurrent.layer import Direction, Weights
from rnn_train.recurrent.threads import Tasks, one_thread

# Products of fewer rows are slower: a GRU's step by a fifth for 32 instead of 64, an RNN's by a twentieth for 50.
_LEAST_HALF = 16
_LEAST_PART = 48
_MOST_PARTS = 16  # each has gradients of all parameters


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
    if net.mode not in CELLS or amp or weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        return None, None
    missing = [package for package, name in _NEEDED.items() if not _can_import(package, name)]
    if missing:
        packages, them = " and ".join(missing), "it" if len(missing) == 1 else "them"
        return None, (
            f"{packages} can't be imported, so torch's modules train. With {them}, training takes about half the time "
            "on a CPU"
        )
    return OnnxruntimeSteps(net), None


_DTYPES = (torch.float32, torch.float64)
_NEEDED = {"onnx": "helper", "onnxruntime": "InferenceSession"}


def _can_import(package: str, name: str) -> bool:
    try:
        # Where one of two packages that share a module was uninstalled, an empty module is left.
        return hasattr(import_module(package), name)
    except Exception:  # anything may be missing in a broken installation
        return False


class OnnxruntimeSteps:
    """Training steps of a net, computed by onnxruntime. Call it with a batch, within `threads`.

    It keeps the buffers of a step for the next one. Fresh ones would cost a page fault per 4 KB at each step.

    Args:
        net: An RNN or GRU with biases, in float32 or float64 on the CPU.
    """

    def __init__(self, net: nn.RNNBase) -> None:
        self._net = net
        self._free: _Pass | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """The last layer's outputs at the last step of each direction, with dropout between layers.

        The gradients of the net's parameters and of the inputs are autograd's, but for rounding. Dropout drops as often
        as torch's, but other values: it draws with `torch.rand`, in a quarter of the time.

        Args:
            inputs: Shape `(batch, steps, features)`, in the dtype of the weights, batch 1 or more.

        Returns:
            Shape `(batch, directions * hidden)`.
        """
        return _LastOutputs.apply(self._net, self, inputs, *self._net.parameters())  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {"_net": self._net, "_free": None}  # copies and pickles have buffers of their own

    @staticmethod
    def threads() -> AbstractContextManager[None]:
        """The threads of a step: one that computes, and helpers for parts of the batch."""
        return one_thread()

    def take(self, inputs: Tensor) -> "_Pass":
        """Buffers for inputs of this shape; new ones if those of the last pass don't fit, or aren't back yet."""
        taken, self._free = self._free, None
        if taken is None or taken.fits != (inputs.shape, inputs.dtype):
            taken = _Pass(self._net, inputs)
        taken.count += 1
        return taken

    def give_back(self, taken: "_Pass") -> None:
        """Let the next pass have them."""
        self._free = taken


class _Pass:
    """The weights and the parts of a batch, and of which pass they hold the values."""

    def __init__(self, net: nn.RNNBase, inputs: Tensor) -> None:
        self.fits = (inputs.shape, inputs.dtype)
        self.count = 0
        cell, per_layer = CELLS[net.mode], 2 if net.bidirectional else 1
        groups = _by_direction(list(net.parameters()))
        self._weights = [
            Weights(cell, parameters, 1 if number < per_layer else per_layer)
            for number, parameters in enumerate(groups)
        ]
        layers = [self._weights[start : start + per_layer] for start in range(0, len(groups), per_layer)]
        self.slices = _slices(len(inputs))
        self.parts = [_Part(cell, layers, inputs[rows], net.dropout) for rows in self.slices]

    def copy_weights(self, parameters: Sequence[Tensor]) -> None:
        """Take the parameters' values."""
        for weights, own in zip(self._weights, _by_direction(parameters), strict=True):
            weights.copy(own)


class _Part:
    """The layers for some of a batch's images, each a list of its directions.

    `_inputs` and `_masks` are those of the layers: the second layer's mask is what dropout multiplies the first one's
    outputs by.
    """

    def __init__(self, cell: Cell, weights: Sequence[Sequence[Weights]], inputs: Tensor, dropout: float) -> None:
        batch, steps, features = inputs.shape
        self._layers: list[list[Direction]] = []
        self._inputs = [inputs.new_empty(steps, batch, features)]
        for number, own in enumerate(weights):
            if number:
                width = sum(direction.outputs.shape[2] for direction in self._layers[-1])
                self._inputs.append(inputs.new_empty(steps, batch, width))
            self._layers.append(
                [Direction(cell, each, self._inputs[-1], reverse=bool(i)) for i, each in enumerate(own)]
            )
        self._dropout = dropout
        self._masks = [torch.empty_like(each) for each in self._inputs] if dropout else []
        self._of_inputs = torch.empty_like(self._inputs[0])
        self._go_down = [
            [self._bind(upper, below, direction.of_outputs) for below, direction in enumerate(lower)]
            for lower, upper in pairwise(self._layers)
        ]
        self._go_out = self._bind(self._layers[0], 0, self._of_inputs)

    @staticmethod
    def _bind(layer: Sequence[Direction], below: int, out: Tensor) -> Computation:
        pairs = [pair for direction in layer for pair in direction.input_products(below)]
        return add_products(pairs, out.flatten(0, 1))

    def forward(self, images: Tensor, seed: int) -> Tensor:
        """The last outputs of `(batch, steps, features)`; dropout draws from a generator that starts with `seed`."""
        random = torch.Generator().manual_seed(seed) if self._dropout else None
        self._inputs[0].copy_(images.transpose(0, 1))
        for number, layer in enumerate(self._layers):
            if number:
                inputs = self._inputs[number]
                torch.cat([direction.outputs for direction in self._layers[number - 1]], dim=2, out=inputs)
                if self._dropout:
                    mask = torch.rand(inputs.shape, generator=random, out=self._masks[number])
                    inputs.mul_(mask.ge_(self._dropout).div_(1 - self._dropout))
            for direction in layer:
                direction.forward()
        return torch.cat([direction.last_output for direction in self._layers[-1]], dim=1)

    def backward(self, gradient: Tensor, *, to_inputs: bool) -> Tensor | None:
        """Go back from the gradient of the last outputs, and compute that of the inputs, if going `to_inputs`."""
        top = self._layers[-1]
        for direction, own in zip(top, gradient.chunk(len(top), dim=1), strict=True):
            direction.start_back(own)
        for number in range(len(self._layers) - 1, -1, -1):
            for direction in self._layers[number]:
                direction.backward()
                direction.differentiate_parameters()
            if number:
                lower = self._layers[number - 1]
                for compute in self._go_down[number - 1]:
                    compute()
                if self._dropout:
                    for direction, own in zip(lower, self._masks[number].chunk(len(lower), dim=2), strict=True):
                        direction.of_outputs.mul_(own)
        if not to_inputs:
            return None
        self._go_out()
        return self._of_inputs.transpose(0, 1)

    def of_parameters(self) -> list[Tensor]:
        """The gradients of the net's parameters by these images."""
        return [tensor for layer in self._layers for direction in layer for tensor in direction.of_parameters]


class _LastOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: nn.RNNBase, memory: OnnxruntimeSteps, inputs: Tensor, *parameters: Tensor) -> Tensor:
        taken = memory.take(inputs)
        taken.copy_weights(parameters)
        # A generator for each part, so that parts draw at the same time.
        seeds = torch.randint(1 << 62, (len(taken.parts),)).tolist() if net.dropout else [0] * len(taken.parts)
        tasks = Tasks[Tensor]()
        for part, rows, seed in zip(taken.parts, taken.slices, seeds, strict=True):
            tasks.add(partial(part.forward, inputs[rows], seed))
        ctx.memory, ctx.taken, ctx.count = memory, taken, taken.count
        return torch.cat(tasks.results())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        taken: _Pass = ctx.taken
        if taken.count != ctx.count:
            raise RuntimeError("another forward pass has used the buffers of this one since its backward pass")
        tasks = Tasks[Tensor | None]()
        for part, rows in zip(taken.parts, taken.slices, strict=True):
            tasks.add(partial(part.backward, gradient[rows], to_inputs=ctx.needs_input_grad[2]))
        of_inputs = [each for each in tasks.results() if each is not None]
        of_parameters = [
            torch.stack(each).sum(0) for each in zip(*(p.of_parameters() for p in taken.parts), strict=True)
        ]
        ctx.memory.give_back(taken)
        return None, None, torch.cat(of_inputs) if of_inputs else None, *of_parameters


def _slices(batch: int) -> list[slice]:
    """The parts of a batch, of about the same size. They don't depend on the number of threads, so no bit does."""
    count = 2 if batch >= 2 * _LEAST_HALF else 1
    while 1 < count < _MOST_PARTS and batch >= 2 * count * _LEAST_PART:
        count *= 2
    ends = [batch * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _by_direction(parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [parameters[start : start + 4] for start in range(0, len(parameters), 4)]
