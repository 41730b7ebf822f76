"""Files that are complete or absent: written under a temporary name, and renamed at the end."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rnn_runtime.errors import InputError

# What the suffix of a file's name says about its content.
CHECKPOINT_SUFFIXES, MODEL_SUFFIXES = (".pt", ".pth"), (".onnx",)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"})


@contextmanager
def atomic_write(
    path: str | Path, mode: str = "w", *, sync: bool = True, follow_link: bool = True, **options: Any
) -> Iterator[IO[Any]]:
    """Write a file that appears under its name only once it is complete.

    Args:
        path: The final name. A temporary file in the same folder is renamed at the end of the `with` block, or removed
            if the block raises.
        mode: `w` for text or `wb` for bytes.
        sync: Wait until the file is on the disk, so that it survives a power failure.
        follow_link: Where the name is a link, replace its target, and not the link.
        options: Passed to `open`.

    Raises:
        OSError: the folder is missing or can't be written.
    """
    target = Path(os.path.realpath(path) if follow_link else path)
    # Named before it is created, so that it can be removed after an interruption at any moment.
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open(mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # an error of a full disk names no file, and nobody knows the temporary one
        raise


def check_output(output: Path, inputs: Iterable[str | Path]) -> None:
    """Check that a file can be written, and isn't one of the inputs or somebody's image.

    Raises:
        InputError: the folder is missing or can't be written, `output` is one of `inputs`, or a device, pipe or folder,
            or it is named like an image: it might be one of a folder of inputs.
    """
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{output}: named like an image, and none is written here. Choose another name")
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist. Create it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"{output}: the folder {output.parent} can't be written to. Choose another one")
    if os.path.exists(output) and not output.is_file():
        raise InputError(f"{output}: not a regular file. Choose another name")
    if any(os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output) for path in inputs):
        raise InputError(f"{output}: an input of this run, which must not be overwritten. Choose another name")
