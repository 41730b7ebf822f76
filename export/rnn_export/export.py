"""Export: from a checkpoint to a verified model file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from rnn_export.graph import Graph, Precision, Target, build_onnx_model, choose_graph, describe_graph
from rnn_export.parity import ParityReport, Tolerance, measure_parity
from rnn_runtime.errors import CheckpointError, DataError, OutputError
from rnn_runtime.files.atomic import atomic_write, check_output
from rnn_runtime.interruption import signals_noted, stop_if_signaled
from rnn_runtime.model.difference import ATOL, HALF_ATOL, HALF_RTOL, RTOL
from rnn_runtime.model.file import UNSEALED, GoldenSamples, ModelMetadata, seal_model
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import FromZero, check_argument
from rnn_train.checkpoint import Checkpoint, file_sha256
from rnn_train.data import load_data
from rnn_train.model import ImageRNN, predict_logits
from rnn_train.onnx_graph import OPSET

# In float32, differences are rounding, which changes a label only in a tie. With 8-bit weights, logits are only a rough
# measure, so labels count.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(ATOL, RTOL, 0.0),
    "fp16": Tolerance(HALF_ATOL, HALF_RTOL, 0.999),
    "int8": Tolerance(1.0, 0.1, 0.995),
}
GOLDEN_REAL = 8  # of the checkpoint's sample images; one of random squares, an all-0 and an all-255 one are added
_MOST_GOLDEN_BYTES = (
    48 << 10
)  # of all pixels: 64 KiB as text, if they don't compress. Large images leave out all others
_SQUARES = 16  # on each side


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to export for, and how much it may differ from PyTorch, as `export_onnx` describes it.

    Raises:
        SettingsError: a tolerance has a wrong type or is out of range.
    """

    target: Target
    graph: Graph | None
    precision: Precision
    atol: float | None
    rtol: float | None

    def __post_init__(self) -> None:
        check_argument("atol", self.atol, FromZero | None)
        check_argument("rtol", self.rtol, FromZero | None)

    @property
    def tolerance(self) -> Tolerance:
        """The tolerances given, and those of the precision in place of None."""
        usual = TOLERANCES[self.precision]
        atol, rtol = (usual.atol if self.atol is None else self.atol, usual.rtol if self.rtol is None else self.rtol)
        return replace(usual, atol=atol, rtol=rtol)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        training: How long the checkpoint was trained, for people.
        temperature: The number that divides the logits before softmax; None for none.
        nodes: Number of nodes of the graph.
        file_size: In bytes.
        parity: The comparison with PyTorch.
    """

    output: Path
    spec: ModelSpec
    training: str
    temperature: float | None
    target: Target
    graph: str
    precision: Precision
    opset: int
    nodes: int
    file_size: int
    parity: ParityReport


def export_onnx(
    checkpoint: str | Path,
    output: str | Path,
    *,
    target: Target = "cpu",
    graph: Graph | None = None,
    precision: Precision = "fp32",
    atol: float | None = None,
    rtol: float | None = None,
    progress: Callable[[str], object] | None = None,
) -> ExportReport:
    """Export a checkpoint to an ONNX file, after proving that both compute the same.

    The file is written only if it passes onnx's checker with full shape inference and the comparison with PyTorch, at
    several batch sizes, on onnxruntime's CPU provider.

    Args:
        checkpoint: A file that `rnn-train` wrote.
        output: The model file to write. An existing file is replaced.
        target: The provider that the model is for, `cpu` or `cuda`. It runs on either.
        graph: Form of the recurrent net, as for `build_onnx_model`; None for the fastest on the target.
        precision: Number format of the net, as for `build_onnx_model`. PyTorch always computes in float32.
        atol: Absolute tolerance of a logit; None for that of the precision in `TOLERANCES`.
        rtol: Tolerance relative to PyTorch's logit; None for that of the precision in `TOLERANCES`.
        progress: Called with a message before each part that may take a while; None for no messages.

    Raises:
        CheckpointError: the checkpoint can't be read, or its weights aren't finite.
        InputError: the folder of `output` is missing, or `output` is the checkpoint, a folder or a device.
        SettingsError: an argument has a wrong type or is out of range, `graph` or `precision` isn't for this cell or
            target, or a weight is too large for float16.
        ParityError: the exported model differs from PyTorch by more than the tolerance.
        OutputError: `output` can't be written.
    """
    check_argument("checkpoint", checkpoint, Path)
    check_argument("output", output, Path)
    options = ExportOptions(target, graph, precision, atol, rtol)
    output = Path(output)
    check_output(output, [checkpoint])
    content, report = make_model(checkpoint, output, options, progress)
    try:
        with signals_noted(), atomic_write(output, "wb") as file:  # waits until the file is on the disk
            file.write(content)
            stop_if_signaled()
    except OSError as error:
        raise OutputError(f"{output}: can't be written: {error.strerror or error}") from None
    return report


def make_model(
    checkpoint: str | Path, output: Path, options: ExportOptions, progress: Callable[[str], object] | None
) -> tuple[bytes, ExportReport]:
    """Make the content of a model file, and verify it.

    Args:
        checkpoint: A file that `rnn-train` wrote.
        output: Where it is to be written, for the report and for errors.
        options: What to export for.
        progress: As for `export_onnx`.

    Raises:
        RnnOnnxError: as for `export_onnx`.
    """
    tell = progress or _tell_nobody
    tell(f"Reading {checkpoint}")
    saved = Checkpoint.load(checkpoint)
    weights = {name: tensor.numpy() for name, tensor in saved.weights.items()}
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{checkpoint}: the weight {name} has values that aren't finite. Train again")
    tell("Building the graph")
    proto = build_onnx_model(saved.spec, weights, options.graph, options.precision, saved.temperature, options.target)
    onnx.checker.check_model(proto, full_check=True)
    tell(f"Reading the images of {saved.source.name}")
    real_images, model = _real_images(saved), saved.build_model()
    parity = measure_parity(
        proto.SerializeToString(),
        model,
        real_images,
        tolerance=options.tolerance,
        temperature=saved.temperature,
        progress=tell,
    )
    parity.check(output, saved.spec.class_names)

    form = describe_graph(saved.spec, options.graph or choose_graph(saved.spec, options.target))
    metadata = ModelMetadata(
        saved.spec,
        _golden_samples(saved, model),
        file_sha256(checkpoint),
        metrics=dict(saved.metrics) | {"epochs": len(saved.metrics.get("epochs", []))},
        export={
            "graph": form,
            "precision": options.precision,
            "target": options.target,
            "opset": OPSET,
            "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        },
        parity=parity.to_dict(),
        temperature=saved.temperature,
    )
    onnx.helper.set_model_props(proto, metadata.to_props() | UNSEALED)
    content = seal_model(proto.SerializeToString(deterministic=True))
    return content, ExportReport(
        output=output,
        spec=saved.spec,
        training=_describe_training(saved),
        temperature=saved.temperature,
        target=options.target,
        graph=form,
        precision=options.precision,
        opset=OPSET,
        nodes=len(proto.graph.node),
        file_size=len(content),
        parity=parity,
    )


def _tell_nobody(_: str) -> None:
    """For an export that nobody watches."""


def _describe_training(saved: Checkpoint) -> str:
    done, planned = len(saved.metrics.get("epochs", [])), saved.settings.epochs
    return f"{done} epochs" if done >= planned else f"{done} of {planned} epochs (stopped)"


def _golden_samples(saved: Checkpoint, model: ImageRNN) -> GoldenSamples:
    """Made-up images, which compress well, and real ones: as many as fit, at least the first."""
    height, width, channels = saved.spec.image_spec.shape
    squares = np.random.default_rng(0).integers(0, 256, (_SQUARES, _SQUARES, channels), np.uint8)
    rows, columns = (np.arange(side) * _SQUARES // side for side in (height, width))
    random = squares[rows][:, columns]
    count = max(1, _MOST_GOLDEN_BYTES // random.size)
    made_up = [random, np.zeros_like(random), np.full_like(random, 255)][:count]
    images = np.stack([*made_up, *saved.samples.numpy()[: min(GOLDEN_REAL, count - len(made_up))]])
    return GoldenSamples(images, predict_logits(model, images))


def _real_images(saved: Checkpoint) -> dict[str, NDArray[np.uint8]]:
    """The test images of the checkpoint's data if they are still there, else the samples in the checkpoint."""
    try:
        data = load_data(saved.source, download=False)
    except DataError:
        data = None
    if data and data.held_out and data.image_spec == saved.spec.image_spec:
        name, split = next(iter(data.held_out.items()))
        return {name: split.images}
    return {"checkpoint samples": saved.samples.numpy()}
