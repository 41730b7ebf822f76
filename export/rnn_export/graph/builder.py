"""What the graph forms share: PyTorch's weights in the layout of `Gemm`, and both directions of a layer."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder

Weights = Mapping[str, NDArray[np.float32]]
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


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
