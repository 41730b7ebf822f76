"""The errors that this project raises on purpose: each text says what is wrong, where, and the way out."""


class RnnOnnxError(Exception):
    """Base of all of them. A command prints its text in one line and exits with `exit_code`."""

    exit_code = 2


class ImageError(RnnOnnxError):
    """An image file can't be read or decoded."""


class InputError(RnnOnnxError):
    """The paths given hold no image, or an argument doesn't fit the model."""


class ModelError(RnnOnnxError):
    """A model file is missing, damaged or not one that `rnn-export` wrote."""


class ProviderError(RnnOnnxError):
    """The execution provider, or in training the device, that was asked for can't run here."""

    exit_code = 3


class MissingPackageError(RnnOnnxError):
    """An optional package isn't installed; the text names the extra that brings it."""

    exit_code = 3


class DataError(RnnOnnxError):
    """A data set is missing, damaged or can't be downloaded."""


class CheckpointError(RnnOnnxError):
    """A checkpoint is missing, damaged or not one that `rnn-train` wrote."""


class OutputError(RnnOnnxError):
    """A file can't be written; the text says what is kept."""


class SettingsError(RnnOnnxError):
    """Settings are out of range or contradict each other."""


class ParityError(RnnOnnxError):
    """Two runs of one model differ by more than the tolerance."""

    exit_code = 1
