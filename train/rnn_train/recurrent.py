"""Training steps of RNNs and GRUs on a CPU, computed by onnxruntime in half the time of torch's modules.

Forward and backward of a whole net are one `torch.autograd.Function`. From the whole to its parts: a batch is divided
among threads, and each part has the directions of all layers. Their steps are sessions, with inputs and outputs in
buffers of fixed places. At the end are the cells: one step of the recurrence, forward and backward, as graph nodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnn_runtime.engine import create_session, share
from rnn_runtime.threads import ThreadPool

if TYPE_CHECKING:
    import onnxruntime

    from rnn_train.onnx_graph import GraphBuilder

_Value = TypeVar("_Value")
# Products of fewer rows are slower: a GRU's step by a fifth for 32 instead of 64, an RNN's by a twentieth for 50.
_LEAST_HALF = 16
_LEAST_PART = 48
_MOST_PARTS = 16  # each has gradients of all parameters
# Where one of two packages that share a module was uninstalled, an empty module is left.
_NEEDED = {"onnx": "helper", "onnxruntime": "InferenceSession"}
_FLOATS: Mapping[torch.dtype, type[np.generic]] = {torch.float32: np.float32, torch.float64: np.float64}
_MOST_FREE = 2  # buffers: those of an epoch's batches, and of the smaller one at its end
# Steps in one graph. It takes about 0.4 ms to open for each, once.
_LONGEST = 128


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
    suits = net.mode in CELLS and weight.dtype in (torch.float32, torch.float64)
    if not suits or amp or weight.device.type != "cpu":
        return None, None
    missing = [package for package, name in _NEEDED.items() if not _can_import(package, name)]
    if missing:
        packages, them = " and ".join(missing), "it" if len(missing) == 1 else "them"
        return None, (
            f"{packages} can't be imported, so torch's modules train. With {them}, training takes about half the time "
            "on a CPU"
        )
    return OnnxruntimeSteps(net), None


def _can_import(package: str, name: str) -> bool:
    try:
        return hasattr(import_module(package), name)
    except Exception:  # anything may be missing in a broken installation
        return False


class OnnxruntimeSteps:
    """Training steps of a net. Call it with a batch, within `threads`.

    It keeps the buffers of a step for the next one. Fresh ones would cost a page fault per 4 KB at each step.

    Args:
        net: An RNN or GRU with biases, in float32 or float64 on the CPU.
    """

    def __init__(self, net: nn.RNNBase) -> None:
        self._net = net
        self._helpers: ThreadPool | None = None
        self._free: dict[Any, _Buffers] = {}  # by what they are for; the one used last at the end

    def __getstate__(self) -> dict[str, Any]:
        return {"_net": self._net, "_helpers": None, "_free": {}}  # copies and pickles have buffers of their own

    def __call__(self, inputs: Tensor) -> Tensor:
        """The last layer's outputs at the last step of each direction, with dropout between layers.

        The gradients of the net's parameters are autograd's, but for rounding; the inputs get none. Dropout drops as
        often as torch's, but other values: it draws with `torch.rand`, in a quarter of the time.

        Args:
            inputs: Shape `(batch, steps, features)`, in the dtype of the weights, batch 1 or more.

        Returns:
            Shape `(batch, directions * hidden)`.
        """
        return _LastOutputs.apply(self, self._net.dropout, inputs, *self._net.parameters())  # type: ignore[no-any-return]

    @contextmanager
    def threads(self) -> Iterator[None]:
        """The threads of a step: one of torch's, and helpers for parts of the batch instead of the others.

        torch's threads share each product, and wait for each other at its end. A step of a recurrent net has hundreds
        of them. Where they are small and a core is busy, the waits take many times as long as the products.
        """
        count = torch.get_num_threads()
        self._helpers = _start_helpers(count - 1) if count > 1 else None
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(count)
            self._helpers = None

    def take_buffers(self, inputs: Tensor) -> "_Buffers":
        """Buffers for inputs of this shape: those of an earlier pass that has gone back, or new ones."""
        taken = self._free.pop((inputs.shape, inputs.dtype), None) or _Buffers(self._net, inputs)
        taken.passes += 1
        return taken

    def give_back(self, buffers: "_Buffers") -> None:
        """Let a later pass have the buffers of this one."""
        self._free[buffers.fits] = buffers
        if len(self._free) > _MOST_FREE:
            del self._free[next(iter(self._free))]

    def share(self, tasks: Sequence[Callable[[], _Value]]) -> list[_Value]:
        """Compute tasks in this thread and in helpers, without gradients; the results, in order.

        Each task is computed by one thread, so no result depends on how many there are.
        """
        return share([torch.no_grad()(task) for task in tasks], self._helpers)


@cache
def _start_helpers(count: int) -> ThreadPool:
    # torch's number of threads is each thread's own
    return ThreadPool(count, "rnn-train", initializer=torch.set_num_threads, initargs=(1,))


class _LastOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: OnnxruntimeSteps, dropout: float, inputs: Tensor, *parameters: Tensor) -> Tensor:
        buffers = steps.take_buffers(inputs)
        buffers.copy_weights(parameters)
        # A generator for each part, so that parts draw at the same time.
        parts = buffers.parts
        seeds = torch.randint(1 << 62, (len(parts),)).tolist() if dropout else [0] * len(parts)
        ctx.steps, ctx.buffers, ctx.passes = steps, buffers, buffers.passes
        tasks = [
            partial(part.forward, inputs[rows], seed)
            for part, rows, seed in zip(parts, buffers.slices, seeds, strict=True)
        ]
        return torch.cat(steps.share(tasks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        steps: OnnxruntimeSteps = ctx.steps
        buffers: _Buffers = ctx.buffers
        if buffers.passes != ctx.passes:
            raise RuntimeError("another forward pass has used the buffers of this one since its backward pass")
        parts = zip(buffers.parts, buffers.slices, strict=True)
        gradients = steps.share([partial(part.backward, gradient[rows]) for part, rows in parts])
        steps.give_back(buffers)
        return None, None, None, *(torch.stack(each).sum(0) for each in zip(*gradients, strict=True))


class _Buffers:
    """The weights and the parts of a batch.

    Attributes:
        fits: Shape and dtype of the inputs that it is for.
        passes: How many have used it. It holds the values of the last.
        slices: The images of each part.
        parts: The parts of the batch.
    """

    def __init__(self, net: nn.RNNBase, inputs: Tensor) -> None:
        self.fits = (inputs.shape, inputs.dtype)
        self.passes = 0
        cell, per_layer = CELLS[net.mode], 2 if net.bidirectional else 1
        groups = _by_direction(list(net.parameters()))
        self._weights = [
            _Weights(cell, parameters, 1 if number < per_layer else per_layer)
            for number, parameters in enumerate(groups)
        ]
        layers = [self._weights[start : start + per_layer] for start in range(0, len(groups), per_layer)]
        self.slices = _slices(len(inputs))
        self.parts = [_Part(cell, layers, inputs[rows], net.dropout) for rows in self.slices]

    def copy_weights(self, parameters: Sequence[Tensor]) -> None:
        """Take the parameters' values."""
        for weights, own in zip(self._weights, _by_direction(parameters), strict=True):
            weights.copy(own)


def _slices(batch: int) -> list[slice]:
    """The parts of a batch, of about the same size. They don't depend on the number of threads, so no bit does."""
    count = 2 if batch >= 2 * _LEAST_HALF else 1
    while 1 < count < _MOST_PARTS and batch >= 2 * count * _LEAST_PART:
        count *= 2
    ends = [batch * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _by_direction(parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [parameters[start : start + 4] for start in range(0, len(parameters), 4)]


class _Part:
    """The layers for some of a batch's images, each a list of its directions.

    `_inputs` and `_masks` are those of the layers: the second layer's mask is what dropout multiplies the first one's
    outputs by.
    """

    def __init__(self, cell: "Cell", weights: "Sequence[Sequence[_Weights]]", inputs: Tensor, dropout: float) -> None:
        batch, steps, features = inputs.shape
        self._layers: list[list[_Direction]] = []
        self._inputs = [inputs.new_empty(steps, batch, features)]
        for number, own in enumerate(weights):
            if number:
                width = sum(direction.outputs.shape[2] for direction in self._layers[-1])
                self._inputs.append(inputs.new_empty(steps, batch, width))
            self._layers.append(
                [_Direction(cell, each, self._inputs[-1], reverse=bool(i)) for i, each in enumerate(own)]
            )
        self._dropout = dropout
        self._masks = [torch.empty_like(each) for each in self._inputs] if dropout else []
        self._go_down = [
            [
                _products([pair for each in upper for pair in each.input_products(below)], direction.grad_outputs)
                for below, direction in enumerate(lower)
            ]
            for lower, upper in pairwise(self._layers)
        ]

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

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """Go back from the gradient of the last outputs to those of the net's parameters."""
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
                        direction.grad_outputs.mul_(own)
        return [tensor for layer in self._layers for direction in layer for tensor in direction.grad_parameters]


class _Direction:
    """The buffers and computations of one direction for some images.

    Args:
        cell: Its kind.
        weights: Its weights.
        inputs: Shape `(steps, batch, features)`.
        reverse: Whether it goes from the last step to the first.

    Attributes:
        outputs: The states after each step, shape `(steps, batch, hidden)`.
        grad_outputs: Their gradient.
        grad_parameters: The gradients of `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`.
    """

    def __init__(self, cell: "Cell", weights: "_Weights", inputs: Tensor, reverse: bool) -> None:
        self._cell, self._weights = cell, weights
        steps, batch, features = inputs.shape
        size = len(weights.hidden_bias)
        states = inputs.new_zeros(steps + 1, batch, size)  # the state at the start stays zero
        self._before, self.outputs = (states[1:], states[:-1]) if reverse else (states[:-1], states[1:])
        self._tensors = {"before": self._before, "state": self.outputs}
        for name in ("grad_output", *cell.sums, *cell.saved, *cell.factors, *cell.gradients):
            replaced = cell.in_place_of.get(name)
            self._tensors[name] = self._tensors[replaced] if replaced else inputs.new_empty(steps, batch, size)
        self._is_derived = False
        self.grad_outputs = self._tensors["grad_output"]
        self._grad_later, self._grad_earlier = inputs.new_zeros(2, batch, size)
        rows = cell.gates * size
        self.grad_parameters = [inputs.new_empty(rows, width) for width in (features, size)]
        self.grad_parameters += [inputs.new_empty(rows) for _ in range(2)]

        order = list(range(steps))[:: -1 if reverse else 1]
        self._last = order[-1]
        chunks = [order[start : start + _LONGEST] for start in range(0, steps, _LONGEST)]
        self._project = [
            _products([(inputs, weights.from_input[gate])], self._tensors[name], addend=weights.sums_bias[gate])
            for gate, name in enumerate(cell.sums)
        ]
        self._go = [
            self._bind(
                open_forward(cell, len(chunk), inputs.dtype),
                chunk,
                before=self._before[chunk[0]],
                hidden_bias=weights.hidden_bias,
                **_number("hidden_weight", weights.from_state),
            )
            for chunk in chunks
        ]
        self._go_back = [
            self._bind(
                open_backward(cell, len(chunk), inputs.dtype),
                chunk,
                grad_later=self._grad_later,
                grad_earlier=self._grad_earlier,
                **_number("hidden_weight", weights.to_state),
            )
            for chunk in reversed(chunks)
        ]
        grad_weight_ih, grad_weight_hh, *self._grad_biases = self.grad_parameters
        self._differentiate = [
            _products([(self._tensors[name], factor)], rows, transposed=True)
            for total, names, factor in (
                (grad_weight_ih, cell.grad_sums, inputs),
                (grad_weight_hh, cell.grad_states, self._before),
            )
            for rows, name in zip(total.chunk(cell.gates), names, strict=True)
        ]

    @property
    def last_output(self) -> Tensor:
        """Of the last step in this direction, shape `(batch, hidden)`."""
        return self.outputs[self._last]

    def start_back(self, gradient: Tensor) -> None:
        """Set the gradient of the outputs to that of the last step alone."""
        self.grad_outputs.zero_()
        self.grad_outputs[self._last].copy_(gradient)

    def forward(self) -> None:
        """Compute `outputs` of the inputs."""
        for compute in (*self._project, *self._go):
            compute()
        self._is_derived = False

    def backward(self) -> None:
        """Compute the gradients of the gates' sums, of `grad_outputs`."""
        if not self._is_derived:  # whoever keeps the autograd graph may go back twice
            self._cell.derive(self._tensors)
            self._is_derived = True
        self._grad_later.zero_()
        for compute in self._go_back:
            compute()
            self._grad_later.copy_(self._grad_earlier)

    def differentiate_parameters(self) -> None:
        """Compute `grad_parameters`, after `backward`."""
        for compute in self._differentiate:
            compute()
        sums = {name: self._tensors[name].flatten(0, 1).sum(0) for name in self._cell.gradients}
        for grad_bias, names in zip(self._grad_biases, (self._cell.grad_sums, self._cell.grad_states), strict=True):
            torch.cat([sums[name] for name in names], out=grad_bias)

    def input_products(self, below: int) -> list[tuple[Tensor, Tensor]]:
        """What adds up to the gradient of the inputs: pairs of factors.

        Args:
            below: Of the outputs of which direction of the layer below.
        """
        return [
            (self._tensors[name], parts[below])
            for name, parts in zip(self._cell.grad_sums, self._weights.to_input, strict=True)
        ]

    def _bind(self, session: "onnxruntime.InferenceSession", order: Sequence[int], **others: Tensor) -> "_Computation":
        """Compute steps, whose parts of the tensors are `<name>.<number in order>`."""
        parts = {
            f"{name}.{number}": tensor[step]
            for name, tensor in self._tensors.items()
            for number, step in enumerate(order)
        }
        return _Computation(session, {**parts, **others})


class _Weights:
    """Copies of a direction's parameters, gate by gate, in the layouts that products want.

    Attributes:
        from_input: For each gate, shape `(features, hidden)`.
        to_input: Likewise, `(hidden, features)`, in as many parts of the features as the layer below has directions.
        from_state: Likewise, `(hidden, hidden)`.
        to_state: The same, transposed.
        sums_bias: Likewise, `(hidden,)`: both biases, but only the input's where `hidden_bias` has the other.
        hidden_bias: That of the gate that `Cell.separate_bias` names.
    """

    def __init__(self, cell: "Cell", parameters: Sequence[Tensor], directions_below: int) -> None:
        weight_ih, weight_hh, _, _ = parameters
        (_, features), (_, size) = weight_ih.shape, weight_hh.shape
        self._cell = cell
        new, gates = weight_ih.new_empty, range(cell.gates)
        self.from_input = [new(features, size) for _ in gates]
        self.to_input = [[new(size, features // directions_below) for _ in range(directions_below)] for _ in gates]
        self.from_state, self.to_state = ([new(size, size) for _ in gates] for _ in range(2))
        self.sums_bias, self.hidden_bias = [new(size) for _ in gates], new(size)

    def copy(self, parameters: Sequence[Tensor]) -> None:
        """Take the values of `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`."""
        for gate, (input_weight, state_weight, input_bias, hidden_bias) in enumerate(
            zip(*(parameter.detach().chunk(self._cell.gates) for parameter in parameters), strict=True)
        ):
            self.from_input[gate].copy_(input_weight.t())
            self.from_state[gate].copy_(state_weight.t())
            self.to_state[gate].copy_(state_weight)
            parts = self.to_input[gate]
            for part, columns in zip(parts, input_weight.chunk(len(parts), dim=1), strict=True):
                part.copy_(columns)
            self.sums_bias[gate].copy_(input_bias)
            if gate == self._cell.separate_bias:
                self.hidden_bias.copy_(hidden_bias)
            else:
                self.sums_bias[gate].add_(hidden_bias)


class _Computation:
    """A session with its inputs and outputs in tensors of fixed places, which are read and written in each call.

    Args:
        session: On the CPU.
        tensors: Contiguous ones for the names of its inputs and outputs; others are ignored.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", tensors: Mapping[str, Tensor]) -> None:
        self._session, self._tensors = session, tensors  # the binding only knows addresses
        self._binding = session.io_binding()
        for bind, values in (
            (self._binding.bind_input, session.get_inputs()),
            (self._binding.bind_output, session.get_outputs()),
        ):
            for value in values:
                tensor = tensors[value.name]
                assert tensor.is_contiguous()
                bind(value.name, "cpu", 0, tensor.numpy().dtype.type, list(tensor.shape), tensor.data_ptr())

    def __call__(self) -> None:
        """Compute the outputs of what the inputs hold.

        Raises:
            MemoryError: there is no memory for results in between.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's classes have no common one
            if "alloc" in str(error):
                raise MemoryError from None
            raise


def _products(
    pairs: Sequence[tuple[Tensor, Tensor]], out: Tensor, *, addend: Tensor | None = None, transposed: bool = False
) -> _Computation:
    """`out`, the sum of the products of all pairs, whose left factors may be transposed, and of a row.

    The steps and images of a tensor `(steps, batch, hidden)` are rows of one matrix.
    """
    tensors = {
        f"{side}{number}": factor.flatten(0, -2)
        for number, pair in enumerate(pairs)
        for side, factor in zip("ab", pair, strict=True)
    }
    if addend is not None:
        tensors["addend"] = addend
    session = open_products(len(pairs), out.dtype, transposed, addend is not None)
    return _Computation(session, {**tensors, "out": out.flatten(0, -2)})


def _number(name: str, tensors: Sequence[Tensor]) -> Mapping[str, Tensor]:
    return {f"{name}{number}": tensor for number, tensor in enumerate(tensors)}


class Cell(ABC):
    """A kind of cell. Its tensors have the shape `(steps, batch, hidden)` over all steps, and names.

    A gate is a function of two sums: of the inputs times the rows of `weight_ih` that belong to it, and of the states
    times those of `weight_hh`. A vanilla RNN is a cell of one gate.

    `sums0`, `sums1` and so on are the gates' sums of the inputs, with biases; `grad_sums0` and so on their gradients.
    `hidden_weight0` and so on are the gates' parts of `weight_hh`, in `forward` transposed.

    Attributes:
        gates: How many there are.
        saved: The results of a step that `derive` needs, beside the state.
        factors: What `derive` computes for `backward`.
        grad_states: For each gate, the gradient of its sum of the states: that of its sum of the inputs, but where the
            two sums aren't simply added.
        separate_bias: The gate whose sum of the states has a bias of its own, `hidden_bias`; None if both biases belong
            to the sums of the inputs.
        in_place_of: Tensors that are computed when the other isn't needed any more, and take its memory. A step needs
            several megabytes, and what doesn't fit into a core's cache costs as much time as a third of its products.
    """

    gates: int
    saved: tuple[str, ...]
    factors: tuple[str, ...]
    grad_states: tuple[str, ...]
    separate_bias: int | None
    in_place_of: ClassVar[Mapping[str, str]]

    @property
    def grad_sums(self) -> tuple[str, ...]:
        """For each gate, the gradient of its sum of the inputs."""
        return tuple(f"grad_sums{gate}" for gate in range(self.gates))

    @property
    def sums(self) -> tuple[str, ...]:
        """The gates' sums of the inputs."""
        return tuple(f"sums{gate}" for gate in range(self.gates))

    @property
    def gradients(self) -> tuple[str, ...]:
        """All that `backward` computes."""
        return tuple(dict.fromkeys((*self.grad_sums, *self.grad_states)))

    @abstractmethod
    def forward(self, graph: "GraphBuilder", step: int, before: str) -> str:
        """Add the nodes of a step, and return the state's name.

        Args:
            graph: Has the sums of the step's inputs as `sums0.<step>` and so on.
            step: Its number.
            before: The state before it.
        """

    @abstractmethod
    def derive(self, tensors: Mapping[str, Tensor]) -> None:
        """Compute the factors, of all steps.

        Args:
            tensors: The states `before` each step, and the `state` after it; those of `saved`; and those of `factors`,
                which are written, some of them in place.
        """

    @abstractmethod
    def backward(self, graph: "GraphBuilder", step: int, state: str, addend: str | None) -> str:
        """Add the nodes of a step back, and return the name of the gradient of the state before it.

        Args:
            graph: Has the step's factors as `<name>.<step>`.
            step: Its number.
            state: The gradient of the state after it.
            addend: What else to add to the result.
        """


class _RNN(Cell):
    """`h = tanh(x @ W.t() + h @ U.t() + b)`, or ReLU in place of tanh."""

    gates = 1
    saved = ()
    factors = ("slope",)
    grad_states = ("grad_sums0",)
    separate_bias = None
    in_place_of: ClassVar = {"slope": "sums0", "grad_sums0": "grad_output"}

    def __init__(self, activation: str) -> None:
        self.activation = activation

    def forward(self, graph: "GraphBuilder", step: int, before: str) -> str:
        total = graph.node("Gemm", [before, "hidden_weight0", f"sums0.{step}"])
        return graph.node(self.activation, [total], f"state.{step}")

    def derive(self, tensors: Mapping[str, Tensor]) -> None:
        slope, outputs = tensors["slope"], tensors["state"]
        if self.activation == "Relu":
            torch.sign(outputs, out=slope)
        else:
            torch.addcmul(slope.new_ones(()), outputs, outputs, value=-1, out=slope)

    def backward(self, graph: "GraphBuilder", step: int, state: str, addend: str | None) -> str:
        grad_sums = graph.node("Mul", [state, f"slope.{step}"], f"grad_sums0.{step}")
        return graph.node("Gemm", [grad_sums, "hidden_weight0", *([addend] if addend else [])])


class _GRU(Cell):
    """`h = (1 - z) * n + z * h` with `n = tanh(x @ W.t() + b + r * q)` and `q = h @ U.t() + c`.

    `r` and `z` are the sigmoids of the gates 0 and 1; that of `n` has the number 2.
    """

    gates = 3
    saved = ("r", "z", "n", "q")
    factors = ("slope_r", "slope_z", "slope_n")
    grad_states = ("grad_sums0", "grad_sums1", "grad_q")
    separate_bias = 2
    in_place_of: ClassVar = {
        "slope_r": "q",
        "slope_n": "n",
        "slope_z": "sums0",
        "grad_sums1": "sums1",
        "grad_sums2": "sums2",
        "grad_q": "grad_output",
    }

    def forward(self, graph: "GraphBuilder", step: int, before: str) -> str:
        r, z = (self._add_gate(graph, name, number, step, before) for number, name in enumerate("rz"))
        q = graph.node("Gemm", [before, "hidden_weight2", "hidden_bias"], f"q.{step}")
        total = graph.node("Add", [f"sums2.{step}", graph.node("Mul", [r, q])])
        n = graph.node("Tanh", [total], f"n.{step}")
        kept = graph.node("Mul", [z, graph.node("Sub", [before, n])])
        return graph.node("Add", [n, kept], f"state.{step}")

    @staticmethod
    def _add_gate(graph: "GraphBuilder", name: str, number: int, step: int, before: str) -> str:
        total = graph.node("Gemm", [before, f"hidden_weight{number}", f"sums{number}.{step}"])
        return graph.node("Sigmoid", [total], f"{name}.{step}")

    def derive(self, tensors: Mapping[str, Tensor]) -> None:
        before, r, z, n, q = (tensors[name] for name in ("before", *self.saved))
        slope_r, slope_z, slope_n = (tensors[name] for name in self.factors)
        torch.sub(before, n, out=slope_z)
        slope_z.mul_(z)
        slope_z.addcmul_(slope_z, z, value=-1)
        torch.addcmul(n.new_ones(()), n, n, value=-1, out=slope_n)
        slope_n.addcmul_(slope_n, z, value=-1)  # (1 - n²) * (1 - z)
        torch.mul(q, r, out=slope_r)  # a factor of n's gradient
        slope_r.addcmul_(slope_r, r, value=-1)

    def backward(self, graph: "GraphBuilder", step: int, state: str, addend: str | None) -> str:
        grad_n = graph.node("Mul", [state, f"slope_n.{step}"], f"grad_sums2.{step}")
        grad_gates = (
            graph.node("Mul", [grad_n, f"slope_r.{step}"], f"grad_sums0.{step}"),
            graph.node("Mul", [state, f"slope_z.{step}"], f"grad_sums1.{step}"),
            graph.node("Mul", [grad_n, f"r.{step}"], f"grad_q.{step}"),
        )
        total = graph.node("Mul", [state, f"z.{step}"])
        if addend:
            total = graph.node("Add", [total, addend])
        for gate, grad_gate in enumerate(grad_gates):
            total = graph.node("Gemm", [grad_gate, f"hidden_weight{gate}", total])
        return total


# By `nn.RNNBase.mode`.
CELLS: Mapping[str, Cell] = {"RNN_TANH": _RNN("Tanh"), "RNN_RELU": _RNN("Relu"), "GRU": _GRU()}


@cache
def open_forward(cell: Cell, steps: int, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    """All steps of a cell, from `before`, the state before the first."""
    graph = _new_graph(dtype)
    state = "before"
    for step in range(steps):
        state = cell.forward(graph, step, state)
    return _open(graph, _each(("state", *cell.saved), steps))


@cache
def open_backward(cell: Cell, steps: int, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    """All steps of a cell from the last to the first.

    Its inputs are the states' gradients by what isn't a step of the cell, as `grad_output.<step>`, and by the step
    after the last, as `grad_later`. Its outputs are the gradients of the sums, and of the state before the first step,
    as `grad_earlier`.
    """
    graph = _new_graph(dtype)
    state = graph.node("Add", ["grad_later", f"grad_output.{steps - 1}"])
    for step in range(steps - 1, -1, -1):
        state = cell.backward(graph, step, state, f"grad_output.{step - 1}" if step else None)
    graph.node("Identity", [state], "grad_earlier")
    return _open(graph, ["grad_earlier", *_each(cell.gradients, steps)])


@cache
def open_products(count: int, dtype: torch.dtype, transposed: bool, has_addend: bool) -> "onnxruntime.InferenceSession":
    """`out`, the sum of so many products: of `a0` and `b0`, and so on, and of the row `addend` if there is one.

    Args:
        count: How many.
        dtype: float32 or float64.
        transposed: Whether each left factor is transposed.
        has_addend: Whether there is an addend.
    """
    graph = _new_graph(dtype)
    total = ["addend"] if has_addend else []
    for number in range(count):
        output = "out" if number == count - 1 else None
        total = [graph.node("Gemm", [f"a{number}", f"b{number}", *total], output, transA=int(transposed))]
    return _open(graph, ["out"])


def _new_graph(dtype: torch.dtype) -> "GraphBuilder":
    from rnn_train.onnx_graph import GraphBuilder  # onnx, which only these steps need

    return GraphBuilder(_FLOATS[dtype])


def _open(graph: "GraphBuilder", outputs: Sequence[str]) -> "onnxruntime.InferenceSession":
    computed = {name for node in graph.nodes for name in node.output}
    inputs = dict.fromkeys(name for node in graph.nodes for name in node.input if name not in computed)
    model = graph.model("step", graph.values(list(inputs)), graph.values(outputs))
    return create_session(model.SerializeToString())


def _each(names: Sequence[str], steps: int) -> list[str]:
    return [f"{name}.{step}" for step in range(steps) for name in names]
