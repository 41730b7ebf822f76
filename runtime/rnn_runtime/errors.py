"""The errors of this project. Each text says what is wrong, where, and what to do."""

from collections.abc import Callable
from typing import NamedTuple


class Argument(NamedTuple):
    """A Python argument that an error speaks of. A command prints its own option instead.

    Attributes:
        name: The argument's name, such as `batch_size`.
        value: The value to give it; None where the error speaks of the argument alone.
    """

    name: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return f"`{self.name}`"
        return f'`{self.name}="{self.value}"`' if isinstance(self.value, str) else f"`{self.name}={self.value}`"


class RnnOnnxError(Exception):
    """Base class of all errors. A command prints the text in one line and exits with `exit_code`.

    Args:
        parts: The text, in parts: `RnnOnnxError("model.onnx: choose ", Argument("provider", "cpu"))`. To say more in
            another error, take over the parts of the first: `type(error)(f"{path}: ", *error.args)`.
    """

    exit_code = 2

    def __init__(self, *parts: str | Argument) -> None:
        super().__init__(*parts)

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, word: Callable[[Argument], str]) -> str:
        """The text, with each argument as `word` gives it."""
        return "".join(word(part) if isinstance(part, Argument) else str(part) for part in self.args)


class RnnOnnxWarning(UserWarning):
    """Something works in another way than it should, and as well. The text says how, and what to do."""


class ImageError(RnnOnnxError):
    """An image file can't be read or decoded."""


class InputError(RnnOnnxError):
    """What is given can't be used: no images, files that don't fit, or a place that can't be written to."""


class ModelError(RnnOnnxError):
    """A model file is missing, damaged or wasn't written by `rnn-export`."""


class ProviderError(RnnOnnxError):
    """The requested execution provider, or device for training, can't run here."""

    exit_code = 3


class MissingPackageError(RnnOnnxError):
    """An optional package isn't installed. The text says how to install it."""

    exit_code = 3


class DataError(RnnOnnxError):
    """A data set is missing, damaged or can't be downloaded."""


class CheckpointError(RnnOnnxError):
    """A checkpoint is missing, damaged or wasn't written by `rnn-train`."""


class StorageError(RnnOnnxError):
    """Object storage doesn't answer, or refuses. The text says what is kept."""


class OutputError(RnnOnnxError):
    """A file can't be written. The text says what is kept."""


class SettingsError(RnnOnnxError):
    """Settings are out of range or contradict each other."""


class ProcessLostError(RnnOnnxError):
    """Another process ended or doesn't answer. The text says how to continue."""

    exit_code = 1


class OtherProcessError(RnnOnnxError):
    """What ended another process, which reports it."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class ParityError(RnnOnnxError):
    """Two runs of one model differ by more than the tolerance."""

    exit_code = 1
