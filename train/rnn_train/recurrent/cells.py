"""The cells: one step of the recurrence, forward and backward, as nodes of an ONNX graph, and sessions of many steps.

A gate is a function of two sums: of the inputs times the rows of `weight_ih` that belong to it, and of the states times
those of `weight_hh`. A vanilla RNN is a cell of one gate.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from rnn_runtime.engine.session import create_session

if TYPE_CHECKING:
    import onnxruntime

    from rnn_train.onnx_graph import GraphBuilder

_FLOATS: Mapping[torch.dtype, type[np.generic]] = {torch.float32: np.float32, torch.float64: np.float64}
# Steps in one graph. It takes about 0.4 ms to open for each, once.
LONGEST = 128


class Cell(ABC):
    """A kind of cell. Its tensors have the shape `(steps, batch, hidden)` over all steps, and names.

    `sums0`, `sums1` and so on are the gates' sums of the inputs, with biases; `of_sums0` and so on their gradients.
    `hidden_weight0` and so on are the gates' parts of `weight_hh`, in `forward` transposed.

    Attributes:
        gates: How many there are.
        saved: The results of a step that `derive` needs, beside the state.
        factors: What `derive` computes for `backward`.
        used_again: Those of `saved` that `backward` needs as well.
        of_states: For each gate, the gradient of its sum of the states: that of its sum of the inputs, but where the
            two sums aren't simply added.
        separate_bias: The gate whose sum of the states has a bias of its own, `hidden_bias`; None if both biases belong
            to the sums of the inputs.
        in_place_of: Tensors that are computed when the other isn't needed any more, and take its memory. A step needs
            several megabytes, and what doesn't fit into a core's cache costs as much time as a third of its products.
    """

    gates: int
    saved: tuple[str, ...]
    factors: tuple[str, ...]
    used_again: tuple[str, ...]
    of_states: tuple[str, ...]
    separate_bias: int | None
    in_place_of: ClassVar[Mapping[str, str]]

    @property
    def of_sums(self) -> tuple[str, ...]:
        """For each gate, the gradient of its sum of the inputs."""
        return tuple(f"of_sums{gate}" for gate in range(self.gates))

    @property
    def hidden_weights(self) -> tuple[str, ...]:
        """The gates' parts of `weight_hh`."""
        return tuple(f"hidden_weight{gate}" for gate in range(self.gates))

    @property
    def sums(self) -> tuple[str, ...]:
        """The gates' sums of the inputs."""
        return tuple(f"sums{gate}" for gate in range(self.gates))

    @property
    def gradients(self) -> tuple[str, ...]:
        """All that `backward` computes."""
        return tuple(dict.fromkeys((*self.of_sums, *self.of_states)))

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
    saved = used_again = ()
    factors = ("slope",)
    of_states = ("of_sums0",)
    separate_bias = None
    in_place_of: ClassVar = {"slope": "sums0", "of_sums0": "of_output"}

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
        of_sums = graph.node("Mul", [state, f"slope.{step}"], f"of_sums0.{step}")
        return graph.node("Gemm", [of_sums, "hidden_weight0", *([addend] if addend else [])])


class _GRU(Cell):
    """`h = (1 - z) * n + z * h` with `n = tanh(x @ W.t() + b + r * q)` and `q = h @ U.t() + c`.

    `r` and `z` are the sigmoids of the gates 0 and 1; that of `n` has the number 2.
    """

    gates = 3
    saved = ("r", "z", "n", "q")
    factors = ("of_r", "of_z", "of_n")
    used_again = ("r", "z")
    of_states = ("of_sums0", "of_sums1", "of_q")
    separate_bias = 2
    in_place_of: ClassVar = {
        "of_r": "q",
        "of_n": "n",
        "of_z": "sums0",
        "of_sums1": "sums1",
        "of_sums2": "sums2",
        "of_q": "of_output",
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
        before, r, z, n, q, of_r, of_z, of_n = (tensors[name] for name in ("before", *self.saved, *self.factors))
        torch.sub(before, n, out=of_z)
        of_z.mul_(z)
        of_z.addcmul_(of_z, z, value=-1)
        torch.addcmul(n.new_ones(()), n, n, value=-1, out=of_n)
        of_n.addcmul_(of_n, z, value=-1)  # (1 - n²) * (1 - z)
        torch.mul(q, r, out=of_r)  # a factor of n's gradient
        of_r.addcmul_(of_r, r, value=-1)

    def backward(self, graph: "GraphBuilder", step: int, state: str, addend: str | None) -> str:
        of_n = graph.node("Mul", [state, f"of_n.{step}"], f"of_sums2.{step}")
        of_gates = (
            graph.node("Mul", [of_n, f"of_r.{step}"], f"of_sums0.{step}"),
            graph.node("Mul", [state, f"of_z.{step}"], f"of_sums1.{step}"),
            graph.node("Mul", [of_n, f"r.{step}"], f"of_q.{step}"),
        )
        total = graph.node("Mul", [state, f"z.{step}"])
        if addend:
            total = graph.node("Add", [total, addend])
        for gate, of_gate in enumerate(of_gates):
            total = graph.node("Gemm", [of_gate, f"hidden_weight{gate}", total])
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
    inputs = ["before", *cell.hidden_weights, *([] if cell.separate_bias is None else ["hidden_bias"])]
    return _open(graph, [*inputs, *_each(cell.sums, steps)], _each(("state", *cell.saved), steps))


@cache
def open_backward(cell: Cell, steps: int, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    """All steps of a cell from the last to the first.

    Its inputs are the states' gradients by what isn't a step of the cell, as `of_output.<step>`, and by the step after
    the last, as `of_later`. Its outputs are those of the sums, and of the state before the first step, as `of_earlier`.
    """
    graph = _new_graph(dtype)
    state = graph.node("Add", ["of_later", f"of_output.{steps - 1}"])
    for step in range(steps - 1, -1, -1):
        state = cell.backward(graph, step, state, f"of_output.{step - 1}" if step else None)
    graph.node("Identity", [state], "of_earlier")
    inputs = _each(("of_output", *cell.used_again, *cell.factors), steps)
    return _open(graph, ["of_later", *cell.hidden_weights, *inputs], ["of_earlier", *_each(cell.gradients, steps)])


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
    addend = ["addend"] if has_addend else []
    total = addend
    for number in range(count):
        output = "out" if number == count - 1 else None
        total = [graph.node("Gemm", [f"a{number}", f"b{number}", *total], output, transA=int(transposed))]
    factors = [f"{side}{number}" for number in range(count) for side in "ab"]
    return _open(graph, [*factors, *addend], ["out"])


def _new_graph(dtype: torch.dtype) -> "GraphBuilder":
    from rnn_train.onnx_graph import GraphBuilder  # onnx, which only these steps need

    return GraphBuilder(_FLOATS[dtype])


def _open(graph: "GraphBuilder", inputs: Sequence[str], outputs: Sequence[str]) -> "onnxruntime.InferenceSession":
    model = graph.model("step", graph.values(inputs), graph.values(outputs))
    return create_session(model.SerializeToString())


def _each(names: Sequence[str], steps: int) -> list[str]:
    return [f"{name}.{step}" for step in range(steps) for name in names]
