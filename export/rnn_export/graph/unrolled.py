"""A vanilla RNN as a few nodes for each row of the image."""

import numpy as np

from rnn_export.graph.builder import ACTIVATIONS, GraphBuilder, Weights, concatenate, directions_of, gemm_weights
from rnn_runtime.model.spec import ModelSpec


def add_unrolled_rnn(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """A vanilla RNN, every step on its own: `hidden = f(x W + b + previous R)` in two `Gemm` and `f`.

    The second `Gemm` takes the first's result as its addend, so no separate addition remains. Of the first layer,
    whose inputs are there from the start, the first products of all steps are one `Gemm`.
    """
    # Split off a two-dimensional array, steps need no squeezing.
    builder.constant("pixels.rows_shape", [-1, spec.input_size], np.int64)
    rows = builder.node("Reshape", [pixels, "pixels.rows_shape"], "pixels.rows")  # (height * batch, width * channels)
    steps: list[str] = []
    for layer in range(spec.num_layers):
        directions = []
        for name, suffix in directions_of(spec, layer):
            weight, recurrence, bias = gemm_weights(builder, weights, name, suffix)
            if layer == 0:
                builder.node("Gemm", [rows, weight, bias], f"{name}.input")
                names = [f"{name}.step_{t}.input" for t in range(spec.image_spec.height)]
                inputs = builder.nodes_out("Split", [f"{name}.input"], names, axis=0)
            else:
                inputs = [
                    builder.node("Gemm", [step, weight, bias], f"{name}.step_{t}.input") for t, step in enumerate(steps)
                ]
            directions.append(_add_steps(builder, spec, inputs, recurrence, name, suffix.endswith("reverse")))
        if layer == spec.num_layers - 1:
            # Each direction's last step: the bottom row reading down, the top row reading up.
            ends = [directions[0][-1], *(backward[0] for backward in directions[1:])]
            return concatenate(builder, ends, "rnn.hidden")
        steps = [
            concatenate(builder, list(pair), f"rnn.{layer}.step_{t}.both")
            for t, pair in enumerate(zip(*directions, strict=True))
        ]
    raise AssertionError("a net has at least one layer")


def _add_steps(
    builder: GraphBuilder, spec: ModelSpec, inputs: list[str], recurrence: str, name: str, upwards: bool
) -> list[str]:
    """One direction of one layer; the hidden state of each step, in the order of the rows."""
    hidden: dict[int, str] = {}
    previous = None
    for t in reversed(range(len(inputs))) if upwards else range(len(inputs)):
        total = inputs[t]
        if previous is not None:  # the first step starts from a zero state
            total = builder.node("Gemm", [previous, recurrence, total], f"{name}.step_{t}.sum")
        previous = hidden[t] = builder.node(ACTIVATIONS[spec.nonlinearity], [total], f"{name}.step_{t}.hidden")
    return [hidden[t] for t in range(len(inputs))]
