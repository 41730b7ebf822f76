"""Any folder of images, file by file: our pixels beside Pillow's, refusals by reason, time and memory."""

import io
import resource
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rnn_runtime.errors import ImageError, SettingsError
from rnn_runtime.images.decode import decode_image, image_shape, read_bytes
from rnn_runtime.images.find import find_images
from rnn_runtime.model.spec import ImageSpec

_NAMED = 3  # files that the report names of each kind


@dataclass(slots=True)
class Comparison:
    """What came out.

    Attributes:
        equal: Files whose pixels are Pillow's.
        differences: The largest difference between pixels, 1 to 255, of other files that both read.
        refused: Files that only Pillow reads, by our reason.
        not_pillow: Files that only we read, by Pillow's reason.
        neither: Files that neither reads, by our reason.
        too_large: Files larger than a model's input may be.
        seconds: What ours and Pillow's decoding took.
    """

    equal: int = 0
    differences: dict[str, int] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    not_pillow: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    neither: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    too_large: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def compare_folder(folder: Path) -> Comparison:
    """Decode each image of a folder and its subfolders at its own size, here and by Pillow.

    Raises:
        InputError: the folder can't be listed, or has no images.
    """
    found = Comparison()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in find_images([str(folder)], recursive=True):
            _compare(path, found)
    return found


def _compare(path: str, found: Comparison) -> None:
    ours = theirs = None
    problem = reason = ""
    start = time.perf_counter()
    try:
        data = read_bytes(path)
        spec = ImageSpec(*image_shape(data))
        ours = decode_image(data, spec).pixels
    except SettingsError:
        found.too_large += 1
        return
    except ImageError as error:
        problem = str(error)
    found.seconds["ours"] += time.perf_counter() - start
    start = time.perf_counter()
    try:
        theirs = _decode_by_pillow(path, ours.shape[2] if ours is not None else 3)
    except Exception as error:  # of any kind, for damaged files
        reason = type(error).__name__
    found.seconds["Pillow"] += time.perf_counter() - start
    if ours is None:
        (found.refused if theirs is not None else found.neither)[problem].append(path)
    elif theirs is None:
        found.not_pillow[reason].append(path)
    elif ours.shape != theirs.shape:
        found.differences[path] = 255
    elif largest := int(np.abs(ours.astype(np.int16) - theirs).max()):
        found.differences[path] = largest
    else:
        found.equal += 1


def _decode_by_pillow(path: str, channels: int) -> NDArray[np.uint8]:
    # Of a TIFF that it maps into memory, which it opens by name for, Pillow 13 turns some orientations twice.
    with Image.open(io.BytesIO(read_bytes(path))) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def describe(found: Comparison) -> Iterator[str]:
    """The report, line by line."""
    yield f"{found.equal:,} files have Pillow's pixels"
    if found.differences:
        worst = sorted(found.differences, key=lambda path: -found.differences[path])
        middle = found.differences[worst[len(worst) // 2]]
        yield f"{len(worst):,} files differ; median of the largest difference {middle} of 255"
        yield from (f"  {found.differences[path]}: {path}" for path in worst[:_NAMED])
    for what, reasons in (
        ("are refused here, and read by Pillow", found.refused),
        ("are read here, and refused by Pillow", found.not_pillow),
        ("are refused by both", found.neither),
    ):
        if reasons:
            yield f"{sum(map(len, reasons.values())):,} files {what}"
        for reason, paths in sorted(reasons.items(), key=lambda item: -len(item[1])):
            yield f"  {len(paths):,}: {reason} ({', '.join(paths[:_NAMED])}{', ...' if len(paths) > _NAMED else ''})"
    if found.too_large:
        yield f"{found.too_large:,} files are larger than a model's input may be, and weren't compared"
    yield f"ours {found.seconds['ours']:.2f} s, Pillow {found.seconds['Pillow']:.2f} s"
    yield f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Compare our pixels of all images in FOLDER with Pillow's."""
    for line in describe(compare_folder(folder)):
        sys.stdout.write(line.encode(errors="backslashreplace").decode() + "\n")


if __name__ == "__main__":
    main()
