"""A vanilla RNN as a loop over the rows of the image."""

import numpy as np
import onnx
from onnx import helper

from rnn_export.graph.builder import ACTIVATIONS, Weights, concatenate, directions_of, gemm_weights
from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder


def add_scanned_rnn(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Add a vanilla RNN as one `Scan` per layer; return the name of its output.

    The body is one step of each direction, in the same two `Gemm` and activation as when unrolled.
    """
    _add_zero_state(builder, spec, pixels)
    sequence, features = pixels, spec.input_size
    for layer in range(spec.num_layers):
        last = layer == spec.num_layers - 1
        names = [name for name, _ in directions_of(spec, layer)]
        body = _scan_body(builder, spec, weights, layer, features, last)
        upwards = [int(suffix.endswith("reverse")) for _, suffix in directions_of(spec, layer)]
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
            return concatenate(builder, states, "rnn.hidden")
        sequence = concatenate(builder, outputs, f"rnn.{layer}.both", axis=2)
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

    nodes, states, rows, hidden, copies = [], [], [], [], []
    for name, suffix in directions_of(spec, layer):
        weight, recurrence, bias = gemm_weights(builder, weights, name, suffix)
        for operator, inputs, output in (
            ("Gemm", [f"{name}.row", weight, bias], f"{name}.step.input"),
            ("Gemm", [f"{name}.previous", recurrence, f"{name}.step.input"], f"{name}.step.sum"),
            (ACTIVATIONS[spec.nonlinearity], [f"{name}.step.sum"], f"{name}.step.hidden"),
            # a step's state and its output need different names
            *([] if last else [("Identity", [f"{name}.step.hidden"], f"{name}.step.output")]),
        ):
            nodes.append(helper.make_node(operator, inputs, [output], name=output))
        states.append(value(f"{name}.previous", spec.hidden_size))
        rows.append(value(f"{name}.row", features))
        hidden.append(value(f"{name}.step.hidden", spec.hidden_size))
        copies.append(value(f"{name}.step.output", spec.hidden_size))
    return helper.make_graph(nodes, f"rnn.{layer}.step", [*states, *rows], [*hidden, *([] if last else copies)])
