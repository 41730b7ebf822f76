"""The ONNX graph of a model, node by node, from raw pixels to probabilities.

Built with onnx's own helpers rather than by tracing: tracing gives neither the `Gemm` with a fused addend
that is fastest for the vanilla RNN nor names that mean something to whoever opens the file in a viewer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rnn_runtime.errors import SettingsError
from rnn_runtime.model_spec import ModelSpec

# The oldest that has every operator used here in its current form, so that old runtimes load the file too:
# onnxruntime reads opset 17 and IR version 8 since 1.13 (onnxruntime's docs, "ONNX Runtime compatibility").
OPSET = 17
IR_VERSION = 8

Weights = Mapping[str, NDArray[np.float32]]
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


GraphForm = Literal["unrolled", "scan", "operator"]
GRAPH_FORMS: tuple[GraphForm, ...] = ("unrolled", "scan", "operator")
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
MAX_UNROLLED_ROWS = 128


def choose_form(spec: ModelSpec) -> GraphForm:
    """The form of graph that measured fastest (docs/design.md has the figures).

    onnxruntime's `RNN` kernel is slow in batches, its `GRU` and `LSTM` kernels are tuned. Steps that are unrolled
    are a little faster than a `Scan`, but the graph grows with the image's rows, and so does the time to open it.
    """
    if spec.cell != "rnn":
        return "operator"
    return "unrolled" if spec.image.height <= MAX_UNROLLED_ROWS else "scan"


def describe_form(spec: ModelSpec, form: GraphForm) -> str:
    """For people and metadata: `unrolled Gemm`, `Scan of Gemm`, `GRU operator`."""
    return {"unrolled": "unrolled Gemm", "scan": "Scan of Gemm", "operator": f"{spec.cell.upper()} operator"}[form]


def build_model(
    spec: ModelSpec, weights: Weights, form: GraphForm | None = None, precision: Precision = "fp32"
) -> onnx.ModelProto:
    """Build the ONNX model of a classifier, without metadata.

    Args:
        spec: The model's description.
        weights: float32 arrays under the names and in the shapes of `ImageRNN.state_dict()`.
        form: How the recurrent net is written: `unrolled` (a few nodes a row) or `scan` (a loop), both for the
            vanilla RNN only, or `operator` (ONNX's `RNN`, `GRU` or `LSTM`); None for `choose_form`'s.
        precision: What the net computes in: `fp32`; `fp16`, made for GPUs; or `int8`, for LSTMs on CPUs.
            Preprocessing, and what comes out, is float32 in any case.

    Returns:
        A model with input `images`, uint8 `(batch, height, width, channels)`, and outputs `logits` and
        `probabilities`, float32 `(batch, classes)`. `batch` is the one dynamic axis.

    Raises:
        SettingsError: the form or precision isn't for this cell, or a weight is too large for float16.
    """
    form = form or choose_form(spec)
    if spec.cell != "rnn" and form != "operator":
        raise SettingsError(f"the graph form {form} is for the cell rnn; a {spec.cell} is written as its operator")
    if precision == "int8" and spec.cell != "lstm":
        raise SettingsError(
            f"int8 is for the cell lstm: a {spec.cell} gains too little or loses too much by it; use --precision fp32"
        )
    graph = _Graph(precision)
    pixels = _add_preprocessing(graph, spec)
    add_rnn = {"unrolled": _add_unrolled_rnn, "scan": _add_scanned_rnn, "operator": _add_rnn_operators}[form]
    hidden = add_rnn(graph, spec, weights, pixels)
    graph.constant("linear.weight", weights["linear.weight"].T)
    graph.constant("linear.bias", weights["linear.bias"])
    if precision == "fp16":
        graph.node("Gemm", [hidden, "linear.weight", "linear.bias"], "logits.float16")
        graph.node("Cast", ["logits.float16"], "logits", to=TensorProto.FLOAT)
    else:
        graph.node("Gemm", [hidden, "linear.weight", "linear.bias"], "logits")
    graph.node("Softmax", ["logits"], "probabilities", axis=1)

    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *spec.image.shape])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(spec.class_names)])
        for name in ("logits", "probabilities")
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "image_rnn", [images], outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rnn-onnx",
    )
    if precision == "int8":
        from rnn_export.quantize import quantize  # other exports needn't wait for onnxruntime's tools

        return quantize(model)
    return model


class _Graph:
    """Nodes and constants in the making. A node is named for its first output."""

    def __init__(self, precision: Precision) -> None:
        self.float: type[np.generic] = np.float16 if precision == "fp16" else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def nodes_out(self, operator: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        name = next(filter(None, outputs))
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    @property
    def float_type(self) -> int:
        """ONNX's number for the type that the net computes in."""
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.float))

    def constant(self, name: str, value: object, dtype: type[np.generic] | None = None) -> str:
        with np.errstate(over="ignore"):  # looked at below
            array = np.ascontiguousarray(value, dtype or self.float)
        if self.float is np.float16 and not np.isfinite(array).all():
            raise SettingsError(f"{name} has a value beyond float16's largest, 65504; export it with --precision fp32")
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


def _add_preprocessing(graph: _Graph, spec: ModelSpec) -> str:
    """From `images` to `pixels`, `(height, batch, width * channels)`: time steps first."""
    # Height, width and channels lie side by side in memory, so a row's features need no moving,
    # and the transposition to time-major moves bytes, a quarter of what floats would be.
    graph.constant("preprocessing.rows_shape", [0, spec.image.height, spec.input_size], np.int64)
    graph.node("Reshape", ["images", "preprocessing.rows_shape"], "preprocessing.rows")
    graph.node("Transpose", ["preprocessing.rows"], "preprocessing.steps", perm=[1, 0, 2])
    graph.node("Cast", ["preprocessing.steps"], "preprocessing.float", to=TensorProto.FLOAT)
    graph.constant("preprocessing.max", 255, np.float32)
    normalized = set(spec.mean) != {0.0} or set(spec.std) != {1.0}
    last = "pixels" if graph.float is np.float32 else "preprocessing.normalized"
    scaled = "preprocessing.scaled" if normalized else last
    graph.node("Div", ["preprocessing.float", "preprocessing.max"], scaled)
    if normalized:
        # one value a channel; a row repeats its channels width times
        graph.constant("preprocessing.mean", np.tile(spec.mean, spec.image.width), np.float32)
        graph.constant("preprocessing.std", np.tile(spec.std, spec.image.width), np.float32)
        graph.node("Sub", [scaled, "preprocessing.mean"], "preprocessing.centered")
        graph.node("Div", ["preprocessing.centered", "preprocessing.std"], last)
    return "pixels" if last == "pixels" else graph.node("Cast", [last], "pixels", to=graph.float_type)


def _add_unrolled_rnn(graph: _Graph, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """A vanilla RNN, every step on its own: `hidden = f(x W + b + previous R)` in two `Gemm` and `f`.

    The second `Gemm` takes the first's result as its addend, so no separate addition remains. Of the first layer,
    whose inputs are there from the start, the first products of all steps are one `Gemm`.
    """
    # Split off a two-dimensional array, steps need no squeezing.
    graph.constant("pixels.rows_shape", [-1, spec.input_size], np.int64)
    rows = graph.node("Reshape", [pixels, "pixels.rows_shape"], "pixels.rows")  # (height * batch, width * channels)
    steps: list[str] = []
    for layer in range(spec.num_layers):
        directions = []
        for name, suffix in _directions(spec, layer):
            weight, recurrence, bias = _gemm_weights(graph, weights, name, suffix)
            if layer == 0:
                graph.node("Gemm", [rows, weight, bias], f"{name}.input")
                names = [f"{name}.step_{t}.input" for t in range(spec.image.height)]
                inputs = graph.nodes_out("Split", [f"{name}.input"], names, axis=0)
            else:
                inputs = [
                    graph.node("Gemm", [step, weight, bias], f"{name}.step_{t}.input") for t, step in enumerate(steps)
                ]
            directions.append(_add_steps(graph, spec, inputs, recurrence, name, suffix.endswith("reverse")))
        if layer == spec.num_layers - 1:
            # Each direction's last step: the bottom row reading down, the top row reading up.
            ends = [directions[0][-1], *(backward[0] for backward in directions[1:])]
            return _concatenate(graph, ends, "rnn.hidden")
        steps = [
            _concatenate(graph, list(pair), f"rnn.{layer}.step_{t}.both")
            for t, pair in enumerate(zip(*directions, strict=True))
        ]
    raise AssertionError("a net has at least one layer")


def _add_steps(
    graph: _Graph, spec: ModelSpec, inputs: list[str], recurrence: str, name: str, upwards: bool
) -> list[str]:
    """One direction of one layer; the hidden state of each step, in the order of the rows."""
    hidden: dict[int, str] = {}
    previous = None
    for t in reversed(range(len(inputs))) if upwards else range(len(inputs)):
        total = inputs[t]
        if previous is not None:  # the first step starts from a zero state
            total = graph.node("Gemm", [previous, recurrence, total], f"{name}.step_{t}.sum")
        previous = hidden[t] = graph.node(_ACTIVATIONS[spec.nonlinearity], [total], f"{name}.step_{t}.hidden")
    return [hidden[t] for t in range(len(inputs))]


def _add_scanned_rnn(graph: _Graph, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """A vanilla RNN as one `Scan` a layer, whose body is a step of each direction, in the same two `Gemm` and `f`."""
    graph.node("Shape", ["images"], "rnn.batch", start=0, end=1)
    graph.constant("rnn.hidden_size", [spec.hidden_size], np.int64)
    graph.node("Concat", ["rnn.batch", "rnn.hidden_size"], "rnn.state_shape", axis=0)
    zero = numpy_helper.from_array(np.zeros(1, graph.float))
    graph.node("ConstantOfShape", ["rnn.state_shape"], "rnn.zero", value=zero)
    sequence, features = pixels, spec.input_size
    for layer in range(spec.num_layers):
        last = layer == spec.num_layers - 1
        names = [name for name, _ in _directions(spec, layer)]
        body = _scan_body(graph, spec, weights, layer, features, last)
        upwards = [int(suffix.endswith("reverse")) for _, suffix in _directions(spec, layer)]
        states = [f"{name}.last_hidden" for name in names]
        outputs = [] if last else [f"{name}.hidden" for name in names]
        graph.nodes_out(
            "Scan",
            [*["rnn.zero"] * len(names), *[sequence] * len(names)],
            [*states, *outputs],
            body=body,
            num_scan_inputs=len(names),
            scan_input_directions=upwards,
            **({} if last else {"scan_output_directions": upwards}),
        )
        if last:
            return _concatenate(graph, states, "rnn.hidden")
        sequence = _concatenate(graph, outputs, f"rnn.{layer}.both", axis=2)
        features = spec.hidden_size * spec.num_directions
    raise AssertionError("a net has at least one layer")


def _scan_body(
    graph: _Graph, spec: ModelSpec, weights: Weights, layer: int, features: int, last: bool
) -> onnx.GraphProto:
    def value(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, graph.float_type, ["batch", size])

    nodes, states, rows, hidden, copies = [], [], [], [], []
    for name, suffix in _directions(spec, layer):
        weight, recurrence, bias = _gemm_weights(graph, weights, name, suffix)
        for operator, inputs, output in (
            ("Gemm", [f"{name}.row", weight, bias], f"{name}.step.input"),
            ("Gemm", [f"{name}.previous", recurrence, f"{name}.step.input"], f"{name}.step.sum"),
            (_ACTIVATIONS[spec.nonlinearity], [f"{name}.step.sum"], f"{name}.step.hidden"),
            # a state and an output of a step need names of their own
            *([] if last else [("Identity", [f"{name}.step.hidden"], f"{name}.step.output")]),
        ):
            nodes.append(helper.make_node(operator, inputs, [output], name=output))
        states.append(value(f"{name}.previous", spec.hidden_size))
        rows.append(value(f"{name}.row", features))
        hidden.append(value(f"{name}.step.hidden", spec.hidden_size))
        copies.append(value(f"{name}.step.output", spec.hidden_size))
    return helper.make_graph(nodes, f"rnn.{layer}.step", [*states, *rows], [*hidden, *([] if last else copies)])


def _directions(spec: ModelSpec, layer: int) -> list[tuple[str, str]]:
    """Of a layer's directions, the name in the graph and how the names of PyTorch's weights end."""
    both = [(f"rnn.{layer}", f"_l{layer}"), (f"rnn.{layer}.reverse", f"_l{layer}_reverse")]
    return both[: spec.num_directions]


def _gemm_weights(graph: _Graph, weights: Weights, name: str, suffix: str) -> tuple[str, str, str]:
    """Weight, recurrent weight and bias (the sum of PyTorch's two) of one direction, as `Gemm` takes them."""
    return (
        graph.constant(f"{name}.weight_input", weights[f"rnn.weight_ih{suffix}"].T),
        graph.constant(f"{name}.weight_hidden", weights[f"rnn.weight_hh{suffix}"].T),
        graph.constant(f"{name}.bias", weights[f"rnn.bias_ih{suffix}"] + weights[f"rnn.bias_hh{suffix}"]),
    )


def _concatenate(graph: _Graph, directions: list[str], name: str, axis: int = 1) -> str:
    return directions[0] if len(directions) == 1 else graph.node("Concat", directions, name, axis=axis)


# PyTorch stacks an LSTM's gates as input, forget, cell, output and a GRU's as reset, update, new;
# ONNX wants input, output, forget, cell and update, reset, hidden (onnx/docs/Operators.md#LSTM, #GRU).
_GATE_ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def _add_rnn_operators(graph: _Graph, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """A net as ONNX's operator `RNN`, `GRU` or `LSTM`, one node a layer."""
    directions, hidden_size = spec.num_directions, spec.hidden_size
    attributes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "direction": "bidirectional" if spec.bidirectional else "forward",
    }
    if spec.cell == "rnn":
        attributes["activations"] = [_ACTIVATIONS[spec.nonlinearity]] * directions
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
    suffixes = [suffix for _, suffix in _directions(spec, layer)]

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
