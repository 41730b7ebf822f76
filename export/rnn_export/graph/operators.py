"""The recurrent net as ONNX's own operators `RNN`, `GRU` and `LSTM`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_export.graph.builder import ACTIVATIONS, Weights, directions_of
from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder

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
        attributes["activations"] = [ACTIVATIONS[spec.nonlinearity]] * directions
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
    suffixes = [suffix for _, suffix in directions_of(spec, layer)]

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
