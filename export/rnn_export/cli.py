"""The command `rnn-export`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import rnn_runtime
from rnn_runtime.command.command import Command, say
from rnn_runtime.command.options import FileName, option_group
from rnn_runtime.files.atomic import CHECKPOINT_SUFFIXES, MODEL_SUFFIXES, check_output
from rnn_runtime.model.values import FromZero
from rnn_runtime.text import printable

if TYPE_CHECKING:
    from rnn_export.export import ExportReport
    from rnn_export.parity import ParityRow
    from rnn_runtime.model.difference import Difference

_MOST_LABELS_SHOWN = 10


_graph, _parity, _output = map(option_group, ("Graph", "Parity", "Output"))
# Options of other tools, and what they are called here.
_OTHER_NAMES = {
    "--output": "the second argument: rnn-export model.pt model.onnx",
    "-o": "the second argument: rnn-export model.pt model.onnx",
    "--half": "--precision fp16",
    "--fp16": "--precision fp16",
    "--int8": "--precision int8",
    "--quantize": "--precision int8",
    "--opset": "no option: the opset is fixed, and docs/reference/model-file.md names it",
    "--dynamic": "no option: the batch axis is always dynamic",
}


def _check(ctx: click.Context) -> None:
    checkpoint, output, triton = (ctx.params[name] for name in ("checkpoint", "output", "triton"))
    if output is None and triton is None:
        raise click.UsageError("Name the model to write: rnn-export model.pt model.onnx. Or --triton and a folder")
    if output is not None and triton is not None:
        raise click.UsageError(f"--triton writes a folder, so {output} has no use. Leave one of them out")
    if checkpoint.suffix in MODEL_SUFFIXES and output is not None and output.suffix in CHECKPOINT_SUFFIXES:
        raise click.UsageError(f"CHECKPOINT comes first. Did you mean: rnn-export {output} {checkpoint}?")
    if checkpoint.suffix in MODEL_SUFFIXES:
        raise click.UsageError(f"{checkpoint} is an exported model. Name the checkpoint that rnn-train wrote")
    if output is None:
        return
    if str(output) == "-":
        raise click.UsageError("OUTPUT must be the name of a file, such as model.onnx")
    if output.suffix in CHECKPOINT_SUFFIXES:
        raise click.UsageError(f"{output} is named like a checkpoint. Choose a name for the model, such as model.onnx")
    check_output(output, [checkpoint])


@click.command(
    cls=Command,
    check=_check,
    other_names=_OTHER_NAMES,
    requires=("torch", "torchvision", "sklearn", "onnx", "onnxruntime"),
    imports=("onnxruntime", "rnn_export.export"),
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output", type=FileName("model.onnx"), required=False)
@_graph(
    "--target",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    help="Execution provider that the model is for. It runs on either, correctly.",
)
@_graph(
    "--graph",
    type=click.Choice(["auto", "unrolled", "wavefront", "scan", "operator"]),
    default="auto",
    help="Form of the recurrent net: unrolled, wavefront (all layers at once) and scan (a loop) are for the cell rnn "
    "only; operator is ONNX's RNN, GRU or LSTM. auto takes the fastest for --target.",
)
@_graph(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    help="Number format of the net. fp16 is for GPUs; int8 is for the cell lstm on CPUs.",
)
@_parity(
    "--atol",
    type=FromZero,
    default_text="fp32: 1e-05, fp16: 0.05, int8: 1",
    help="Absolute tolerance of a logit.",
)
@_parity(
    "--rtol",
    type=FromZero,
    default_text="fp32: 0.0001, fp16: 0.01, int8: 0.1",
    help="Relative tolerance of a logit.",
)
@_output(
    "--triton",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Instead of OUTPUT, write the next version of a model in a repository of the Triton Inference Server. DIR is "
    "the model's folder.",
)
@_output("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.version_option(rnn_runtime.__version__, prog_name="rnn-export")
def main(
    checkpoint: Path,
    output: Path | None,
    target: Any,
    graph: Any,
    precision: Any,
    atol: float | None,
    rtol: float | None,
    triton: Path | None,
    quiet: bool,
) -> None:
    """Export CHECKPOINT to an ONNX model at OUTPUT, and verify it.

    onnxruntime runs the exported model at batch sizes from 1 to 257, fewer for large images, and its logits are
    compared with PyTorch's. If one differs by more than the tolerances, the command fails and writes nothing.

    \b
    rnn-export model.pt model.onnx
    rnn-export --target cuda model.pt --triton models/rnn
    """
    from rnn_export.export import export_onnx
    from rnn_export.triton import export_triton

    chosen = None if graph == "auto" else graph
    export = partial(export_triton, checkpoint, triton) if triton else partial(export_onnx, checkpoint, output or "")
    with contextlib.nullcontext() if quiet else _progress() as progress:
        report = export(target=target, graph=chosen, precision=precision, atol=atol, rtol=rtol, progress=progress)
    if not quiet:
        say(f"Wrote {report.output}")
        print_report(report)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], object] | None]:
    """Shows messages in a line of its own on a terminal, which disappears in the end; None elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(printable(text))


def print_report(report: "ExportReport") -> None:
    """Print what was exported and how well it agrees with PyTorch, as two tables on stdout."""
    import sys

    from rich.table import Table

    from rnn_runtime.text import print_table

    spec = report.spec
    facts = Table(show_header=False, title=str(report.output), title_justify="left")
    for name, value in (
        ("cell", f"{spec.cell_name}, {spec.num_layers} layers of {spec.hidden_size}"),
        ("image", str(spec.image_spec)),
        ("classes", str(len(spec.class_names))),
        ("training", report.training),
        ("temperature", "none" if report.temperature is None else f"{report.temperature:.3f}"),
        ("target", report.target),
        ("graph", f"{report.graph}, {report.nodes} nodes"),
        ("precision", report.precision),
        ("opset", str(report.opset)),
        ("file size", f"{report.file_size / 1e6:.2f} MB"),
    ):
        facts.add_row(name, value)
    print_table(facts, sys.stdout)

    parity = report.parity
    sizes = ", ".join(map(str, parity.batch_sizes))
    table = Table(title=f"Parity of logits at batch sizes {sizes}: the largest differences", title_justify="left")
    for column in ("images", "compared", "absolute", "relative", "equal labels"):
        table.add_column(column, no_wrap=column != "images")  # numbers must not be cut off
    for row in parity.rows:
        table.add_section()
        for images, pair, found in (
            (f"{row.count} {row.images}", "onnxruntime - PyTorch", row.pytorch),
            ("", "onnxruntime - float64", row.float64),
            ("", "PyTorch - float64", row.pytorch_float64),
        ):
            table.add_row(images, pair, *_describe_difference(found))
    print_table(table, sys.stdout)
    for row in parity.rows:
        for line in _label_differences(row, spec.class_names):
            click.echo(line)
    click.echo(f"Probabilities from PyTorch's softmax: the largest difference is {parity.max_probabilities:.1e}")
    click.echo(f"Within tolerance (atol {parity.atol:g}, rtol {parity.rtol:g})")


def _describe_difference(found: "Difference") -> tuple[str, str, str]:
    return f"{found.max_absolute:.1e}", f"{found.max_relative:.1e}", f"{100 * found.equal_labels:.2f} %"


def _label_differences(row: "ParityRow", class_names: Sequence[str]) -> Iterator[str]:
    for found in row.label_differences[:_MOST_LABELS_SHOWN]:
        yield (
            f"{row.images} image {found.image}: {class_names[found.pytorch]} in PyTorch, "
            f"{class_names[found.onnxruntime]} in onnxruntime; in float64 their logits are {found.margin:.1e} apart"
            f"{', a tie within rounding' if found.tie else ''}"
        )
    more = len(row.label_differences) - _MOST_LABELS_SHOWN
    if more > 0:
        yield f"... and {more} more {row.images} images with different labels: all are in the model's metadata"
