"""The recurrent net of a model as nodes of a graph, in four forms.

- `add_rnn_operators`: ONNX's own `RNN`, `GRU` and `LSTM`.
- `add_unrolled_rnn`: a vanilla RNN as a few nodes per row of the image.
- `add_scanned_rnn`: a vanilla RNN as a loop over the rows.
- `add_wavefront_rnn`: a vanilla RNN in as few nodes as possible, for GPUs, where each node costs a launch.

Each adds the net to a builder, from `pixels`, `(height, batch, input_size)`, and returns the name of its output,
`(batch, hidden_size * directions)`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder

Weights = Mapping[str, NDArray[np.float32]]
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}
_Matrix = NDArray[np.float32]


def _directions_of(spec: ModelSpec, layer: int) -> list[tuple[str, str]]:
    """For each direction of a layer: its name in the graph, and the suffix of PyTorch's weights."""
    both = [(f"rnn.{layer}", f"_l{layer}"), (f"rnn.{layer}.reverse", f"_l{layer}_reverse")]
    return both[: spec.num_directions]


def _gemm_weights(builder: GraphBuilder, weights: Weights, name: str, suffix: str) -> tuple[str, str, str]:
    """Weight, recurrent weight and bias (the sum of PyTorch's two) of one direction, in the layout of `Gemm`."""
    return (
        builder.constant(f"{name}.weight_input", weights[f"rnn.weight_ih{suffix}"].T),
        builder.constant(f"{name}.weight_hidden", weights[f"rnn.weight_hh{suffix}"].T),
        builder.constant(f"{name}.bias", weights[f"rnn.bias_ih{suffix}"] + weights[f"rnn.bias_hh{suffix}"]),
    )


def _concatenate(builder: GraphBuilder, directions: list[str], name: str, axis: int = 1) -> str:
    """Concatenate the directions, if there are two."""
    return directions[0] if len(directions) == 1 else builder.node("Concat", directions, name, axis=axis)


# PyTorch stacks an LSTM's gates as input, forget, cell, output and a GRU's as reset, update, new; ONNX as input,
# output, forget, cell and update, reset, hidden (onnx/docs/Operators.md#LSTM, #GRU).
_GATE_ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def add_rnn_operators(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Add the net as ONNX's operator `RNN`, `GRU` or `LSTM`, one node per layer; return the name of its output."""
    directions, hidden_size = spec.num_directions, spec.hidden_size
    attributes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "direction": "bidirectional" if spec.bidirectional else "forward",
    }
    if spec.cell == "rnn":
        attributes["activations"] = [_ACTIVATIONS[spec.nonlinearity]] * directions
    if spec.cell == "gru":
        # PyTorch applies the reset gate after the matrix product and its bias.
        attributes["linear_before_reset"] = 1
    builder.constant("rnn.merged_shape", [0, 0, directions * hidden_size], np.int64)
    steps = pixels
    for layer in range(spec.num_layers):
        inputs = [steps, *_operator_weights(builder, spec, weights, layer)]
        if layer == spec.num_layers - 1:
            last = f"rnn.{layer}.last_hidden"  # (directions, batch, hidden_size)
            builder.nodes_out(spec.cell.upper(), inputs, ["", last], **attributes)
            builder.node("Transpose", [last], "rnn.last_hidden", perm=[1, 0, 2])
            builder.constant("rnn.hidden_shape", [0, directions * hidden_size], np.int64)
            return builder.node("Reshape", ["rnn.last_hidden", "rnn.hidden_shape"], "rnn.hidden")
        # (height, directions, batch, hidden_size) -> (height, batch, directions * hidden_size)
        builder.node(spec.cell.upper(), inputs, f"rnn.{layer}.directions", **attributes)
        builder.node("Transpose", [f"rnn.{layer}.directions"], f"rnn.{layer}.both", perm=[0, 2, 1, 3])
        steps = builder.node("Reshape", [f"rnn.{layer}.both", "rnn.merged_shape"], f"rnn.{layer}.hidden")
    raise AssertionError("a net has at least one layer")


def _operator_weights(builder: GraphBuilder, spec: ModelSpec, weights: Weights, layer: int) -> list[str]:
    """W, R and B of a layer: directions stacked, gates in ONNX's order, both biases concatenated."""
    suffixes = [suffix for _, suffix in _directions_of(spec, layer)]

    def stacked(kind: str) -> list[NDArray[np.float32]]:
        order = _GATE_ORDER[spec.cell]
        gates = [np.split(weights[f"rnn.{kind}{suffix}"], len(order)) for suffix in suffixes]
        return [np.concatenate([gate[i] for i in order]) for gate in gates]

    biases = [np.concatenate(pair) for pair in zip(stacked("bias_ih"), stacked("bias_hh"), strict=True)]
    return [
        builder.constant(f"rnn.{layer}.weight_input", stacked("weight_ih")),
        builder.constant(f"rnn.{layer}.weight_hidden", stacked("weight_hh")),
        builder.constant(f"rnn.{layer}.bias", biases),
    ]


# Of a Split or Concat. CUDA's kernels get the addresses of up to 32 parts with their launch, if the parts are of equal
# size. Otherwise, addresses and sizes are copied from host memory that onnxruntime frees after the run, and a CUDA
# graph that is replayed would read whatever is there by then (split.cc and concat.cc in onnxruntime's
# core/providers/cuda/tensor; github.com/microsoft/onnxruntime/pull/32120 is the same in another kernel). `Slice` gets
# all it needs with its launch.
_MOST_PARTS = 32


class _Rows(NamedTuple):
    """Neighbouring steps in one array `(steps * batch, features)`."""

    name: str
    steps: int


def _group_sizes(steps: int, most: int = _MOST_PARTS) -> list[int]:
    """Sizes of groups of at most so many steps, as equal as possible."""
    groups = -(-steps // most)
    return [steps // groups + (i < steps % groups) for i in range(groups)]


def _group_steps(
    builder: GraphBuilder, array: str, steps: int, features: int, name: str, most: int = _MOST_PARTS
) -> list[_Rows]:
    """Divide `(steps, batch, features)` into groups of at most so many steps, as two-dimensional arrays.

    Split from a two-dimensional array, the steps need no squeezing.
    """
    builder.constant(f"{name}.rows_shape", [-1, features], np.int64)
    sizes = _group_sizes(steps, most)
    if len(set(sizes)) == 1 and len(sizes) <= _MOST_PARTS:
        rows = builder.node("Reshape", [array, f"{name}.rows_shape"], f"{name}.rows")
        groups = [f"{name}.group_{i}" for i in range(len(sizes))]
        if len(groups) == 1:
            return [_Rows(rows, steps)]
        return [_Rows(group, sizes[0]) for group in builder.nodes_out("Split", [rows], groups, axis=0)]
    builder.constant(f"{name}.group_axis", [0], np.int64)
    parts, start = [], 0
    for i, size in enumerate(sizes):
        group = f"{name}.group_{i}"
        builder.constant(f"{group}.start", [start], np.int64)
        builder.constant(f"{group}.end", [start + size], np.int64)
        builder.node("Slice", [array, f"{group}.start", f"{group}.end", f"{name}.group_axis"], group)
        parts.append(_Rows(builder.node("Reshape", [group, f"{name}.rows_shape"], f"{group}.rows"), size))
        start += size
    return parts


def _multiply_steps(builder: GraphBuilder, groups: list[_Rows], weight: str, bias: str, name: str) -> list[str]:
    """`step * weight + bias` for all steps, in one `Gemm` per group; the names of the products, one per step."""
    products: list[str] = []
    for i, rows in enumerate(groups):
        names = [f"{name}.step_{t}.input" for t in range(len(products), len(products) + rows.steps)]
        if rows.steps == 1:
            builder.node("Gemm", [rows.name, weight, bias], names[0])
        else:
            whole = f"{name}.input" if len(groups) == 1 else f"{name}.group_{i}.input"
            builder.node("Gemm", [rows.name, weight, bias], whole)
            builder.nodes_out("Split", [whole], names, axis=0)
        products += names
    return products


# Steps of the first layer whose products with the pixels are one node. Of more, the products leave the core's cache
# before they are used; of fewer, single images take longer (docs/explanation/measurements.md).
_MOST_STEPS_TOGETHER = 8


def add_unrolled_rnn(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Add a vanilla RNN with nodes for every step; return the name of its output.

    A step is `hidden = f(x W + b + previous R)`, in two `Gemm` and the activation `f`. The second `Gemm` takes the
    result of the first as its addend, which saves an addition. In the first layer, whose inputs are all known, the
    products of neighbouring steps are one `Gemm`.
    """
    rows = _group_steps(builder, pixels, spec.image_spec.height, spec.input_size, "pixels", _MOST_STEPS_TOGETHER)
    steps: list[str] = []
    for layer in range(spec.num_layers):
        directions = []
        for name, suffix in _directions_of(spec, layer):
            weight, recurrence, bias = _gemm_weights(builder, weights, name, suffix)
            if layer == 0:
                inputs = _multiply_steps(builder, rows, weight, bias, name)
            else:
                inputs = [
                    builder.node("Gemm", [step, weight, bias], f"{name}.step_{t}.input") for t, step in enumerate(steps)
                ]
            directions.append(_add_steps(builder, spec, inputs, recurrence, name, suffix.endswith("reverse")))
        if layer == spec.num_layers - 1:
            # Each direction's last step: the bottom row when reading down, the top row when reading up.
            ends = [directions[0][-1], *(backward[0] for backward in directions[1:])]
            return _concatenate(builder, ends, "rnn.hidden")
        steps = [
            _concatenate(builder, list(pair), f"rnn.{layer}.step_{t}.both")
            for t, pair in enumerate(zip(*directions, strict=True))
        ]
    raise AssertionError("a net has at least one layer")


def _add_steps(
    builder: GraphBuilder, spec: ModelSpec, inputs: list[str], recurrence: str, name: str, upwards: bool
) -> list[str]:
    """Add one direction of a layer; return the hidden state of each step, in the order of the rows."""
    hidden: dict[int, str] = {}
    previous = None
    for t in reversed(range(len(inputs))) if upwards else range(len(inputs)):
        total = inputs[t]
        if previous is not None:  # the first step starts from a zero state
            total = builder.node("Gemm", [previous, recurrence, total], f"{name}.step_{t}.sum")
        previous = hidden[t] = builder.node(_ACTIVATIONS[spec.nonlinearity], [total], f"{name}.step_{t}.hidden")
    return [hidden[t] for t in range(len(inputs))]


def add_scanned_rnn(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Add a vanilla RNN as one `Scan` per layer; return the name of its output.

    The body is one step of each direction, in the same two `Gemm` and activation as when unrolled.
    """
    _add_zero_state(builder, spec, pixels)
    sequence, features = pixels, spec.input_size
    for layer in range(spec.num_layers):
        last = layer == spec.num_layers - 1
        names = [name for name, _ in _directions_of(spec, layer)]
        body = _scan_body(builder, spec, weights, layer, features, last)
        upwards = [int(suffix.endswith("reverse")) for _, suffix in _directions_of(spec, layer)]
        states = [f"{name}.last_hidden" for name in names]
        outputs = [] if last else [f"{name}.hidden" for name in names]
        builder.nodes_out(
            "Scan",
            [*["rnn.zero"] * len(names), *[sequence] * len(names)],
            [*states, *outputs],
            body=body,
            num_scan_inputs=len(names),
            scan_input_directions=upwards,
            **({} if last else {"scan_output_directions": upwards}),
        )
        if last:
            return _concatenate(builder, states, "rnn.hidden")
        sequence = _concatenate(builder, outputs, f"rnn.{layer}.both", axis=2)
        features = spec.hidden_size * spec.num_directions
    raise AssertionError("a net has at least one layer")


def _add_zero_state(builder: GraphBuilder, spec: ModelSpec, pixels: str) -> None:
    """The first state, `rnn.zero`, `(batch, hidden_size)`: the first pixel of each image, times zeros.

    Computed from the shape of the batch, it would be computed on the CPU, even in a session on CUDA.
    """
    for name, value in (("start", 0), ("end", 1)):
        builder.constant(f"rnn.first_{name}", [value, value], np.int64)
    builder.constant("rnn.first_axes", [0, 2], np.int64)
    builder.node("Slice", [pixels, "rnn.first_start", "rnn.first_end", "rnn.first_axes"], "rnn.first_pixels")
    builder.constant("rnn.column_shape", [-1, 1], np.int64)
    builder.node("Reshape", ["rnn.first_pixels", "rnn.column_shape"], "rnn.first_column")
    builder.constant("rnn.zeros", np.zeros((1, spec.hidden_size)))
    builder.node("Mul", ["rnn.first_column", "rnn.zeros"], "rnn.zero")


def _scan_body(
    builder: GraphBuilder, spec: ModelSpec, weights: Weights, layer: int, features: int, last: bool
) -> onnx.GraphProto:
    def value(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, builder.float_type, ["batch", size])

    step = GraphBuilder(builder.float)
    states, rows, hidden, copies = [], [], [], []
    for name, suffix in _directions_of(spec, layer):
        weight, recurrence, bias = _gemm_weights(builder, weights, name, suffix)
        step.node("Gemm", [f"{name}.row", weight, bias], f"{name}.step.input")
        step.node("Gemm", [f"{name}.previous", recurrence, f"{name}.step.input"], f"{name}.step.sum")
        step.node(_ACTIVATIONS[spec.nonlinearity], [f"{name}.step.sum"], f"{name}.step.hidden")
        if not last:  # a step's state and its output need different names
            step.node("Identity", [f"{name}.step.hidden"], f"{name}.step.output")
            copies.append(value(f"{name}.step.output", spec.hidden_size))
        states.append(value(f"{name}.previous", spec.hidden_size))
        rows.append(value(f"{name}.row", features))
        hidden.append(value(f"{name}.step.hidden", spec.hidden_size))
    return helper.make_graph(step.nodes, f"rnn.{layer}.step", [*states, *rows], [*hidden, *copies])


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
    rows = _group_steps(builder, pixels, height, spec.input_size, "pixels")
    addends = _multiply_steps(builder, rows, "rnn.weight_first", "rnn.bias", "rnn")
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
        state = builder.node(_ACTIVATIONS[spec.nonlinearity], [total], f"rnn.wave_{wave}.states")
        if wave < layers - 1:
            begun = np.repeat(np.arange(layers) <= wave, hidden).astype(np.float32)
            builder.constant(f"rnn.wave_{wave}.begun", begun)
            state = builder.node("Mul", [state, f"rnn.wave_{wave}.begun"], f"rnn.wave_{wave}.begun_states")
    return state


def _all_layers(spec: ModelSpec, weights: Weights) -> tuple[_Matrix, _Matrix]:
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
        addends = _multiply_steps(builder, rows, f"{name}.weight_input", f"{name}.bias", name)
        states = []
        for t in range(height):
            total = addends[t]
            if t:
                total = builder.node("Gemm", [states[-1], f"{name}.weight_hidden", total], f"{name}.step_{t}.sum")
            states.append(builder.node(_ACTIVATIONS[spec.nonlinearity], [total], f"{name}.step_{t}.states"))
    return states[-1]  # each direction's last step


def _pair_rows(builder: GraphBuilder, spec: ModelSpec, pixels: str) -> list[_Rows]:
    """Each row of the image beside the one that is as far from the other end."""
    ends = {"start": -1, "end": np.iinfo(np.int64).min + 1, "axis": 0, "stride": -1}
    for end, value in ends.items():
        builder.constant(f"pixels.reversed_{end}", [value], np.int64)
    builder.node("Slice", [pixels, *(f"pixels.reversed_{end}" for end in ends)], "pixels.reversed")
    builder.node("Concat", [pixels, "pixels.reversed"], "pixels.pairs", axis=2)
    return _group_steps(builder, "pixels.pairs", spec.image_spec.height, 2 * spec.input_size, "pixels.pairs")


def _pair_states(builder: GraphBuilder, states: list[str], name: str) -> list[_Rows]:
    """Each step's states beside those of the step that is as far from the other end."""
    groups, start = [], 0
    for i, size in enumerate(_group_sizes(len(states))):
        sides = states[start : start + size], states[::-1][start : start + size]
        names = [f"{name}.group_{i}.first", f"{name}.group_{i}.second"]
        if size > 1:
            for side, rows in zip(sides, names, strict=True):
                builder.node("Concat", side, rows, axis=0)
        else:
            names = [side[0] for side in sides]
        groups.append(_Rows(builder.node("Concat", names, f"{name}.group_{i}.rows", axis=1), size))
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
