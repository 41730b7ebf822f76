"""`rnn-onnx write-images`: a data set's images as PNG files, in a folder per class."""

from pathlib import Path
from typing import Any

import click

from rnn_runtime.command.command import Command
from rnn_runtime.command.options import option_group
from rnn_runtime.errors import Argument, DataError
from rnn_runtime.model.values import Count
from rnn_train.settings import DATASETS

_data = option_group("Data")


@click.command(cls=Command, requires=("torch", "torchvision", "sklearn"), imports=("rnn_train.data",))
@_data(
    "--dataset",
    type=click.Choice(DATASETS),
    metavar="NAME",
    default_text="mnist",
    help=f"A known data set: {', '.join(DATASETS)}.",
)
@_data("--data", type=click.Path(path_type=str), help="The data set's IDX files, .npz or .csv.")
@_data("--data-root", type=click.Path(path_type=str), default="data", help="Folder for downloads.")
@_data("--part", type=click.Choice(["train", "test"]), default="test", help="Which images to write.")
@_data("--limit", type=Count, default_text="all", help="Write only this many images, the first ones.")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
def main(dataset: Any, data: str | None, data_root: str, part: str, limit: int | None, output: Path) -> None:
    """Write a data set's images as PNG files.

    They are named OUTPUT/<class>/<number>.png, as rnn-infer --labels-from-folders takes them.
    """
    from rnn_train.data import DataSource, load_data, write_image_folder

    if output.is_dir() and any(output.iterdir()):
        raise DataError(f"{output}: this folder isn't empty; choose a new one, so that images of two sets don't mix")
    source = DataSource(dataset=dataset, data=data, data_root=data_root)
    loaded = load_data(source)
    images = loaded.train if part == "train" else loaded.test
    if images is None:
        raise DataError(f"{source.name}: this data has no test images. Choose ", Argument("part", "train"))
    write_image_folder(output, images.images[:limit], images.labels[:limit], loaded.class_names)
    click.echo(f"Wrote {len(images.labels[:limit]):,} images of {len(loaded.class_names)} classes to {output}")
