"""Export: from a checkpoint to a verified model file."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from rnn_export.graph import Graph, Precision, Target, build_onnx_model, choose_graph, describe_graph
from rnn_export.parity import PROBABILITY_ATOL, ParityReport, measure_parity, most_images
from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import CheckpointError, DataError, OutputError, ParityError
from rnn_runtime.files.atomic import atomic_write, check_output
from rnn_runtime.model.difference import ATOL, HALF_ATOL, HALF_RTOL, RTOL
from rnn_runtime.model.file import UNSEALED, seal_model
from rnn_runtime.model.metadata import GoldenSamples, ModelMetadata
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import FromZero, check_argument
from rnn_train.checkpoint import Checkpoint, file_sha256
from rnn_train.data import load_data
from rnn_train.model import ImageRNN, predict_logits
from rnn_train.onnx_graph import OPSET


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much an exported model may differ from PyTorch.

    Attributes:
        atol: Absolute tolerance of a logit, as in numpy's `allclose`.
        rtol: Relative tolerance of a logit.
        least_equal_labels: Share of real images, 0 to 1, that must get the same label as in PyTorch.
    """

    atol: float
    rtol: float
    least_equal_labels: float


# In float32, differences are rounding, which changes a label only in a tie. With 8-bit weights, logits are only a rough
# measure, so labels count.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(ATOL, RTOL, 0.0),
    "fp16": Tolerance(HALF_ATOL, HALF_RTOL, 0.999),
    "int8": Tolerance(1.0, 0.1, 0.995),
}
GOLDEN_REAL = 8  # sample images of the checkpoint, fewer of large ones; a random, an all-0 and an all-255 one are added
MOST_GOLDEN_BYTES = 64 << 10  # or a tenth of the graph, if that is more
# Pixels per byte in the file. Equal ones take a 1,032nd of a byte each (zlib's technical details), and a third more as
# text. At this ratio that is a third of the bytes, and two are left for pixels that differ.
_GOLDEN_RATIO = 256
_REPEATED_RATIO = 64  # of pixels that repeat those in a row above; about what zlib reaches
_LEAST_SQUARES = 16  # on the longer side


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
    progress: Callable[[str], object] = str,
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
        progress: Called with a text for people before each part that may take a while.

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
    check_argument("atol", atol, FromZero | None)
    check_argument("rtol", rtol, FromZero | None)
    check_output(Path(output), [checkpoint])
    progress(f"Reading {checkpoint}")
    saved = Checkpoint.load(checkpoint)
    model = saved.build_model()
    weights = {name: tensor.numpy() for name, tensor in saved.weights.items()}
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{checkpoint}: the weight {name} has values that aren't finite. Train again")
    progress("Building the graph")
    proto = build_onnx_model(saved.spec, weights, graph, precision, saved.temperature, target)
    onnx.checker.check_model(proto, full_check=True)
    described = describe_graph(saved.spec, graph or choose_graph(saved.spec, target))
    progress("Choosing golden samples")
    golden = _choose_golden(saved, model, most=max(MOST_GOLDEN_BYTES, proto.ByteSize() // 10))
    metadata = _make_metadata(saved, golden, file_sha256(checkpoint), described, precision, target)
    usual = TOLERANCES[precision]
    tolerance = replace(usual, atol=usual.atol if atol is None else atol, rtol=usual.rtol if rtol is None else rtol)

    output = Path(output)
    # In the same folder as the final file, so that moving it there is atomic. Removed with all its files.
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        temporary = Path(folder) / output.name
        _write(temporary, proto, metadata, output)
        progress(f"Reading the images of {saved.source.name}")
        report = _verify(temporary, model, _real_images(saved), output, tolerance, saved.temperature, progress)
        _write(temporary, proto, replace(metadata, parity=report.to_dict()), output)
        file_size = temporary.stat().st_size
        os.replace(temporary, output)
    return ExportReport(
        output=output,
        spec=saved.spec,
        training=_describe_training(saved),
        temperature=saved.temperature,
        target=target,
        graph=described,
        precision=precision,
        opset=OPSET,
        nodes=len(proto.graph.node),
        file_size=file_size,
        parity=report,
    )


def _describe_training(saved: Checkpoint) -> str:
    done, planned = len(saved.metrics.get("epochs", [])), saved.settings.epochs
    return f"{done} epochs" if done >= planned else f"{done} of {planned} epochs (stopped)"


def _choose_golden(saved: Checkpoint, model: ImageRNN, most: int) -> GoldenSamples:
    """Real images of the checkpoint, a random, an all-0 and an all-255 image, which take `most` bytes in the file.

    Large ones would outgrow the weights. They become simpler until they fit, and have the logits of that. Of very large
    ones there are fewer.
    """
    shape, random = (1, *saved.spec.image_spec.shape), np.random.default_rng(0)
    made_up = [random.integers(0, 256, shape, np.uint8), np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)]
    count = min(most * _GOLDEN_RATIO // made_up[0].size, max(most_images(model), 1 + len(made_up)))
    real = max(1, min(GOLDEN_REAL, count - len(made_up)))
    images = np.concatenate([saved.samples.numpy()[:real], *made_up[: max(0, count - real)]])
    # Logits compress as badly as random bytes.
    classes = len(saved.spec.class_names)
    logits = np.frombuffer(random.bytes(4 * classes * len(images)), np.float32).reshape(len(images), classes)
    simpler = images
    for simpler in _simplify(images, most):
        if len(GoldenSamples(simpler, logits).to_text()) <= most:
            break
    return GoldenSamples(simpler, predict_logits(model, simpler))


def _simplify(images: NDArray[np.uint8], most: int) -> Iterator[NDArray[np.uint8]]:
    """Images that compress better and better: in squares of one value, then with a few rows only.

    Those that don't fit into `most` bytes for certain, since random pixels don't compress, are left out.
    """
    height, width, channels = images.shape[1:]
    # Rows of squares repeat those above, which has its cost; zeros cost less.
    side = 1 if images.size <= most * _REPEATED_RATIO else max(height, width)
    while side == 1 or side * _LEAST_SQUARES <= max(height, width):
        if 4 * -(-height // side) * -(-width // side) * channels <= 3 * most:
            yield images[:, ::side, ::side].repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]
        side *= 2
    # The first and the last rows are what the two directions of a net see last.
    for rows in (64, 32, 16, 8, 4, 2, 1):
        if 2 * rows < height:
            images = images.copy()
            images[:, rows:-rows] = 0
            yield images


def _make_metadata(
    saved: Checkpoint, golden: GoldenSamples, sha256: str, graph: str, precision: Precision, target: Target
) -> ModelMetadata:
    epochs = saved.metrics.get("epochs", [])
    export = {
        "graph": graph,
        "precision": precision,
        "target": target,
        "opset": OPSET,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }
    metrics = {name: value for name, value in saved.metrics.items() if name != "epochs"} | {"epochs": len(epochs)}
    return ModelMetadata(
        saved.spec,
        golden,
        sha256,
        metrics,
        export,
        temperature=saved.temperature,
    )


def _real_images(saved: Checkpoint) -> dict[str, NDArray[np.uint8]]:
    """The test images of the checkpoint's data if they are still there, else the samples in the checkpoint."""
    try:
        data = load_data(saved.source, download=False)
    except DataError:
        data = None
    held_out = data and (data.test or data.validation)
    if data and held_out and data.image_spec == saved.spec.image_spec:
        return {"test" if data.test else "validation": held_out.images}
    return {"checkpoint samples": saved.samples.numpy()}


def _write(path: Path, proto: onnx.ModelProto, metadata: ModelMetadata, output: Path) -> None:
    onnx.helper.set_model_props(proto, metadata.to_props() | UNSEALED)
    content = seal_model(proto.SerializeToString(deterministic=True))
    try:
        with atomic_write(path, "wb") as file:  # waits until the file is on the disk
            file.write(content)
    except OSError as error:
        raise OutputError(f"{output}: can't be written: {error.strerror or error}") from None


def _verify(
    path: Path,
    model: ImageRNN,
    real_images: dict[str, NDArray[np.uint8]],
    output: Path,
    tolerance: Tolerance,
    temperature: float | None,
    progress: Callable[[str], object],
) -> ParityReport:
    classifier = Classifier(path, provider="cpu")
    options = {"temperature": temperature, "progress": progress} | asdict(tolerance)
    report = measure_parity(classifier, model, real_images, **options)
    if report.equal_labels < tolerance.least_equal_labels:
        row = max(report.rows, key=lambda row: len(row.label_differences) / row.count)
        first, names = row.label_differences[0], model.spec.class_names
        raise ParityError(
            f"{output}: not written. {len(row.label_differences):,} of {row.count:,} {row.images} images have another "
            f"label than in PyTorch, more than {100 * (1 - tolerance.least_equal_labels):g} %. The first is image "
            f"{first.image}: {names[first.pytorch]} in PyTorch, {names[first.onnxruntime]} in onnxruntime; in float64 "
            f'their logits are {first.margin:.1e} apart. Choose `precision="fp32"`'
        )
    if not report.logits_within_tolerance:
        atol, rtol = report.atol, report.rtol
        worst = max(report.rows, key=lambda row: row.pytorch.max_absolute)
        raise ParityError(
            f"{output}: not written. On {worst.images} images, onnxruntime differs from PyTorch by up to "
            f"{worst.pytorch.max_absolute:.2e} (from a float64 run: {worst.float64.max_absolute:.2e}, PyTorch itself "
            f"{worst.pytorch_float64.max_absolute:.2e}), more than `atol={atol:g}` and `rtol={rtol:g}` allow"
        )
    if not report.passed:
        raise ParityError(
            f"{output}: not written. Its probabilities differ by up to {report.max_probabilities:.2e} from "
            f"PyTorch's softmax of its logits, more than {PROBABILITY_ATOL:g}. Please report this as a bug"
        )
    return report
