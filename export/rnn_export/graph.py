"""The ONNX graph of a model, node by node, from raw pixels to probabilities.

Built with onnx's own helpers rather than by tracing: tracing gives neither the `Gemm` with a fused addend
that is fastest for the vanilla RNN nor names that mean something to whoever opens the file in a viewer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rnn_runtime.model_spec import ModelSpec

# The oldest that has every operator used here in its current form, so that old runtimes load the file too:
# onnxruntime reads opset 17 and IR version 8 since 1.13 (onnxruntime's docs, "ONNX Runtime compatibility").
OPSET = 17
IR_VERSION = 8

Weights = Mapping[str, NDArray[np.float32]]


def build_model(spec: ModelSpec, weights: Weights) -> onnx.ModelProto:
    """Build the ONNX model of a classifier, without metadata.

    Args:
        spec: The model's description.
        weights: float32 arrays under the names and in the shapes of `ImageRNN.state_dict()`.

    Returns:
        A model with input `images`, uint8 `(batch, height, width, channels)`, and outputs `logits` and
        `probabilities`, float32 `(batch, classes)`. `batch` is the one dynamic axis.
    """
    graph = _Graph()
    pixels = _add_preprocessing(graph, spec)
    add_rnn = _add_unrolled_rnn if graph_form(spec) == "unrolled Gemm" else _add_rnn_operators
    hidden = add_rnn(graph, spec, weights, pixels)
    graph.constant("linear.weight", weights["linear.weight"].T)
    graph.constant("linear.bias", weights["linear.bias"])
    graph.node("Gemm", [hidden, "linear.weight", "linear.bias"], "logits")
    graph.node("Softmax", ["logits"], "probabilities", axis=1)

    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *spec.image.shape])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(spec.class_names)])
        for name in ("logits", "probabilities")
    ]
    return helper.make_model(
        helper.make_graph(graph.nodes, "image_rnn", [images], outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rnn-onnx",
    )


def graph_form(spec: ModelSpec) -> str:
    """How the recurrent net is written: `unrolled Gemm` for the vanilla RNN, else the operator's name.

    onnxruntime's `RNN` kernel is slow in batches, its `GRU` and `LSTM` kernels are tuned: docs/design.md
    has the figures.
    """
    return "unrolled Gemm" if spec.cell == "rnn" else f"{spec.cell.upper()} operator"


class _Graph:
    """Nodes and constants in the making. A node is named for its first output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def nodes_out(self, operator: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        name = next(filter(None, outputs))
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.float32) -> str:
        array = np.ascontiguousarray(value, dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


def _add_preprocessing(graph: _Graph, spec: ModelSpec) -> str:
    """From `images` to `pixels`, float32 `(height, batch, width * channels)`: time steps first."""
    # Height, width and channels lie side by side in memory, so a row's features need no moving,
    # and the transposition to time-major moves bytes, a quarter of what floats would be.
    graph.constant("preprocessing.rows_shape", [0, spec.image.height, spec.input_size], np.int64)
    graph.node("Reshape", ["images", "preprocessing.rows_shape"], "preprocessing.rows")
    graph.node("Transpose", ["preprocessing.rows"], "preprocessing.steps", perm=[1, 0, 2])
    graph.node("Cast", ["preprocessing.steps"], "preprocessing.float", to=TensorProto.FLOAT)
    graph.constant("preprocessing.max", 255)
    normalized = set(spec.mean) != {0.0} or set(spec.std) != {1.0}
    scaled = "preprocessing.scaled" if normalized else "pixels"
    graph.node("Div", ["preprocessing.float", "preprocessing.max"], scaled)
    if normalized:
        # one value a channel; a row repeats its channels width times
        graph.constant("preprocessing.mean", np.tile(spec.mean, spec.image.width))
        graph.constant("preprocessing.std", np.tile(spec.std, spec.image.width))
        graph.node("Sub", [scaled, "preprocessing.mean"], "preprocessing.centered")
        graph.node("Div", ["preprocessing.centered", "preprocessing.std"], "pixels")
    return "pixels"


def _add_unrolled_rnn(graph: _Graph, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """A vanilla RNN, every step on its own: `hidden = f(x W + b + previous R)` in two `Gemm` and `f`.

    The second `Gemm` takes the first's result as its addend, so no separate addition remains.
    """
    # Split off a two-dimensional array, steps need no squeezing.
    graph.constant("pixels.rows_shape", [-1, spec.input_size], np.int64)
    graph.node("Reshape", [pixels, "pixels.rows_shape"], "pixels.rows")  # (height * batch, width * channels)
    steps = graph.nodes_out("Split", ["pixels.rows"], [f"pixels.step_{t}" for t in range(spec.image.height)], axis=0)
    for layer in range(spec.num_layers):
        directions = [
            _add_direction(graph, spec, weights, steps, layer, reverse) for reverse in range(spec.num_directions)
        ]
        if layer == spec.num_layers - 1:
            # Each direction's last step: the bottom row reading down, the top row reading up.
            ends = [directions[0][-1], *(backward[0] for backward in directions[1:])]
            return _concatenate(graph, ends, "rnn.hidden")
        steps = [
            _concatenate(graph, list(pair), f"rnn.{layer}.step_{t}.both")
            for t, pair in enumerate(zip(*directions, strict=True))
        ]
    raise AssertionError("a net has at least one layer")


def _add_direction(
    graph: _Graph, spec: ModelSpec, weights: Weights, steps: list[str], layer: int, reverse: int
) -> list[str]:
    """One direction of one layer; the hidden state of each step, in the order of the rows."""
    suffix = "_reverse" if reverse else ""
    name = f"rnn.{layer}.reverse" if reverse else f"rnn.{layer}"
    weight = graph.constant(f"{name}.weight_input", weights[f"rnn.weight_ih_l{layer}{suffix}"].T)
    recurrence = graph.constant(f"{name}.weight_hidden", weights[f"rnn.weight_hh_l{layer}{suffix}"].T)
    bias = graph.constant(
        f"{name}.bias", weights[f"rnn.bias_ih_l{layer}{suffix}"] + weights[f"rnn.bias_hh_l{layer}{suffix}"]
    )
    activation = {"tanh": "Tanh", "relu": "Relu"}[spec.nonlinearity]
    hidden: dict[int, str] = {}
    previous = None
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        at = f"{name}.step_{t}"
        total = graph.node("Gemm", [steps[t], weight, bias], f"{at}.input")
        if previous is not None:  # the first step starts from a zero state
            total = graph.node("Gemm", [previous, recurrence, total], f"{at}.sum")
        previous = hidden[t] = graph.node(activation, [total], f"{at}.hidden")
    return [hidden[t] for t in range(len(steps))]


def _concatenate(graph: _Graph, directions: list[str], name: str) -> str:
    return directions[0] if len(directions) == 1 else graph.node("Concat", directions, name, axis=1)


# PyTorch stacks an LSTM's gates as input, forget, cell, output and a GRU's as reset, update, new;
# ONNX wants input, output, forget, cell and update, reset, hidden (onnx/docs/Operators.md#LSTM, #GRU).
_GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def _add_rnn_operators(graph: _Graph, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """A GRU or LSTM as ONNX's operator of that name, one node a layer."""
    directions, hidden_size = spec.num_directions, spec.hidden_size
    attributes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "direction": "bidirectional" if spec.bidirectional else "forward",
    }
    if spec.cell == "gru":
        # PyTorch multiplies by the reset gate after the matrix product, bias included.
        attributes["linear_before_reset"] = 1
    graph.constant("rnn.merged_shape", [0, 0, directions * hidden_size], np.int64)
    steps = pixels
    for layer in range(spec.num_layers):
        inputs = [steps, *_operator_weights(graph, spec, weights, layer)]
        if layer == spec.num_layers - 1:
            last = f"rnn.{layer}.last_hidden"  # (directions, batch, hidden_size)
            graph.nodes_out(spec.cell.upper(), inputs, ["", last], **attributes)
            graph.node("Transpose", [last], "rnn.last_hidden", perm=[1, 0, 2])
            graph.constant("rnn.hidden_shape", [0, directions * hidden_size], np.int64)
            return graph.node("Reshape", ["rnn.last_hidden", "rnn.hidden_shape"], "rnn.hidden")
        # (height, directions, batch, hidden_size) -> (height, batch, directions * hidden_size)
        graph.node(spec.cell.upper(), inputs, f"rnn.{layer}.directions", **attributes)
        graph.node("Transpose", [f"rnn.{layer}.directions"], f"rnn.{layer}.both", perm=[0, 2, 1, 3])
        steps = graph.node("Reshape", [f"rnn.{layer}.both", "rnn.merged_shape"], f"rnn.{layer}.hidden")
    raise AssertionError("a net has at least one layer")


def _operator_weights(graph: _Graph, spec: ModelSpec, weights: Weights, layer: int) -> list[str]:
    """W, R and B of a layer: directions stacked, gates in ONNX's order, both biases side by side."""
    suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: spec.num_directions]

    def stacked(kind: str) -> list[NDArray[np.float32]]:
        order = _GATE_ORDER[spec.cell]
        gates = [np.split(weights[f"rnn.{kind}{suffix}"], len(order)) for suffix in suffixes]
        return [np.concatenate([gate[i] for i in order]) for gate in gates]

    biases = [np.concatenate(pair) for pair in zip(stacked("bias_ih"), stacked("bias_hh"), strict=True)]
    return [
        graph.constant(f"rnn.{layer}.weight_input", stacked("weight_ih")),
        graph.constant(f"rnn.{layer}.weight_hidden", stacked("weight_hh")),
        graph.constant(f"rnn.{layer}.bias", biases),
    ]
