"""ONNX graphs of a training step's parts, run by onnxruntime in the thread that asks.

One call computes all steps of a layer's recurrence without Python's lock, so that threads don't wait for each other.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import onnxruntime

OPSET = 17
IR_VERSION = 8


class Graph:
    """Collects the nodes of a graph, and which of their results are its outputs.

    Args:
        inputs: Names of the graph's inputs.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        from onnx import helper

        self._make_node = helper.make_node
        self.inputs = list(inputs)
        self.outputs: list[str] = []
        self._nodes: list[Any] = []

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node, and return the name of its result.

        Args:
            operator: Such as `Gemm`.
            inputs: Names.
            output: Names a result that is an output of the graph.
            attributes: Of the operator.
        """
        name = output or f"{len(self._nodes)}"
        if output:
            self.outputs.append(output)
        self._nodes.append(self._make_node(operator, inputs, [name], **attributes))
        return name

    def open(self, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
        """A session of the graph that uses one thread. All inputs and outputs are matrices, or vectors, of `dtype`."""
        import onnxruntime
        from onnx import TensorProto, helper

        of_type = partial(
            helper.make_tensor_value_info,
            elem_type={torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}[dtype],
            shape=None,
        )
        graph = helper.make_graph(
            self._nodes, "step", list(map(of_type, self.inputs)), list(map(of_type, self.outputs))
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Computation:
    """A session with its inputs and outputs in tensors of fixed places, which are read and written in each call.

    Args:
        session: On the CPU.
        inputs: Contiguous tensors.
        outputs: Likewise.
    """

    def __init__(
        self, session: "onnxruntime.InferenceSession", inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        self._session, self._places = session, (inputs, outputs)  # the binding only knows addresses
        self._binding = session.io_binding()
        for bind, tensors in ((self._binding.bind_input, inputs), (self._binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                assert tensor.is_contiguous()
                bind(name, "cpu", 0, tensor.numpy().dtype.type, list(tensor.shape), tensor.data_ptr())

    def __call__(self) -> None:
        """Compute the outputs of what the inputs hold.

        Raises:
            MemoryError: there is no memory for results in between.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's classes have no common one
            if "alloc" in str(error):
                raise MemoryError from None
            raise


def multiply_add(left: Tensor, right: Tensor, addend: Tensor, out: Tensor) -> Computation:
    """`out = left @ right + addend`, where the addend is a row."""
    return Computation(_open_multiply_add(out.dtype), {"a": left, "b": right, "c": addend}, {"out": out})


def multiply_transposed(left: Tensor, right: Tensor, out: Tensor) -> Computation:
    """`out = left.t() @ right`."""
    return Computation(_open_multiply_transposed(out.dtype), {"a": left, "b": right}, {"out": out})


def add_products(pairs: Sequence[tuple[Tensor, Tensor]], out: Tensor) -> Computation:
    """`out`, the sum of the products of all pairs."""
    inputs = {f"a{number}": left for number, (left, _) in enumerate(pairs)}
    inputs |= {f"b{number}": right for number, (_, right) in enumerate(pairs)}
    return Computation(_open_add_products(len(pairs), out.dtype), inputs, {"out": out})


@cache
def _open_multiply_add(dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    graph = Graph("abc")
    graph.node("Gemm", "a", "b", "c", output="out")
    return graph.open(dtype)


@cache
def _open_multiply_transposed(dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    graph = Graph("ab")
    graph.node("Gemm", "a", "b", transA=1, output="out")
    return graph.open(dtype)


@cache
def _open_add_products(count: int, dtype: torch.dtype) -> "onnxruntime.InferenceSession":
    graph = Graph([f"{side}{number}" for number in range(count) for side in "ab"])
    total: tuple[str, ...] = ()
    for number in range(count):
        is_last = number == count - 1
        total = (graph.node("Gemm", f"a{number}", f"b{number}", *total, output="out" if is_last else None),)
    return graph.open(dtype)
