"""A model repository of the Triton Inference Server: versions of the model, its labels and its configuration."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rnn_export.export import ExportOptions, ExportReport, make_model
from rnn_export.graph import Graph, Precision, Target
from rnn_runtime.classifier import Classifier
from rnn_runtime.cores import usable_cores
from rnn_runtime.errors import InputError, OutputError
from rnn_runtime.files.atomic import atomic_write
from rnn_runtime.interruption import signals_noted, stop_if_signaled
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import check_argument
from rnn_runtime.text import printable

MAX_BATCH_SIZE = 256
_CONFIG, _LABELS, _MODEL = "config.pbtxt", "labels.txt", "model.onnx"
_KNOWN = {_CONFIG, _LABELS, "configs"}  # what Triton's documentation has in a model's folder, beside versions


def export_triton(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    target: Target = "cpu",
    graph: Graph | None = None,
    precision: Precision = "fp32",
    atol: float | None = None,
    rtol: float | None = None,
    progress: Callable[[str], object] | None = None,
) -> ExportReport:
    """Export a checkpoint as the next version of a model in a Triton model repository.

    The model gets a folder: `folder/1/model.onnx`, then `folder/2/model.onnx` and so on. A version appears when it is
    complete. Beside them are `labels.txt` and `config.pbtxt`. They are written with the first version and left alone
    from then on, so that changes by hand stay.

    Args:
        checkpoint: A file that `rnn-train` wrote.
        folder: The model's folder, whose name is the model's name in Triton. It is created if it is missing.
        target: As for `export_onnx`. With `cuda`, the configuration asks for a GPU, else for one instance per core of
            this machine.
        graph: As for `export_onnx`.
        precision: As for `export_onnx`.
        atol: As for `export_onnx`.
        rtol: As for `export_onnx`.
        progress: As for `export_onnx`.

    Returns:
        What was exported. Its `output` is the new version's model.

    Raises:
        InputError: `folder` isn't a model's folder, or the versions in it have other classes or images.
        OutputError: a file can't be written.
        CheckpointError, SettingsError, ParityError: as for `export_onnx`.
    """
    check_argument("checkpoint", checkpoint, Path)
    check_argument("folder", folder, Path)
    folder = Path(folder)
    versions = find_versions(folder)
    number = versions[-1] + 1 if versions else 1
    options = ExportOptions(target, graph, precision, atol, rtol)
    content, report = make_model(checkpoint, folder / str(number) / _MODEL, options, progress)
    if versions:
        _check_same_interface(folder, versions[-1], report.spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the model's folder, so that the finished version is moved in one step. Triton reads numbered folders only.
        with signals_noted(), TemporaryDirectory(prefix=".version.", dir=folder) as temporary:
            version = Path(temporary) / "version"
            version.mkdir()
            with atomic_write(version / _MODEL, "wb") as file:  # waits until the file is on the disk
                file.write(content)
            _write_if_missing(folder / _LABELS, "".join(f"{printable(name)}\n" for name in report.spec.class_names))
            _write_if_missing(folder / _CONFIG, triton_config(report.spec, cuda=target == "cuda"))
            stop_if_signaled()
            return replace(report, output=_publish(version, folder, number) / _MODEL)
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror or error}") from None


def find_versions(folder: Path) -> list[int]:
    """The numbers of the versions in a model's folder, in ascending order; none if the folder is missing.

    Raises:
        InputError: it isn't a model's folder.
    """
    if not os.path.lexists(folder):
        return []
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: can't list this folder: {error.strerror}") from None
    versions = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
    others = sorted(name for name in names if name not in _KNOWN and not (name.isascii() and name.isdecimal()))
    if others:
        raise InputError(
            f"{folder}: not the folder of a model: it holds {printable(others[0])}. Choose a folder of its own, "
            f"such as {folder / 'rnn'}"
        )
    return versions


def triton_config(spec: ModelSpec, *, cuda: bool) -> str:
    """The text of `config.pbtxt`, as Triton's `model_config.proto` defines it.

    Args:
        spec: The model's images and classes.
        cuda: Run on a GPU. On the CPU, as many batches run at once as this machine has cores, with one thread each.
    """
    shape = ", ".join(map(str, spec.image_spec.shape))
    outputs = ",\n".join(
        f'  {{ name: "{name}", data_type: TYPE_FP32, dims: [ {len(spec.class_names)} ], label_filename: "{_LABELS}" }}'
        for name in ("logits", "probabilities")
    )
    warmup = ",\n".join(
        f'  {{ name: "batch_{size}", batch_size: {size}, inputs {{ key: "images", '
        f"value {{ data_type: TYPE_UINT8, dims: [ {shape} ], zero_data: true }} }} }}"
        for size in (1, MAX_BATCH_SIZE)
    )
    if cuda:
        where = "instance_group [ { kind: KIND_GPU, count: 1 } ]"
    else:
        where = (
            "# One instance per core, each with one thread.\n"
            f"instance_group [ {{ kind: KIND_CPU, count: {usable_cores()} }} ]\n"
            'parameters { key: "intra_op_thread_count", value { string_value: "1" } }'
        )
    return f"""\
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input [
  {{ name: "images", data_type: TYPE_UINT8, dims: [ {shape} ] }}
]
output [
{outputs}
]
# What waits while the model runs is the next batch; nothing waits longer for more to come.
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
{where}
model_warmup [
{warmup}
]
"""


def _check_same_interface(folder: Path, newest: int, spec: ModelSpec) -> None:
    """Clients of a model, its configuration and its labels expect the same of all versions."""
    path = folder / str(newest) / _MODEL
    earlier = Classifier(path, "cpu", threads=1).metadata.spec
    for what, before, now in (
        ("classes", ", ".join(earlier.class_names), ", ".join(spec.class_names)),
        ("images", str(earlier.image_spec), str(spec.image_spec)),
    ):
        if before != now:
            raise InputError(
                f"{folder}: version {newest} has other {what}: {printable(before)}, not {printable(now)}. Choose "
                "another folder for this model"
            )


def _write_if_missing(path: Path, text: str) -> None:
    if not path.exists():
        with atomic_write(path) as file:
            file.write(text)


def _publish(version: Path, folder: Path, number: int) -> Path:
    """Give a version its number, or the next one that is free."""
    while True:
        try:
            os.rename(version, folder / str(number))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            number += 1  # another export was quicker
        else:
            return folder / str(number)
