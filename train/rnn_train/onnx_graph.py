"""ONNX graphs, built node by node: those of the export, and those that compute training steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rnn_runtime.errors import Argument, SettingsError

# The oldest opset with all operators used here, so that old runtimes load the file. onnxruntime reads opset 17 and IR
# version 8 since version 1.13 (onnxruntime's docs, "ONNX Runtime compatibility").
OPSET = 17
IR_VERSION = 8


class GraphBuilder:
    """Collects the nodes and constants of a graph. A node is named after its first output.

    Attributes:
        float: Number format of the net: `np.float16`, `np.float32` or `np.float64`.
        nodes: In the order in which they were added, a valid order to run them in.
        initializers: The constants, including the weights.
    """

    def __init__(self, float_: type[np.generic]) -> None:
        self.float = float_
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return the output's name; None names it by a number."""
        output = output or str(len(self.nodes))
        return self.nodes_out(operator, inputs, [output], **attributes)[0]

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
            raise SettingsError(
                f"{name} has a value beyond float16's largest, 65504. Choose ", Argument("precision", "fp32")
            )
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def values(self, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """Inputs or outputs in the net's number format, of any shape."""
        return [helper.make_tensor_value_info(name, self.float_type, None) for name in names]

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        **described: Any,
    ) -> onnx.ModelProto:
        """The model of the graph with this name.

        Args:
            name: The graph's.
            inputs: Of the graph.
            outputs: Results of nodes.
            described: Other fields of `ModelProto`.
        """
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, **described)
