"""The ONNX graph of a model, node by node, from raw pixels to probabilities.

It is built with onnx's helpers and not by tracing, which gives neither the `Gemm` with a fused addend that is fastest
for the vanilla RNN nor readable names for those who open the file in a viewer.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

import rnn_runtime
from rnn_export.forms import Weights, add_rnn_operators, add_scanned_rnn, add_unrolled_rnn, add_wavefront_rnn
from rnn_runtime.errors import Argument, SettingsError
from rnn_runtime.model.file import FORMAT_VERSION
from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder

PRODUCER = "rnn-onnx"

Graph = Literal["unrolled", "wavefront", "scan", "operator"]
GRAPHS: tuple[Graph, ...] = ("unrolled", "wavefront", "scan", "operator")
Target = Literal["cpu", "cuda"]
TARGETS: tuple[Target, ...] = ("cpu", "cuda")
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
MAX_UNROLLED_ROWS = 128


def choose_graph(spec: ModelSpec, target: Target = "cpu") -> Graph:
    """The fastest form on a kind of processor.

    On CPUs (measured in docs/explanation/measurements.md), onnxruntime's `RNN` kernel is slow in batches; its `GRU` and
    `LSTM` kernels are fast. Unrolled steps are slightly faster than a `Scan`, but the graph and the time to open it
    grow with the number of rows.

    On CUDA (not measured yet), each node costs a launch, so the form with the fewest is taken, and none with a loop,
    whose steps the host starts one by one. cuDNN's `GRU` and `LSTM` are one call per layer.
    """
    if spec.cell != "rnn":
        return "operator"
    if target == "cuda":
        return "wavefront"
    return "unrolled" if spec.image_spec.height <= MAX_UNROLLED_ROWS else "scan"


def describe_graph(spec: ModelSpec, graph: Graph) -> str:
    """Describe a form for people and metadata: `unrolled Gemm`, `Scan of Gemm`, `GRU operator`."""
    names = {"unrolled": "unrolled Gemm", "wavefront": "wavefront of Gemm", "scan": "Scan of Gemm"}
    return names.get(graph) or f"{spec.cell.upper()} operator"


def build_onnx_model(
    spec: ModelSpec,
    weights: Weights,
    graph: Graph | None = None,
    precision: Precision = "fp32",
    temperature: float | None = None,
    target: Target = "cpu",
) -> onnx.ModelProto:
    """Build the ONNX model of a classifier, without metadata.

    Args:
        spec: The model's description.
        weights: float32 arrays with the names and shapes of `ImageRNN.state_dict()`.
        graph: Form of the recurrent net: `unrolled` (a few nodes per row), `wavefront` (two nodes per row for all
            layers) or `scan` (a loop), all only for the vanilla RNN, or `operator` (ONNX's `RNN`, `GRU` or `LSTM`);
            None for `choose_graph`.
        precision: Number format of the net: `fp32`; `fp16`, for GPUs; or `int8`, for LSTMs on CPUs. Preprocessing and
            outputs are always float32.
        temperature: Divides the logits before softmax; None for softmax alone.
        target: The provider that it is for, `cpu` or `cuda`. It runs on either.

    Returns:
        A model with input `images`, uint8 `(batch, height, width, channels)`, and outputs `logits` and
        `probabilities`, float32 `(batch, classes)`. `batch` is the one dynamic axis.

    Raises:
        SettingsError: the graph, precision or target is unknown or isn't for this cell, the target can't run the graph,
            or a weight is too large for float16.
    """
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        "graph": (graph or GRAPHS[0], GRAPHS),
        "precision": (precision, PRECISIONS),
        "target": (target, TARGETS),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise SettingsError(Argument(name), f" must be one of {', '.join(values)}, not {value!r}")
    graph = graph or choose_graph(spec, target)
    if spec.cell != "rnn" and graph != "operator":
        raise SettingsError(
            f"the graph {graph} is for the cell rnn only. For {spec.cell}, choose ", Argument("graph", "operator")
        )
    if precision == "int8" and spec.cell != "lstm":
        raise SettingsError(
            f"int8 is for the cell lstm, not for {spec.cell}: GRUs gain too little, and vanilla RNNs get slower. ",
            "Choose ",
            Argument("precision", "fp32"),
        )
    if target == "cuda":
        _check_cuda(spec, graph, precision)
    builder = GraphBuilder(np.float16 if precision == "fp16" else np.float32)
    pixels = _add_preprocessing(builder, spec)
    hidden = _ADD[graph](builder, spec, weights, pixels)
    builder.constant("linear.weight", weights["linear.weight"].T)
    builder.constant("linear.bias", weights["linear.bias"])
    if precision == "fp16":
        builder.node("Gemm", [hidden, "linear.weight", "linear.bias"], "logits.float16")
        builder.node("Cast", ["logits.float16"], "logits", to=TensorProto.FLOAT)
    else:
        builder.node("Gemm", [hidden, "linear.weight", "linear.bias"], "logits")
    scores = "logits"
    if temperature is not None:
        builder.constant("probabilities.temperature", temperature, np.float32)
        scores = builder.node("Div", ["logits", "probabilities.temperature"], "probabilities.scaled_logits")
    builder.node("Softmax", [scores], "probabilities", axis=1)

    model = builder.model("image_rnn", *_describe_interface(spec), **_describe_model(spec))
    if precision == "int8":
        return _quantize(model)
    return model


_ADD: dict[Graph, Callable[[GraphBuilder, ModelSpec, Weights, str], str]] = {
    "unrolled": add_unrolled_rnn,
    "wavefront": add_wavefront_rnn,
    "scan": add_scanned_rnn,
    "operator": add_rnn_operators,
}


def _describe_interface(spec: ModelSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The inputs and the outputs, with a sentence on each for viewers such as Netron."""
    order = "gray" if spec.image_spec.channels == 1 else "red, green, blue"
    images = helper.make_tensor_value_info(
        "images",
        TensorProto.UINT8,
        ["batch", *spec.image_spec.shape],
        f"Pixels from 0 to 255, rows from top to bottom; channels: {order}",
    )
    texts = {
        "logits": "One value per class, before softmax",
        "probabilities": "Softmax of the logits, divided by the temperature in the metadata if there is one",
    }
    classes: list[str | int | None] = ["batch", len(spec.class_names)]
    return [images], [helper.make_tensor_value_info(name, TensorProto.FLOAT, classes, texts[name]) for name in texts]


def _describe_model(spec: ModelSpec) -> dict[str, Any]:
    """What a viewer shows of a model beside its graph."""
    layers = f"{spec.num_layers} {'layer' if spec.num_layers == 1 else 'layers'} of {spec.hidden_size}"
    size = f"{spec.image_spec.height}x{spec.image_spec.width}"
    return {
        "producer_name": PRODUCER,
        "producer_version": rnn_runtime.__version__,
        "domain": PRODUCER,
        "model_version": FORMAT_VERSION,
        "doc_string": f"{spec.cell_name}, {layers}. It reads images of {size} row by row, and tells "
        f"{len(spec.class_names)} classes apart. Their names are in the metadata, under the key model.",
    }


def _check_cuda(spec: ModelSpec, graph: Graph, precision: Precision) -> None:
    """Refuse what onnxruntime's CUDA provider has no kernel for, or is slow with."""
    if precision == "int8":
        raise SettingsError(
            "CUDA has no kernel for quantized LSTMs. Choose ",
            Argument("precision", "fp16"),
            " or ",
            Argument("target", "cpu"),
        )
    if graph == "scan":
        raise SettingsError("loops are slow on CUDA. Leave out ", Argument("graph", "scan"))
    if graph == "operator" and spec.cell == "rnn" and spec.nonlinearity != "tanh":
        # RNNNeedFallbackToCPU in onnxruntime's cuda_execution_provider.cc
        raise SettingsError("CUDA runs the operator RNN with tanh only. Leave out ", Argument("graph", "operator"))


def _add_preprocessing(builder: GraphBuilder, spec: ModelSpec) -> str:
    """From `images` to `pixels`, `(height, batch, width * channels)`: time steps first."""
    # A row's features are contiguous in memory already. The transposition to time-major moves bytes, a quarter of the
    # memory of floats.
    builder.constant("preprocessing.rows_shape", [0, spec.image_spec.height, spec.input_size], np.int64)
    builder.node("Reshape", ["images", "preprocessing.rows_shape"], "preprocessing.rows")
    builder.node("Transpose", ["preprocessing.rows"], "preprocessing.steps", perm=[1, 0, 2])
    builder.node("Cast", ["preprocessing.steps"], "preprocessing.float", to=TensorProto.FLOAT)
    builder.constant("preprocessing.max", 255, np.float32)
    normalized = set(spec.mean) != {0.0} or set(spec.std) != {1.0}
    last = "pixels" if builder.float is np.float32 else "preprocessing.normalized"
    scaled = "preprocessing.scaled" if normalized else last
    builder.node("Div", ["preprocessing.float", "preprocessing.max"], scaled)
    if normalized:
        # one value per channel; a row repeats its channels width times
        builder.constant("preprocessing.mean", np.tile(spec.mean, spec.image_spec.width), np.float32)
        builder.constant("preprocessing.std", np.tile(spec.std, spec.image_spec.width), np.float32)
        builder.node("Sub", [scaled, "preprocessing.mean"], "preprocessing.centered")
        builder.node("Div", ["preprocessing.centered", "preprocessing.std"], last)
    return "pixels" if last == "pixels" else builder.node("Cast", [last], "pixels", to=builder.float_type)


def _quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize a model's LSTM operators with onnxruntime's own tool.

    They become `DynamicQuantizeLSTM`, an operator of onnxruntime's own (ContribOperators.md in its docs), which it has
    for the CPU only. A batch is quantized as a whole, so an image's logits depend slightly on the others in its batch.

    Args:
        model: A float32 model with `LSTM` nodes.

    Returns:
        A new model.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # many modules, which only this needs

    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # These graphs need no preparation. Without the mark of it, quantize_dynamic logs a warning.
    onnx.helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # With 8 bits instead of 7, sums of products overflow on processors without VNNI (onnxruntime's docs, "Quantize
        # ONNX models"): 1.6 % of Fashion-MNIST's labels changed instead of 0.2 %.
        quantize_dynamic(
            prepared,
            path,
            op_types_to_quantize=["LSTM"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        quantized = onnx.load(path)
    del quantized.metadata_props[:]
    del quantized.graph.value_info[:]
    for tensor in quantized.graph.initializer:  # says the default, and the runtime refuses the field whatever it says
        tensor.ClearField("data_location")
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized
