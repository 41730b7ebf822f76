"""Class names as folder names: which folder a class gets, and which class an image's folder stands for."""

import os
import re
from collections.abc import Sequence

from rnn_runtime.errors import InputError


def class_folders(class_names: Sequence[str]) -> list[str]:
    """The folder name of each class: the class name with path separators and a leading dot replaced by `_`.

    Raises:
        InputError: Two classes would share a folder.
    """
    folders = [re.sub(r"^\.|[/\\\0]", "_", name) for name in class_names]
    for i, folder in enumerate(folders):
        if (first := folders.index(folder)) != i:
            raise InputError(
                f"the classes {class_names[first]!r} and {class_names[i]!r} would share the folder {folder!r}"
            )
    return folders


class FolderLabels:
    """Finds the class that an image's folder stands for.

    Args:
        class_names: The known classes.

    Raises:
        InputError: Two classes would share a folder.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._labels = dict(zip(class_folders(class_names), class_names, strict=True))

    def label_of(self, path: str) -> str | None:
        """The class of the nearest folder above a file that is a class folder; None if there is none."""
        folders = reversed(os.path.dirname(os.path.abspath(path)).split(os.sep))
        return next((self._labels[folder] for folder in folders if folder in self._labels), None)
