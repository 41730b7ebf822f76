"""The command `rnn-train`."""

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click

import rnn_runtime
from rnn_runtime.command.command import Command, print_line, say
from rnn_runtime.command.options import URLS, Decorator, FileName, format_value, given_name, is_given, option_group
from rnn_runtime.files.atomic import CHECKPOINT_SUFFIXES, IMAGE_SUFFIXES, MODEL_SUFFIXES
from rnn_runtime.model.spec import Fit
from rnn_runtime.model.values import Count, CountFromZero, Share
from rnn_runtime.text import one_line
from rnn_train.settings import AUGMENT_PARTS, DATASETS, PRESETS, TrainSettings, preset_settings

if TYPE_CHECKING:
    from rnn_train.data import DataSource

_data, _model, _optimization, _augmentation, _run = map(
    option_group, ("Data", "Model", "Optimization", "Augmentation", "Run and checkpoint")
)


def _image_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`64` or `48x64` to `(height, width)`; the range is checked by `ImageSpec`."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", value)
    if not found:
        raise click.BadParameter(f"{value!r} is not a size such as 64 or 48x64 (height x width)", ctx, param)
    return int(found[1]), int(found[2] or found[1])


def _share_hint(value: str) -> str | None:
    """For `20` and `20%`."""
    found = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%?", value)
    return f"{found[1]} % is {float(found[1]) / 100:g}" if found and float(found[1]) >= 1 else None


def _device_hint(value: str) -> str | None:
    """For `gpu` and `cuda:1`."""
    if value.lower() in ("gpu", "mps"):
        return "GPUs of NVIDIA are cuda"
    found = re.fullmatch(r"(?:cuda:)?(\d+)", value.lower())
    return f"Choose a GPU by its number: CUDA_VISIBLE_DEVICES={found[1]} rnn-train --device cuda" if found else None


def _dataset_hint(value: str) -> str | None:
    """For `emnist`."""
    parts = "emnist-letters has letters, emnist-balanced digits and letters"
    return f"EMNIST has several parts: {parts}" if value.lower().startswith("emnist") else None


def _class_names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`cat,dog` to `("cat", "dog")`; the names are checked by `ModelSpec`."""
    return tuple(name.strip() for name in value.split(",")) if value else None


def _augment(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`rotation,scale` to `("rotation", "scale")`; the parts are checked by `TrainSettings`."""
    if value == "":
        raise click.UsageError(
            "--augment needs its parts: --augment rotation,scale for signs, or --augment crop,rotation,color for photos"
        )
    return tuple(value.split(",")) if value else None


_FIELDS = get_type_hints(TrainSettings, include_extras=True)


def _setting(group: Callable[..., Decorator], name: str, text: str, *short: str) -> Decorator:
    """An option for a field of TrainSettings. Without it, the value comes from the preset."""
    kind = _FIELDS[name]
    flag = "--" + name.replace("_", "-")
    declaration = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    first, *others = [format_value(getattr(preset_settings(preset), name)) for preset in PRESETS]
    presets = [f"{preset}: {value}" for preset, value in zip(PRESETS[1:], others, strict=True) if value != first]
    return group(
        *short,
        declaration,
        name,
        type=None if kind is bool else kind,
        default=None,
        default_text="; ".join([first, *presets]),
        help=text,
    )


# Options of other tools, and what they are called here.
_OTHER_NAMES = {
    "--lr": "--learning-rate",
    "--batch": "--batch-size",
    "--hidden": "--hidden-size",
    "--hidden-dim": "--hidden-size",
    "--layers": "--num-layers",
    "--model": "--cell",
    "--wd": "--weight-decay",
    "--early-stopping": "--patience",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--img-size": "--image-size",
    "--imgsz": "--image-size",
    "--size": "--image-size",
    "--val": "--val-split",
    "--data-dir": "--data",
    "--checkpoint": "--resume, or --output",
    "--name": "--output",
}


def _check(ctx: click.Context) -> None:
    if str(ctx.params["resume"]).startswith("--"):
        raise click.UsageError("--resume needs the checkpoint to continue: --resume model.pt, or --resume auto")
    data = ctx.params["data"]
    if data is not None and data.startswith(URLS):
        raise click.UsageError(f"--data {data}: nothing is downloaded from a web site. Download and unpack it first")
    for word in ctx.args:  # no arguments are declared, so that these can get a hint
        if word.isdigit() and is_given(ctx, "image_size"):
            height = ctx.params["image_size"][0]
            raise click.UsageError(
                f"Got unexpected extra argument ({word}). Did you mean --image-size {height}x{word}?"
            )
        option = "--dataset" if word in DATASETS else "--resume" if word.endswith(CHECKPOINT_SUFFIXES) else "--data"
        raise click.UsageError(f"Got unexpected extra argument ({word}). Did you mean {option} {word}?")
    if ctx.params["dataset"] == "digits":
        for name in ("skip_unreadable", "data_root"):
            if is_given(ctx, name):
                raise click.UsageError(f"{given_name(ctx, name)} does nothing with --dataset digits. Leave it out")
    output = ctx.params["output"]
    if output is not None and (
        str(output) == "-" or output.suffix.lower() in (*MODEL_SUFFIXES, *IMAGE_SUFFIXES, ".csv", ".html")
    ):
        raise click.UsageError(f"--output is the checkpoint to write, not {output}. Choose a name such as model.pt")


def _is_reported_elsewhere(error: BaseException) -> bool:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from rnn_train.processes import is_reported_elsewhere  # of those that torchrun started

    return is_reported_elsewhere(error)


@click.command(
    cls=Command,
    check=_check,
    reported_elsewhere=_is_reported_elsewhere,
    context_settings={"allow_extra_args": True},
    other_names=_OTHER_NAMES,
    requires=("torch", "torchvision", "sklearn", "matplotlib"),
    imports=("rnn_train.training",),
)
@_data(
    "--dataset",
    type=click.Choice(DATASETS),
    metavar="NAME",
    hint=_dataset_hint,
    default_text="mnist",
    help=f"A known data set: {', '.join(DATASETS)}. All but digits, which comes with scikit-learn, are downloaded.",
)
@_data(
    "--data",
    type=click.Path(path_type=str),
    help="Your data: a folder with a folder of images per class, or with train/, val/ and test/; a folder of IDX "
    "files; a file .npz with x_train, y_train, x_test, y_test, or .csv with label,pixel0,pixel1,...",
)
@_data(
    "--labels",
    type=click.Path(path_type=str),
    metavar="FILE",
    help="A CSV with the columns path and label: the classes of the image files in the folder --data.",
)
@_data("--data-root", type=click.Path(path_type=str), default="data", help="Folder for downloads.")
@_data("--class-names", callback=_class_names, metavar="NAME,NAME,...", help="Names for classes that are numbers.")
@_data(
    "--image-size",
    callback=_image_size,
    metavar="HEIGHTxWIDTH",
    default_text="their own size",
    help="Resize images: 64, or 48x64.",
)
@_data(
    "--channels",
    type=click.Choice(["1", "3"]),
    callback=lambda _ctx, _param, value: value and int(value),
    default_text="as the images are",
    help="Read folders of images as gray (1) or RGB (3).",
)
@_data(
    "--depth-range",
    metavar="MIN-MAX|full|auto",
    default_text="what a file's bits can hold",
    help="Values of black and white in gray images of more than 8 bits, for training and serving. auto: those of the "
    "training images. full: 0-65535.",
)
@_data(
    "--fit",
    type=Fit,
    default_text="glyph for mnist, kmnist and emnist, else stretch",
    help="How images become the model's input, in training and serving. stretch: resize them. pad, crop: keep their "
    "aspect ratio. glyph: one digit, character or symbol per image is made light on dark, scaled and centered.",
)
@_data(
    "--background",
    metavar="COLOR",
    default_text="found in the images",
    help="What is behind transparent pixels, such as white or #ffe0b0.",
)
@_data("--skip-unreadable", is_flag=True, help="Leave out image files that can't be decoded, instead of stopping.")
@_data(
    "--val-split",
    type=Share,
    hint=_share_hint,
    default=0.0,
    help="Hold out this share of the training images for validation. The best epoch on them is kept.",
)
@_model(
    "--preset",
    type=click.Choice(PRESETS),
    default="article",
    help="Defaults of the options below. article is small and quick; accurate takes longer.",
)
@_setting(_model, "cell", "Kind of recurrent cell.")
@_setting(_model, "nonlinearity", "Nonlinearity of --cell rnn.")
@_setting(_model, "hidden_size", "Width of the hidden state.")
@_setting(_model, "num_layers", "Number of recurrent layers.")
@_setting(_model, "bidirectional", "Also read the rows from bottom to top.")
@_setting(_model, "dropout", "Dropout between layers and before the linear layer.")
@_setting(_model, "normalize", "Scale pixels to mean 0 and standard deviation 1.")
@_setting(_optimization, "epochs", "Passes over the training images.")
@_setting(
    _optimization,
    "patience",
    "Stop after this many epochs without a higher validation accuracy; 0 for never.",
)
@_setting(_optimization, "batch_size", "Images per step.", "-b")
@_setting(
    _optimization,
    "learning_rate",
    "Learning rate of Adam; with one-cycle, the highest.",
)
@_setting(_optimization, "schedule", "Schedule of the learning rate.")
@_setting(_optimization, "weight_decay", "Decoupled weight decay, as in AdamW.")
@_setting(_optimization, "clip_norm", "Largest norm of the gradient; 0 for no limit.")
@_setting(_optimization, "label_smoothing", "Label smoothing.")
@_setting(
    _optimization,
    "class_weights",
    "Weights of the classes in the loss; balanced: rare classes count as much as frequent ones.",
)
@_setting(_optimization, "amp", "Compute steps in bfloat16 (autocast), for CUDA; slower on CPUs.")
@_setting(_augmentation, "shift", "Shift training images at random by up to this many pixels.")
@_setting(
    _augmentation,
    "flip",
    "Mirror training images at random; not for writing. accurate does it for fashion-mnist.",
)
@_augmentation(
    "--augment",
    is_flag=False,
    flag_value="",
    callback=_augment,
    metavar="PART,PART,...",
    default_text="none",
    help=f"Change training images at random: {', '.join(AUGMENT_PARTS)}. crop is for photos.",
)
@_setting(_run, "calibrate", "With validation images: calibrate the probabilities, by one temperature.")
@_run(
    "--seed",
    type=CountFromZero,
    default=0,
    help="Seed. On the CPU, the same seed and thread count (OMP_NUM_THREADS) give bit-identical weights.",
)
@_run(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    hint=_device_hint,
    default="auto",
    help="Where to train.",
)
@_run(
    "-o",
    "--output",
    type=FileName("model.pt"),
    default_text="model.pt, or the resumed one",
    help="Checkpoint to write.",
)
@_run(
    "--resume",
    metavar="CHECKPOINT|auto",
    type=click.Path(path_type=Path),
    help="Continue from this checkpoint. auto: from --output if it exists, else start.",
)
@_run(
    "--checkpoint-every",
    type=Count,
    metavar="STEPS",
    help="Also save a checkpoint every STEPS steps, so that a crash costs at most as many.",
)
@_run(
    "--tensorboard",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write the curves to this folder, for: tensorboard --logdir DIR",
)
@_data("--check-data", is_flag=True, help="Only read the data, and say what of it will disappoint; train nothing.")
@_run("--plots/--no-plots", default=True, help="Write report.html and examples.png.")
@_run("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.version_option(rnn_runtime.__version__, prog_name="rnn-train")
@click.pass_context
def main(
    ctx: click.Context,
    /,
    preset: Any,
    resume: Path | None,
    output: Path | None,
    device: Any,
    checkpoint_every: int | None,
    plots: bool,
    tensorboard: Path | None,
    quiet: bool,
    check_data: bool,
    **options: Any,
) -> None:
    """Train a recurrent image classifier, and write a checkpoint.

    report.html, metrics.csv and examples.png are written to the same folder, and replace those of an earlier run.
    Give each run a folder of its own: --output run1/model.pt.
    Ctrl-C finishes the step, writes the checkpoint and says how to continue.
    With --resume, other options must have the values that the run was started with. Only --epochs, --patience
    and options that don't change the result may differ.

    \b
    rnn-train                              the article's model on MNIST
    rnn-train --dataset digits --epochs 40
    rnn-train --data photos/ --image-size 64 --val-split 0.2 --preset accurate
    rnn-train --resume model.pt
    rnn-train --data photos/ --resume auto   the same line starts and continues
    """
    from rnn_train.callbacks import CallbackList, ConsoleCallback, TrainingCallback
    from rnn_train.data import DataSource
    from rnn_train.tensorboard import TensorBoardCallback
    from rnn_train.training import train

    if resume is None or str(resume) == "auto":
        source = DataSource(**_values(DataSource, options), split_seed=options["seed"])
        settings = replace(preset_settings(preset, source.dataset), **_values(TrainSettings, options))
        output = output or Path("model.pt")
    else:
        source, settings = _continued(ctx, resume, preset, options)
        output = output or resume
    if check_data:
        _check_data(source)
        return
    with ExitStack() as stack:
        callback = TrainingCallback() if quiet else stack.enter_context(ConsoleCallback())
        if tensorboard:
            callback = CallbackList(stack.enter_context(TensorBoardCallback(tensorboard)), callback)
        result = train(
            source,
            settings,
            output,
            resume=resume,
            device=device,
            checkpoint_every=checkpoint_every,
            callback=callback,
            plots=plots,
        )
    if result.written and not quiet:
        say(f"Wrote {output}")


def _check_data(source: "DataSource") -> None:
    """Print what the data is, and what of it will disappoint."""
    from rnn_train.data import load_data
    from rnn_train.data_checks import check_data

    data = load_data(source)
    findings = check_data(data)
    for text in (f"{source.name}: {data.describe()}", *data.notes, *(finding.text for finding in findings)):
        print_line(one_line(text))
    if not findings:
        print_line("Nothing in it stands out")


def _continued(
    ctx: click.Context, checkpoint: Path, preset: Any, options: dict[str, Any]
) -> "tuple[DataSource, TrainSettings]":
    """The data and settings of a checkpoint, with those that the command line gives."""
    from rnn_train.checkpoint import Checkpoint

    saved = Checkpoint.load(checkpoint)
    given = {name: value for name, value in options.items() if is_given(ctx, name)}
    source = replace(saved.source, **_values(type(saved.source), given))
    settings = saved.settings
    if is_given(ctx, "preset"):
        kept = {name: getattr(settings, name) for name in ("epochs", "patience", "seed")}
        settings = replace(preset_settings(preset, source.dataset), **kept)
    return source, replace(settings, **_values(TrainSettings, given))


def _values(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are fields of a class and have a value."""
    return {field.name: options[field.name] for field in fields(kind) if options.get(field.name) is not None}
