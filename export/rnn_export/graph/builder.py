"""Building blocks of the graphs: nodes, constants, and PyTorch's weights in the layout of `Gemm`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rnn_runtime.errors import SettingsError
from rnn_runtime.model.spec import ModelSpec

Weights = Mapping[str, NDArray[np.float32]]
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


class GraphBuilder:
    """Collects the nodes and constants of a graph. A node is named after its first output.

    Attributes:
        float: Number format of the net: `np.float32` or `np.float16`.
        nodes: In the order in which they were added, a valid order to run them in.
        initializers: The constants, including the weights.
    """

    def __init__(self, float_: type[np.generic]) -> None:
        self.float = float_
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def nodes_out(self, operator: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs, and return their names. An empty name leaves that output out."""
        name = next(filter(None, outputs))
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    @property
    def float_type(self) -> int:
        """ONNX's number for the net's number format."""
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.float))

    def constant(self, name: str, value: object, dtype: type[np.generic] | None = None) -> str:
        """Add a constant, by default in the net's number format, and return its name.

        Raises:
            SettingsError: a value is too large for float16.
        """
        with np.errstate(over="ignore"):  # checked below
            array = np.ascontiguousarray(value, dtype or self.float)
        if self.float is np.float16 and not np.isfinite(array).all():
            raise SettingsError(f'{name} has a value beyond float16\'s largest, 65504. Choose `precision="fp32"`')
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


def directions_of(spec: ModelSpec, layer: int) -> list[tuple[str, str]]:
    """For each direction of a layer: its name in the graph, and the suffix of PyTorch's weights."""
    both = [(f"rnn.{layer}", f"_l{layer}"), (f"rnn.{layer}.reverse", f"_l{layer}_reverse")]
    return both[: spec.num_directions]


def gemm_weights(builder: GraphBuilder, weights: Weights, name: str, suffix: str) -> tuple[str, str, str]:
    """Weight, recurrent weight and bias (the sum of PyTorch's two) of one direction, in the layout of `Gemm`."""
    return (
        builder.constant(f"{name}.weight_input", weights[f"rnn.weight_ih{suffix}"].T),
        builder.constant(f"{name}.weight_hidden", weights[f"rnn.weight_hh{suffix}"].T),
        builder.constant(f"{name}.bias", weights[f"rnn.bias_ih{suffix}"] + weights[f"rnn.bias_hh{suffix}"]),
    )


def concatenate(builder: GraphBuilder, directions: list[str], name: str, axis: int = 1) -> str:
    """Concatenate the directions, if there are two."""
    return directions[0] if len(directions) == 1 else builder.node("Concat", directions, name, axis=axis)
