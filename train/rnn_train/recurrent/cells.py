"""The cells: one step of the recurrence, forward and backward, as nodes of an ONNX graph.

A gate is a function of two sums: of the inputs times the rows of `weight_ih` that belong to it, and of the states times
those of `weight_hh`. A vanilla RNN is a cell of one gate.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rnn_train.recurrent.graphs import Graph

if TYPE_CHECKING:
    import onnxruntime

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
    def gradients(self) -> tuple[str, ...]:
        """All that `backward` computes."""
        return tuple(dict.fromkeys((*self.of_sums, *self.of_states)))

    @abstractmethod
    def forward(self, graph: Graph, step: int, before: str) -> str:
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
    def backward(self, graph: Graph, step: int, state: str, addend: str | None) -> str:
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

    def forward(self, graph: Graph, step: int, before: str) -> str:
        total = graph.node("Gemm", before, "hidden_weight0", f"sums0.{step}")
        return graph.node(self.activation, total, output=f"state.{step}")

    def derive(self, tensors: Mapping[str, Tensor]) -> None:
        slope, outputs = tensors["slope"], tensors["state"]
        if self.activation == "Relu":
            torch.sign(outputs, out=slope)
        else:
            torch.addcmul(slope.new_ones(()), outputs, outputs, value=-1, out=slope)

    def backward(self, graph: Graph, step: int, state: str, addend: str | None) -> str:
        of_sums = graph.node("Mul", state, f"slope.{step}", output=f"of_sums0.{step}")
        return graph.node("Gemm", of_sums, "hidden_weight0", *([addend] if addend else []))


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

    def forward(self, graph: Graph, step: int, before: str) -> str:
        r, z = (
            graph.node(
                "Sigmoid",
                graph.node("Gemm", before, f"hidden_weight{gate}", f"sums{gate}.{step}"),
                output=f"{name}.{step}",
            )
            for gate, name in enumerate("rz")
        )
        q = graph.node("Gemm", before, "hidden_weight2", "hidden_bias", output=f"q.{step}")
        total = graph.node("Add", f"sums2.{step}", graph.node("Mul", r, q))
        n = graph.node("Tanh", total, output=f"n.{step}")
        return graph.node("Add", n, graph.node("Mul", z, graph.node("Sub", before, n)), output=f"state.{step}")

    def derive(self, tensors: Mapping[str, Tensor]) -> None:
        before, r, z, n, q, of_r, of_z, of_n = (tensors[name] for name in ("before", *self.saved, *self.factors))
        torch.sub(before, n, out=of_z)
        of_z.mul_(z)
        of_z.addcmul_(of_z, z, value=-1)
        torch.addcmul(n.new_ones(()), n, n, value=-1, out=of_n)
        of_n.addcmul_(of_n, z, value=-1)  # (1 - n²) * (1 - z)
        torch.mul(q, r, out=of_r)  # a factor of n's gradient
        of_r.addcmul_(of_r, r, value=-1)

    def backward(self, graph: Graph, step: int, state: str, addend: str | None) -> str:
        of_n = graph.node("Mul", state, f"of_n.{step}", output=f"of_sums2.{step}")
        of_gates = (
            graph.node("Mul", of_n, f"of_r.{step}", output=f"of_sums0.{step}"),
            graph.node("Mul", state, f"of_z.{step}", output=f"of_sums1.{step}"),
            graph.node("Mul", of_n, f"r.{step}", output=f"of_q.{step}"),
        )
        total = graph.node("Mul", state, f"z.{step}")
        if addend:
            total = graph.node("Add", total, addend)
        for gate, of_gate in enumerate(of_gates):
            total = graph.node("Gemm", of_gate, f"hidden_weight{gate}", total)
        return total


# By `nn.RNNBase.mode`.
CELLS: Mapping[str, Cell] = {"RNN_TANH": _RNN("Tanh"), "RNN_RELU": _RNN("Relu"), "GRU": _GRU()}


@cache
def open_forward(cell: Cell, steps: int, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    """All steps of a cell, from `before`, the state before the first."""
    sums = [f"sums{gate}.{step}" for step in range(steps) for gate in range(cell.gates)]
    graph = Graph(["before", *_hidden_weights(cell), *([] if cell.separate_bias is None else ["hidden_bias"]), *sums])
    state = "before"
    for step in range(steps):
        state = cell.forward(graph, step, state)
    return graph.open(dtype)


@cache
def open_backward(cell: Cell, steps: int, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    """All steps of a cell from the last to the first.

    Its inputs are the states' gradients by what isn't a step of the cell, as `of_output.<step>`, and by the step after
    the last, as `of_later`. Its outputs are those of the sums, and of the state before the first step, as `of_earlier`.
    """
    names = ("of_output", *cell.used_again, *cell.factors)
    graph = Graph(["of_later", *_hidden_weights(cell), *(f"{name}.{step}" for step in range(steps) for name in names)])
    state = graph.node("Add", "of_later", f"of_output.{steps - 1}")
    for step in range(steps - 1, -1, -1):
        state = cell.backward(graph, step, state, f"of_output.{step - 1}" if step else None)
    graph.node("Identity", state, output="of_earlier")
    return graph.open(dtype)


def _hidden_weights(cell: Cell) -> list[str]:
    return [f"hidden_weight{gate}" for gate in range(cell.gates)]
