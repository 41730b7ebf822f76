"""One direction of one layer: its weights, and its computations for some of a batch's images."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rnn_train.recurrent.cells import LONGEST, Cell, open_backward, open_forward
from rnn_train.recurrent.graphs import Computation, multiply_add, multiply_transposed


class Weights:
    """Copies of a direction's parameters, gate by gate, in the layouts that products want.

    Attributes:
        from_input: For each gate, shape `(features, hidden)`.
        to_input: Likewise, `(hidden, features)`, in as many parts of the features as the layer below has directions.
        from_state: Likewise, `(hidden, hidden)`.
        to_state: The same, transposed.
        sums_bias: Likewise, `(hidden,)`: both biases, but only the input's where `hidden_bias` has the other.
        hidden_bias: That of the gate that `Cell.separate_bias` names.
    """

    def __init__(self, cell: Cell, parameters: Sequence[Tensor], directions_below: int) -> None:
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
        for gate, (of_input, of_state, input_bias, hidden_bias) in enumerate(
            zip(*(parameter.detach().chunk(self._cell.gates) for parameter in parameters), strict=True)
        ):
            self.from_input[gate].copy_(of_input.t())
            self.from_state[gate].copy_(of_state.t())
            self.to_state[gate].copy_(of_state)
            parts = self.to_input[gate]
            for part, columns in zip(parts, of_input.chunk(len(parts), dim=1), strict=True):
                part.copy_(columns)
            self.sums_bias[gate].copy_(input_bias)
            if gate == self._cell.separate_bias:
                self.hidden_bias.copy_(hidden_bias)
            else:
                self.sums_bias[gate].add_(hidden_bias)


class Direction:
    """The buffers and computations of one direction for some images.

    Args:
        cell: Its kind.
        weights: Its weights.
        inputs: Shape `(steps, batch, features)`.
        reverse: Whether it goes from the last step to the first.

    Attributes:
        outputs: The states after each step, shape `(steps, batch, hidden)`.
        of_outputs: Their gradient.
        of_parameters: The gradients of `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`.
    """

    def __init__(self, cell: Cell, weights: Weights, inputs: Tensor, reverse: bool) -> None:
        self._cell, self._weights = cell, weights
        steps, batch, features = inputs.shape
        size = len(weights.hidden_bias)
        states = inputs.new_zeros(steps + 1, batch, size)  # the state at the start stays zero
        self._before, self.outputs = (states[1:], states[:-1]) if reverse else (states[:-1], states[1:])
        self._sums = [f"sums{gate}" for gate in range(cell.gates)]
        self._tensors = {"before": self._before, "state": self.outputs}
        for name in ("of_output", *self._sums, *cell.saved, *cell.factors, *cell.gradients):
            replaced = cell.in_place_of.get(name)
            self._tensors[name] = self._tensors[replaced] if replaced else inputs.new_empty(steps, batch, size)
        self._is_derived = False
        self.of_outputs = self._tensors["of_output"]
        self._of_later, self._of_earlier = inputs.new_zeros(2, batch, size)
        rows = cell.gates * size
        self.of_parameters = [inputs.new_empty(rows, width) for width in (features, size)]
        self.of_parameters += [inputs.new_empty(rows) for _ in range(2)]

        order = list(range(steps))[:: -1 if reverse else 1]
        self._last = order[-1]
        chunks = [order[start : start + LONGEST] for start in range(0, steps, LONGEST)]
        self._project = [
            multiply_add(inputs.flatten(0, 1), weights.from_input[gate], weights.sums_bias[gate], self._flat(name))
            for gate, name in enumerate(self._sums)
        ]
        self._go = [self._bind_forward(chunk) for chunk in chunks]
        self._go_back = [self._bind_backward(chunk) for chunk in reversed(chunks)]
        self._differentiate = list(self._bind_weights(inputs))

    @property
    def last_output(self) -> Tensor:
        """Of the last step in this direction, shape `(batch, hidden)`."""
        return self.outputs[self._last]

    def start_back(self, gradient: Tensor) -> None:
        """Set the gradient of the outputs to that of the last step alone."""
        self.of_outputs.zero_()
        self.of_outputs[self._last].copy_(gradient)

    def forward(self) -> None:
        """Compute `outputs` of the inputs."""
        for compute in (*self._project, *self._go):
            compute()
        self._is_derived = False

    def backward(self) -> None:
        """Compute the gradients of the gates' sums, of `of_outputs`."""
        if not self._is_derived:  # whoever keeps the autograd graph may go back twice
            self._cell.derive(self._tensors)
            self._is_derived = True
        self._of_later.zero_()
        for compute in self._go_back:
            compute()
            self._of_later.copy_(self._of_earlier)

    def differentiate_parameters(self) -> None:
        """Compute `of_parameters`, after `backward`."""
        for compute in self._differentiate:
            compute()
        _, _, *of_biases = self.of_parameters
        sums = {name: self._flat(name).sum(0) for name in self._cell.gradients}
        for of_bias, names in zip(of_biases, (self._cell.of_sums, self._cell.of_states), strict=True):
            torch.cat([sums[name] for name in names], out=of_bias)

    def input_products(self, below: int) -> list[tuple[Tensor, Tensor]]:
        """What adds up to the gradient of the inputs: pairs of factors.

        Args:
            below: Of the outputs of which direction of the layer below.
        """
        return [
            (self._flat(name), parts[below])
            for name, parts in zip(self._cell.of_sums, self._weights.to_input, strict=True)
        ]

    def _bind_forward(self, order: Sequence[int]) -> Computation:
        cell, weights = self._cell, self._weights
        inputs = {
            "before": self._before[order[0]],
            **_number("hidden_weight", weights.from_state),
            **({} if cell.separate_bias is None else {"hidden_bias": weights.hidden_bias}),
            **self._each(self._sums, order),
        }
        states = {f"state.{step}": self.outputs[place] for step, place in enumerate(order)}
        session = open_forward(cell, len(order), self.outputs.dtype)
        return Computation(session, inputs, {**states, **self._each(cell.saved, order)})

    def _bind_backward(self, order: Sequence[int]) -> Computation:
        cell = self._cell
        inputs = {
            "of_later": self._of_later,
            **_number("hidden_weight", self._weights.to_state),
            **self._each(("of_output", *cell.used_again, *cell.factors), order),
        }
        outputs = {"of_earlier": self._of_earlier, **self._each(cell.gradients, order)}
        return Computation(open_backward(cell, len(order), self.outputs.dtype), inputs, outputs)

    def _bind_weights(self, inputs: Tensor) -> Iterator[Computation]:
        cell = self._cell
        of_weight_ih, of_weight_hh, _, _ = self.of_parameters
        for total, names, factor in (
            (of_weight_ih, cell.of_sums, inputs),
            (of_weight_hh, cell.of_states, self._before),
        ):
            for rows, name in zip(total.chunk(cell.gates), names, strict=True):
                yield multiply_transposed(self._flat(name), factor.flatten(0, 1), rows)

    def _each(self, names: Sequence[str], order: Sequence[int]) -> Mapping[str, Tensor]:
        """The parts of tensors that belong to single steps."""
        return {f"{name}.{step}": self._tensors[name][place] for step, place in enumerate(order) for name in names}

    def _flat(self, name: str) -> Tensor:
        return self._tensors[name].flatten(0, 1)


def _number(name: str, tensors: Sequence[Tensor]) -> Mapping[str, Tensor]:
    return {f"{name}{number}": tensor for number, tensor in enumerate(tensors)}
