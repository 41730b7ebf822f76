"""From the rows of the image to one value per step, in nodes that CUDA graphs can hold.

CUDA's kernels for `Split` and `Concat` get the addresses of up to 32 parts with their launch, if the parts are of equal
size. Otherwise, addresses and sizes are copied from host memory that onnxruntime frees after the run, and a graph that
is replayed would read whatever is there by then (split.cc and concat.cc in onnxruntime's core/providers/cuda/tensor;
github.com/microsoft/onnxruntime/pull/32120 is the same in another kernel). `Slice` gets all it needs with its launch.
"""

from typing import NamedTuple

import numpy as np

from rnn_train.onnx_graph import GraphBuilder

MOST_PARTS = 32  # of a Split or Concat


class Rows(NamedTuple):
    """Neighbouring steps in one array `(steps * batch, features)`."""

    name: str
    steps: int


def group_sizes(steps: int, most: int = MOST_PARTS) -> list[int]:
    """Sizes of groups of at most so many steps, as equal as possible."""
    groups = -(-steps // most)
    return [steps // groups + (i < steps % groups) for i in range(groups)]


def group_steps(
    builder: GraphBuilder, array: str, steps: int, features: int, name: str, most: int = MOST_PARTS
) -> list[Rows]:
    """Divide `(steps, batch, features)` into groups of at most so many steps, as two-dimensional arrays.

    Split from a two-dimensional array, the steps need no squeezing.
    """
    builder.constant(f"{name}.rows_shape", [-1, features], np.int64)
    sizes = group_sizes(steps, most)
    if len(set(sizes)) == 1 and len(sizes) <= MOST_PARTS:
        rows = builder.node("Reshape", [array, f"{name}.rows_shape"], f"{name}.rows")
        groups = [f"{name}.group_{i}" for i in range(len(sizes))]
        if len(groups) == 1:
            return [Rows(rows, steps)]
        return [Rows(group, sizes[0]) for group in builder.nodes_out("Split", [rows], groups, axis=0)]
    builder.constant(f"{name}.group_axis", [0], np.int64)
    parts, start = [], 0
    for i, size in enumerate(sizes):
        group = f"{name}.group_{i}"
        builder.constant(f"{group}.start", [start], np.int64)
        builder.constant(f"{group}.end", [start + size], np.int64)
        builder.node("Slice", [array, f"{group}.start", f"{group}.end", f"{name}.group_axis"], group)
        parts.append(Rows(builder.node("Reshape", [group, f"{name}.rows_shape"], f"{group}.rows"), size))
        start += size
    return parts


def multiply_steps(builder: GraphBuilder, groups: list[Rows], weight: str, bias: str, name: str) -> list[str]:
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
