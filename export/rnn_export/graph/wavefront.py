"""A vanilla RNN in as few nodes as possible, for GPUs, where each node costs a launch."""

import numpy as np
from numpy.typing import NDArray

from rnn_export.graph.builder import ACTIVATIONS, Weights
from rnn_export.graph.steps import Rows, group_sizes, group_steps, multiply_steps
from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder

Matrix = NDArray[np.float32]


def add_wavefront_rnn(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Add a vanilla RNN with two nodes per step for all layers or directions; return the name of its output."""
    if spec.bidirectional:
        return _add_layers_of_both_directions(builder, spec, weights, pixels)
    return _add_waves(builder, spec, weights, pixels)


def _add_waves(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """All layers at once, each a step behind the layer below it.

    In wave s, layer l takes step s - l. Its input, layer l - 1 at that step, and its own previous state are both from
    wave s - 1. So with S, the states of all layers side by side, a wave is `S = f(S M + C)`. M has the recurrent
    weights on its block diagonal and the input weights above it; C is the first layer's product with its row, and the
    biases. A layer that hasn't begun is set to zero. After the last row, lower layers go on with no meaning: none of it
    reaches the last layer's last step.
    """
    height, hidden, layers = spec.image_spec.height, spec.hidden_size, spec.num_layers
    matrix, bias = _all_layers(spec, weights)
    first = np.zeros((spec.input_size, layers * hidden), np.float32)
    first[:, :hidden] = weights["rnn.weight_ih_l0"].T
    builder.constant("rnn.weight_first", first)
    builder.constant("rnn.bias", bias)
    rows = group_steps(builder, pixels, height, spec.input_size, "pixels")
    addends = multiply_steps(builder, rows, "rnn.weight_first", "rnn.bias", "rnn")
    waves = height + layers - 1
    if waves > 1:
        builder.constant("rnn.weight", matrix)
    state = ""
    for wave in range(waves):
        if wave == 0:
            total = addends[0]
        elif wave == waves - 1 and layers > 1:  # of which only the last layer counts
            builder.constant("rnn.weight_last", matrix[:, -hidden:])
            builder.constant("rnn.bias_last", bias[-hidden:])
            total = builder.node("Gemm", [state, "rnn.weight_last", "rnn.bias_last"], "rnn.last_sum")
        else:
            addend = addends[wave] if wave < height else "rnn.bias"
            total = builder.node("Gemm", [state, "rnn.weight", addend], f"rnn.wave_{wave}.sum")
        state = builder.node(ACTIVATIONS[spec.nonlinearity], [total], f"rnn.wave_{wave}.states")
        if wave < layers - 1:
            begun = np.repeat(np.arange(layers) <= wave, hidden).astype(np.float32)
            builder.constant(f"rnn.wave_{wave}.begun", begun)
            state = builder.node("Mul", [state, f"rnn.wave_{wave}.begun"], f"rnn.wave_{wave}.begun_states")
    return state


def _all_layers(spec: ModelSpec, weights: Weights) -> tuple[Matrix, Matrix]:
    """The matrix between two waves, `(layers * hidden_size, layers * hidden_size)`, and the biases side by side."""
    hidden = spec.hidden_size
    matrix = np.zeros((spec.num_layers * hidden,) * 2, np.float32)
    biases = []
    for layer in range(spec.num_layers):
        columns = slice(layer * hidden, (layer + 1) * hidden)
        matrix[columns, columns] = weights[f"rnn.weight_hh_l{layer}"].T
        if layer:
            matrix[(layer - 1) * hidden : layer * hidden, columns] = weights[f"rnn.weight_ih_l{layer}"].T
        biases.append(weights[f"rnn.bias_ih_l{layer}"] + weights[f"rnn.bias_hh_l{layer}"])
    return matrix, np.concatenate(biases)


def _add_layers_of_both_directions(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Layer by layer, both directions at once: a layer needs the whole of the one below.

    In step s, one direction takes row s, and the other takes row T - 1 - s of T. Their states side by side are
    `S = f(S M + C)`, with both recurrent weights on the diagonal of M. C comes from rows s and T - 1 - s side by side.
    """
    height, states = spec.image_spec.height, [""]
    rows = _pair_rows(builder, spec, pixels)
    for layer in range(spec.num_layers):
        name = f"rnn.{layer}"
        _add_weights_of_both_directions(builder, spec, weights, layer)
        if layer:
            rows = _pair_states(builder, states, f"{name}.pairs")
        addends = multiply_steps(builder, rows, f"{name}.weight_input", f"{name}.bias", name)
        states = []
        for t in range(height):
            total = addends[t]
            if t:
                total = builder.node("Gemm", [states[-1], f"{name}.weight_hidden", total], f"{name}.step_{t}.sum")
            states.append(builder.node(ACTIVATIONS[spec.nonlinearity], [total], f"{name}.step_{t}.states"))
    return states[-1]  # each direction's last step


def _pair_rows(builder: GraphBuilder, spec: ModelSpec, pixels: str) -> list[Rows]:
    """Each row of the image beside the one that is as far from the other end."""
    ends = {"start": -1, "end": np.iinfo(np.int64).min + 1, "axis": 0, "stride": -1}
    for end, value in ends.items():
        builder.constant(f"pixels.reversed_{end}", [value], np.int64)
    builder.node("Slice", [pixels, *(f"pixels.reversed_{end}" for end in ends)], "pixels.reversed")
    builder.node("Concat", [pixels, "pixels.reversed"], "pixels.pairs", axis=2)
    return group_steps(builder, "pixels.pairs", spec.image_spec.height, 2 * spec.input_size, "pixels.pairs")


def _pair_states(builder: GraphBuilder, states: list[str], name: str) -> list[Rows]:
    """Each step's states beside those of the step that is as far from the other end."""
    groups, start = [], 0
    for i, size in enumerate(group_sizes(len(states))):
        sides = states[start : start + size], states[::-1][start : start + size]
        names = [f"{name}.group_{i}.first", f"{name}.group_{i}.second"]
        if size > 1:
            for side, rows in zip(sides, names, strict=True):
                builder.node("Concat", side, rows, axis=0)
        else:
            names = [side[0] for side in sides]
        groups.append(Rows(builder.node("Concat", names, f"{name}.group_{i}.rows", axis=1), size))
        start += size
    return groups


def _add_weights_of_both_directions(builder: GraphBuilder, spec: ModelSpec, weights: Weights, layer: int) -> None:
    hidden, name = spec.hidden_size, f"rnn.{layer}"
    suffixes = (f"_l{layer}", f"_l{layer}_reverse")
    down, up = (weights[f"rnn.weight_ih{suffix}"].T for suffix in suffixes)
    zeros = np.zeros_like
    if layer == 0:  # a pair is row s, row T - 1 - s
        inputs = [[down, zeros(up)], [zeros(down), up]]
    else:
        # A pair is down(s), up(T - 1 - s), down(T - 1 - s), up(s), where down(s) is the lower layer's state that has
        # read rows 0 to s, and up(s) the one that has read rows T - 1 to s. Row s is down(s), up(s).
        (down_of_down, down_of_up), (up_of_down, up_of_up) = np.split(down, 2), np.split(up, 2)
        inputs = [
            [down_of_down, zeros(up_of_down)],
            [zeros(down_of_up), up_of_up],
            [zeros(down_of_down), up_of_down],
            [down_of_up, zeros(up_of_up)],
        ]
    builder.constant(f"{name}.weight_input", np.block(inputs))
    recurrent = [weights[f"rnn.weight_hh{suffix}"].T for suffix in suffixes]
    none = np.zeros((hidden, hidden), np.float32)
    builder.constant(f"{name}.weight_hidden", np.block([[recurrent[0], none], [none, recurrent[1]]]))
    biases = [weights[f"rnn.bias_ih{suffix}"] + weights[f"rnn.bias_hh{suffix}"] for suffix in suffixes]
    builder.constant(f"{name}.bias", np.concatenate(biases))
