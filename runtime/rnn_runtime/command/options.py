"""Options in groups, and those that several commands have, with the same names, texts and checks."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource
from msgspec import Meta

from rnn_runtime.files.atomic import CHECKPOINT_SUFFIXES, MODEL_SUFFIXES, REMOTE
from rnn_runtime.model.values import BatchSize, Count, DeviceId, Probability, Threads, converted

if TYPE_CHECKING:
    from rnn_runtime.engine import CudaOptions


_ALIKE = 0.7  # of difflib's ratio
URLS = ("http://", "https://", "ftp://")


class Option(click.Option):
    """An option that the help lists in a group, with its default at the end of its text.

    Args:
        arguments: Passed to `click.Option`.
        group: Heading of the group.
        default_text: How the help shows the default; None for its value.
        hint: What to say after the error for a value that doesn't fit; None for nothing. For a choice, the value most
            like it is named anyway.
        options: Passed to `click.Option`. `type` may also be an annotation of `rnn_runtime.model.values`, or a
            `Literal`: the values that the library takes are those that the option takes.
    """

    def __init__(
        self,
        *arguments: Any,
        group: str,
        default_text: str | None = None,
        hint: Callable[[str], str | None] = lambda _: None,
        **options: Any,
    ) -> None:
        options["type"] = _click_type(options.get("type"))
        super().__init__(*arguments, **options)
        self.group, self._hint = group, hint
        default = options.get("default")
        if default_text is None and default is not None:
            default_text = format_value(default)
        notes = [f"default: {default_text}"] if default_text else []
        notes += [f"environment: {self.envvar}"] if self.envvar else []
        self._text = f"{self.help}  [{'; '.join(notes)}]" if notes else self.help or ""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """The value, or an error with a hint."""
        try:
            return super().type_cast_value(ctx, value)
        except click.UsageError as error:
            hint = self._hint(value) if isinstance(value, str) else None
            if hint is None and isinstance(self.type, click.Choice) and isinstance(value, str):
                known = list(map(str, self.type.choices))
                like = get_close_matches(value.lower().replace("_", "-"), known, 1, _ALIKE)
                hint = f"Did you mean {like[0]}?" if like else None
            if hint is None:
                raise
            raise click.UsageError(f"{error.format_message().rstrip('.')}. {hint}", ctx) from None

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's names and its text for the help."""
        record = super().get_help_record(ctx)
        return record and (record[0], self._text)


class _Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A number that an annotation describes."""

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.name = "integer" if get_args(hint)[0] is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that was typed. A default is one already."""
        if not isinstance(value, str):
            return value
        try:
            return converted(value, self.hint, typed=True)
        except ValueError as error:  # in the words of the library
            assert param is not None
            raise click.UsageError(f"{long_name(param)} {error}", ctx) from None


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _Number(kind)
    return click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind


class FileName(click.Path):
    """The name of a file to write, as a `Path`.

    Args:
        example: What a file in a folder could be called, for the hint.
    """

    def __init__(self, example: str) -> None:
        super().__init__(path_type=Path)
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A folder isn't a file, even if it doesn't exist yet."""
        if isinstance(value, str) and (value.endswith(os.sep) or os.path.isdir(value)):
            name = f"{long_name(param)} {value}" if isinstance(param, click.Option) else value
            raise click.UsageError(f"{name} is a folder. Name a file in it: {os.path.join(value, self._example)}", ctx)
        return super().convert(value, param, ctx)


class PathOrStorage(click.Path):
    """A path of this machine, as a `Path`, or a name in object storage, which stays text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A name in object storage isn't looked up on the disk."""
        return value if isinstance(value, str) and value.startswith(REMOTE) else super().convert(value, param, ctx)


def format_value(value: object) -> str:
    """A value as help and errors show it: `on`, `0.1`, `48x64`, `ant,bee`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ("," if any(isinstance(part, str) for part in value) else "x").join(map(str, value))
    return str(value)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option_group(name: str) -> Callable[..., Decorator]:
    """Make a decorator like `click.option` for the options of a group."""
    return partial(click.option, cls=Option, group=name)


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def given_name(ctx: click.Context, name: str) -> str:
    """The option of a parameter for an error: `--batch-size`, or `--no-tf32` where that was given."""
    option = next(param for param in ctx.command.params if param.name == name)
    return option.secondary_opts[0] if ctx.params[name] is False and option.secondary_opts else long_name(option)


def long_name(param: click.Parameter) -> str:
    """The long form of an option: `--batch-size`."""
    return max(param.opts, key=len)


_input, _model, _output, _cuda = map(option_group, ("Input", "Model and provider", "Output", "CUDA"))

recursive = _input("-r", "--recursive", is_flag=True, help="Search subfolders too.")
invert = _input("--invert", is_flag=True, help="Exchange light and dark in all images, before they are classified.")
null = _input("-0", "--null", is_flag=True, help="Names on standard input end with a null character (find -print0).")

model = _model(
    "-m",
    "--model",
    type=click.Path(path_type=Path),
    default="model.onnx",
    envvar="RNN_MODEL",
    help="The model that rnn-export wrote.",
)
provider = _model(
    "-p",
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    help="Execution provider. cuda runs on CUDA or fails; auto takes CUDA where it runs, else the CPU.",
)
batch_size = _model("-b", "--batch-size", type=BatchSize, default=256, help="Images per batch.")
threads = _model(
    "-j",
    "--threads",
    type=Threads,
    default_text="one per core, or per 256 MiB of memory if these are fewer",
    help="Number of CPU threads.",
)

top_k = _output("-k", "--top-k", type=Count, default=1, help="Show this many of the likeliest classes per image.")
min_probability = _output(
    "--min-probability",
    type=Probability,
    metavar="P",
    help="Leave the label empty where the probability is lower; the likeliest class is in a column guess.",
)
checkpoint_column = _output(
    "--checkpoint-column", is_flag=True, help="Repeat the SHA-256 of the model's checkpoint in every row."
)

csv_safe = _output(
    "--csv-safe",
    is_flag=True,
    help="In CSV and TSV, put an apostrophe before paths and classes that a spreadsheet would take for a formula.",
)
unlike = _output(
    "--unlike",
    type=click.Choice(["warn", "column", "error"]),
    default="warn",
    help="Images unlike the training images: count them, also name the difference in a column unlike, or give them "
    "that as an error instead of a label.",
)

device_id = _cuda(
    "--device-id",
    type=DeviceId,
    default=0,
    help="Number of the GPU, as rnn-onnx doctor lists them.",
)
gpu_memory_limit = _cuda(
    "--gpu-memory-limit",
    type=Annotated[int, Meta(ge=1, le=2**43 - 1)],
    metavar="MIB",
    default_text="no limit",
    help="Memory for weights and intermediate results, in MiB.",
)
tf32 = _cuda(
    "--tf32/--no-tf32",
    default=False,
    help="Compute float32 products in TensorFloat-32: faster, and less like PyTorch.",
)


def cuda(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for CUDA, whose values are the arguments of `cuda_options`."""
    return device_id(gpu_memory_limit(tf32(function)))


def cuda_options(device_id: int, gpu_memory_limit: int | None, tf32: bool = False) -> "CudaOptions":
    """What the options for CUDA say."""
    from rnn_runtime.engine import CudaOptions

    return CudaOptions(device_id, None if gpu_memory_limit is None else gpu_memory_limit << 20, tf32)


def check_cuda(ctx: click.Context) -> None:
    """Check that no option for CUDA is given with `--provider cpu`.

    Raises:
        click.UsageError: one is.
    """
    if ctx.params.get("provider") == "cpu":
        for name in ("device_id", "gpu_memory_limit", "tf32"):
            if is_given(ctx, name):
                does = "does nothing on the CPU. Leave it out, or choose --provider cuda or auto"
                raise click.UsageError(f"{given_name(ctx, name)} {does}")


def check_paths(ctx: click.Context) -> None:
    """Check that PATHS can be images, and are read from standard input if --null is given.

    Raises:
        click.UsageError: one is a model or a checkpoint, or --null does nothing.
    """
    for path in ctx.params["paths"]:
        if path.startswith(URLS):
            raise click.UsageError(f"{path}: nothing is downloaded from a web site. Download it first: curl -O {path}")
        if path.endswith(MODEL_SUFFIXES) and not Path(path).is_dir():
            raise click.UsageError(f"{path} is a model, not an image. Did you mean --model {path}?")
        if path.endswith(CHECKPOINT_SUFFIXES) and not Path(path).is_dir():
            raise click.UsageError(
                f"{path} is a checkpoint, not an image. Export it with: rnn-export {path} model.onnx, and then use "
                "--model model.onnx"
            )
    if ctx.params["null"] and "-" not in ctx.params["paths"]:
        raise click.UsageError("--null is for names on standard input. Add -, or leave it out")


def check_results_name(output: str | Path, *, remote: bool = False) -> None:
    """Check that `--output` is a name for results.

    Args:
        output: Its value.
        remote: Whether it may be in object storage.

    Raises:
        click.UsageError: it isn't.
    """
    if str(output) == "-":
        raise click.UsageError("--output takes a file name. For standard output, leave it out")
    if isinstance(output, str) and not remote:
        raise click.UsageError(
            "--output is in object storage, which only gets the parts of --shard. Choose a file on a disk"
        )
    if Path(output).suffix in (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES):
        raise click.UsageError(
            "--output is named like a checkpoint or model. Choose a name for results, such as results.csv"
        )
