"""A vanilla RNN as a few nodes per row of the image."""

from rnn_export.graph.builder import ACTIVATIONS, Weights, concatenate, directions_of, gemm_weights
from rnn_export.graph.steps import group_steps, multiply_steps
from rnn_runtime.model.spec import ModelSpec
from rnn_train.onnx_graph import GraphBuilder

# Steps of the first layer whose products with the pixels are one node. Of more, the products leave the core's cache
# before they are used; of fewer, single images take longer (docs/explanation/measurements.md).
MOST_STEPS_TOGETHER = 8


def add_unrolled_rnn(builder: GraphBuilder, spec: ModelSpec, weights: Weights, pixels: str) -> str:
    """Add a vanilla RNN with nodes for every step; return the name of its output.

    A step is `hidden = f(x W + b + previous R)`, in two `Gemm` and the activation `f`. The second `Gemm` takes the
    result of the first as its addend, which saves an addition. In the first layer, whose inputs are all known, the
    products of neighbouring steps are one `Gemm`.
    """
    rows = group_steps(builder, pixels, spec.image_spec.height, spec.input_size, "pixels", MOST_STEPS_TOGETHER)
    steps: list[str] = []
    for layer in range(spec.num_layers):
        directions = []
        for name, suffix in directions_of(spec, layer):
            weight, recurrence, bias = gemm_weights(builder, weights, name, suffix)
            if layer == 0:
                inputs = multiply_steps(builder, rows, weight, bias, name)
            else:
                inputs = [
                    builder.node("Gemm", [step, weight, bias], f"{name}.step_{t}.input") for t, step in enumerate(steps)
                ]
            directions.append(_add_steps(builder, spec, inputs, recurrence, name, suffix.endswith("reverse")))
        if layer == spec.num_layers - 1:
            # Each direction's last step: the bottom row when reading down, the top row when reading up.
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
    """Add one direction of a layer; return the hidden state of each step, in the order of the rows."""
    hidden: dict[int, str] = {}
    previous = None
    for t in reversed(range(len(inputs))) if upwards else range(len(inputs)):
        total = inputs[t]
        if previous is not None:  # the first step starts from a zero state
            total = builder.node("Gemm", [previous, recurrence, total], f"{name}.step_{t}.sum")
        previous = hidden[t] = builder.node(ACTIVATIONS[spec.nonlinearity], [total], f"{name}.step_{t}.hidden")
    return [hidden[t] for t in range(len(inputs))]
