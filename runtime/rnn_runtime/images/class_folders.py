"""Folders named for classes: how `write_images` names them, and which class a file's folder means."""

import re
from collections.abc import Sequence

from rnn_runtime.errors import InputError


def class_folders(class_names: Sequence[str]) -> list[str]:
    """The folder that holds each class's images: its name, path separators and a leading dot replaced by `_`.

    Raises:
        InputError: two classes would share a folder.
    """
    folders = [re.sub(r"^\.|[/\\\0]", "_", name) for name in class_names]
    for i, folder in enumerate(folders):
        if (first := folders.index(folder)) != i:
            raise InputError(
                f"the classes {class_names[first]!r} and {class_names[i]!r} would share the folder {folder!r}"
            )
    return folders
