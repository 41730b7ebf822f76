"""The command `rnn-train`."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import rnn_runtime
from rnn_runtime.command.command import Command, as_options
from rnn_runtime.command.options import Rule, check_rules, is_given, option_name
from rnn_runtime.command.streams import say
from rnn_runtime.model.spec import CELLS, NONLINEARITIES
from rnn_train.settings import CLASS_WEIGHTS, DATASETS, PRESETS, SCHEDULES, TrainSettings, preset_settings

if TYPE_CHECKING:
    from rnn_train.data import DataSource

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_DATA_OPTIONS = ("dataset", "data", "data_root", "class_names", "image_size", "channels", "skip_unreadable")
_RESUME_OPTIONS = (
    "resume",
    "output",
    "epochs",
    "patience",
    "data",
    "data_root",
    "device",
    "checkpoint_every",
    "plots",
    "tensorboard",
)


def _image_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`64` or `48x64` to `(height, width)`; the range is checked by `ImageSpec`."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", value)
    if not found:
        raise click.BadParameter(f"{value!r} is not a size such as 64 or 48x64 (height x width)", ctx, param)
    return int(found[1]), int(found[2] or found[1])


def _setting(name: str, kind: Any, text: str) -> Callable[[Decorated], Decorated]:
    """An option for a field of TrainSettings; what isn't given comes from the preset."""
    flag = "--" + name.replace("_", "-")
    declaration = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    values = [getattr(preset_settings(preset), name) for preset in PRESETS]
    shown = [("on" if value else "off") if kind is bool else value for value in values]
    presets = ", ".join(f"{preset}: {value}" for preset, value in zip(PRESETS, shown, strict=True))
    return click.option(
        declaration, name, type=None if kind is bool else kind, default=None, help=f"{text}  [{presets}]"
    )


def _check(ctx: click.Context) -> None:
    """A checkpoint knows its settings. One given beside it would be ignored, so it is refused."""
    settings = tuple(name for name in ctx.params if name not in _RESUME_OPTIONS)
    allowed = ", ".join(option_name(ctx.command, name) for name in _RESUME_OPTIONS[1:])
    rule = Rule(settings, lambda given: not given["resume"], f"can't be changed by --resume. It goes with: {allowed}")
    check_rules(ctx, [rule])


@click.command(
    cls=Command,
    check=_check,
    extras={"train": ("torch", "torchvision", "sklearn", "matplotlib")},
    imports=("rnn_train.training",),
)
@click.option(
    "--dataset",
    type=click.Choice(DATASETS),
    help="A known data set; downloaded, but for digits, which comes with scikit-learn.  [default: mnist]",
)
@click.option(
    "--data", type=click.Path(path_type=str), help="Your data: a folder of IDX files, or of a folder of images a class."
)
@click.option("--data-root", default="data", show_default=True, help="Where downloads are kept.")
@click.option("--class-names", help="Names for the classes of IDX files, separated by commas.")
@click.option(
    "--image-size",
    callback=_image_size,
    metavar="HEIGHTxWIDTH",
    help="Resize images, such as 64 or 48x64 (height x width).  [default: their own size]",
)
@click.option(
    "--channels", type=click.Choice(["1", "3"]), help="Gray or RGB, for folders of images.  [default: as they are]"
)
@click.option(
    "--skip-unreadable", is_flag=True, help="Leave out image files that can't be decoded, instead of stopping."
)
@click.option(
    "--val-split",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the training images held out; the epoch that is best on them is kept.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="article",
    show_default=True,
    help="Where settings come from that aren't given: article is a small, quick network; accurate takes longer.",
)
@_setting("cell", click.Choice(CELLS), "Kind of recurrent cell.")
@_setting("nonlinearity", click.Choice(NONLINEARITIES), "Of the cell rnn.")
@_setting("hidden_size", click.IntRange(1), "Width of the hidden state.")
@_setting("num_layers", click.IntRange(1), "Recurrent layers.")
@_setting("bidirectional", bool, "Read the rows upwards too.")
@_setting("dropout", click.FloatRange(0, 1, max_open=True), "Between layers and before the linear layer.")
@_setting("epochs", click.IntRange(1), "Passes over the training images.")
@_setting(
    "patience", click.IntRange(0), "Stop after this many epochs without a higher validation accuracy; 0 for never."
)
@_setting("batch_size", click.IntRange(1), "Images a step.")
@_setting("learning_rate", click.FloatRange(0, min_open=True), "Of Adam; the highest, if the schedule changes it.")
@_setting("schedule", click.Choice(SCHEDULES), "Of the learning rate.")
@_setting("weight_decay", click.FloatRange(0), "As in AdamW.")
@_setting("clip_norm", click.FloatRange(0), "Largest norm of the gradient; 0 for any.")
@_setting("label_smoothing", click.FloatRange(0, 1, max_open=True), "Share of the target spread over all classes.")
@_setting("class_weights", click.Choice(CLASS_WEIGHTS), "balanced: classes with few images count as much as others.")
@_setting("normalize", bool, "Pixels to mean 0 and standard deviation 1.")
@_setting("shift", click.IntRange(0), "Move training images at random by up to so many pixels.")
@_setting("flip", bool, "Mirror training images at random; not for writing. accurate does, if they are fashion-mnist.")
@_setting("augment", bool, "For photos: crop, turn and recolour training images at random.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="On the CPU, a run with the same seed and threads (OMP_NUM_THREADS) repeats bit for bit.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train."
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Write a checkpoint after so many steps, too.  [default: after each epoch only]",
)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on where this checkpoint stopped.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The checkpoint to write.  [default: model.pt, or the one resumed]",
)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw curves, confusion matrix and examples.")
@click.option(
    "--tensorboard",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write the curves to this folder, for: tensorboard --logdir DIR",
)
@click.version_option(rnn_runtime.__version__, prog_name="rnn-train")
@click.pass_context
def main(
    ctx: click.Context,
    /,
    preset: str,
    resume: Path | None,
    output: Path | None,
    device: Any,
    checkpoint_every: int | None,
    plots: bool,
    tensorboard: Path | None,
    **options: Any,
) -> None:
    """Train a recurrent image classifier, and write a checkpoint.

    Beside it go metrics.csv, curves.png, confusion_matrix.png and examples.png, in place of those of an
    earlier run: give each run a folder of its own, with --output run1/model.pt.
    Ctrl-C finishes the step, writes the checkpoint and says how to continue.

    \b
    rnn-train                              the article's model on MNIST
    rnn-train --dataset digits --epochs 40
    rnn-train --data photos/ --image-size 64 --val-split 0.2 --preset accurate
    rnn-train --resume model.pt
    """
    from rnn_train import training
    from rnn_train.callbacks import CallbackList, ConsoleCallback, TrainingCallback
    from rnn_train.tensorboard import TensorBoardCallback

    with ExitStack() as stack:
        callback: TrainingCallback = stack.enter_context(ConsoleCallback(as_options))
        if tensorboard:
            callback = CallbackList(stack.enter_context(TensorBoardCallback(tensorboard)), callback)
        if resume:
            training.resume(
                resume,
                output,
                epochs=options["epochs"],
                patience=options["patience"],
                source=_moved_source(resume, ctx, options),
                device=device,
                checkpoint_every=checkpoint_every,
                callback=callback,
                plots=plots,
            )
        else:
            training.train(
                _source(options),
                _settings(preset, options),
                output or "model.pt",
                device=device,
                checkpoint_every=checkpoint_every,
                callback=callback,
                plots=plots,
            )
    say(f"Wrote {output or resume or 'model.pt'}")


def _settings(preset: Any, options: dict[str, Any]) -> TrainSettings:
    names = {field.name for field in fields(TrainSettings)}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    return replace(preset_settings(preset, options["dataset"]), **given)


def _source(options: dict[str, Any]) -> "DataSource":
    from rnn_train.data import DataSource

    names, channels = options["class_names"], options["channels"]
    given = {name: options[name] for name in _DATA_OPTIONS} | {
        "class_names": tuple(name.strip() for name in names.split(",")) if names else None,
        "channels": int(channels) if channels else None,
    }
    return DataSource(**given, val_split=options["val_split"], split_seed=options["seed"])


def _moved_source(checkpoint: Path, ctx: click.Context, options: dict[str, Any]) -> "DataSource | None":
    given = {name: options[name] for name in ("data", "data_root") if is_given(ctx, name)}
    if not given:
        return None
    from rnn_train.checkpoint import Checkpoint

    return replace(Checkpoint.load(checkpoint).source, **given)
