"""The checkpoint, `model.pt`: weights, the model's description, and what resuming needs.

It is a dictionary of tensors and plain values, read by `torch.load(weights_only=True)`, which never runs code from the
file.
"""

import hashlib
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
from torch import Tensor

from rnn_runtime.errors import CheckpointError, SettingsError
from rnn_runtime.files.atomic import MODEL_SUFFIXES, atomic_write
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import Finite, check_argument
from rnn_runtime.text import shorten
from rnn_train.data import DataSource
from rnn_train.evaluation import LARGEST_TEMPERATURE, LEAST_TEMPERATURE
from rnn_train.model import ImageRNN
from rnn_train.settings import TrainSettings

FORMAT = "rnn-onnx checkpoint"
FORMAT_VERSION = 10


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `rnn-train` writes.

    Attributes:
        spec: The model's description.
        weights: The weights to use: those of the epoch with the highest validation accuracy, or of the last.
        settings: The settings of the run.
        source: The data it was trained on.
        metrics: Plain values: `epochs`, one dictionary per epoch; once training is done also `kept_epoch`, and for
            each of the splits `test` and `validation` that there is, `test_images` and, from 0 to 1, `test_accuracy`,
            `test_largest_class_share`, `test_balanced_accuracy`, `test_macro_f1`, `test_top_3_accuracy` and
            `test_top_5_accuracy` (with more classes than that), `test_calibration_error`, and with a temperature
            `test_calibration_error_before`.
        samples: Some images that weren't trained on, uint8 `(samples, height, width, channels)`.
        resume_state: Epochs and steps done, the weights in training, the states of optimizer and random number
            generators, and the SHA-256 of the data.
        temperature: The divisor of the logits before softmax, for calibrated probabilities; None for softmax alone:
            before training is done, or where none could be fitted.
    """

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    settings: TrainSettings
    source: DataSource
    metrics: Mapping[str, Any]
    samples: Tensor
    resume_state: Mapping[str, Any]
    temperature: float | None = None

    def save(self, path: str | Path) -> None:
        """Write it atomically: `path` is always a complete checkpoint, this one or the last.

        Raises:
            OSError: the folder is missing or can't be written to.
        """
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.spec.to_dict(),
            "weights": dict(self.weights),
            "settings": self.settings.to_dict(),
            "source": self.source.to_dict(),
            "metrics": dict(self.metrics),
            "samples": self.samples,
            "resume_state": dict(self.resume_state),
            "temperature": self.temperature,
        }
        # By way of memory: when a file can't be written completely, torch may raise anything.
        archive = io.BytesIO()
        torch.save(content, archive)
        with atomic_write(path, "wb") as file:
            file.write(archive.getbuffer())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a checkpoint. Its tensors are on the CPU.

        Raises:
            CheckpointError: it is missing, damaged, not written by `rnn-train`, or of an unknown format version.
        """
        check_argument("path", path, Path)
        try:
            _check_archive(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about foreign files, which are errors below
                content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file. Write a checkpoint with: rnn-train") from None
        except IsADirectoryError:
            raise CheckpointError(f"{path}: a folder, not a checkpoint") from None
        except CheckpointError as error:
            raise CheckpointError(f"{path}: not a checkpoint that rnn-train wrote: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can make it raise anything
            if Path(path).suffix in MODEL_SUFFIXES:
                raise CheckpointError(
                    f"{path}: an exported model, not a checkpoint. Name the file that rnn-train wrote"
                ) from None
            raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
        if not isinstance(content, dict) or not isinstance(content.get("format"), str) or content["format"] != FORMAT:
            raise CheckpointError(f"{path}: not a checkpoint that rnn-train wrote")
        version = content.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: a checkpoint of another rnn-onnx: format version {shorten(repr(version), 40)}, and this one "
                f"reads {FORMAT_VERSION}. Train again, or upgrade rnn-onnx"
            )
        try:
            checkpoint = cls(
                ModelSpec.from_dict(content["model"]),
                content["weights"],
                TrainSettings.from_dict(content["settings"]),
                DataSource.from_dict(content["source"]),
                content["metrics"],
                content["samples"],
                content["resume_state"],
                content["temperature"],
            )
            checkpoint._check()
        except KeyError as error:
            raise CheckpointError(f"{path}: a damaged checkpoint: it lacks {error}") from None
        except (SettingsError, CheckpointError) as error:
            raise CheckpointError(f"{path}: a damaged checkpoint: {error}") from None
        except Exception as error:  # for example, when another error's text has a number too long to print
            raise CheckpointError(f"{path}: a damaged checkpoint ({type(error).__name__})") from None
        return checkpoint

    def build_model(self) -> ImageRNN:
        """The trained network, on the CPU, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and a run must not notice
            model = ImageRNN(self.spec)
        model.load_state_dict(self.weights)
        return model.eval()

    def _check(self) -> None:
        check_weights(self.weights, self.spec)
        try:
            msgspec.convert(self.metrics, dict[str, Finite | list[dict[str, Finite]]])
            msgspec.convert(self.metrics["epochs"], list)
        except msgspec.ValidationError:
            raise CheckpointError("its metrics must be finite numbers, and a row of them for each epoch") from None
        count = len(self.samples) if isinstance(self.samples, Tensor) and self.samples.ndim else 0
        if not count or not is_like(
            self.samples, torch.empty(count, *self.spec.image_spec.shape, dtype=torch.uint8, device="meta")
        ):
            raise CheckpointError("its sample images don't fit the model")
        if not isinstance(self.resume_state, dict):
            raise CheckpointError("its resume_state must be a dictionary")
        found = self.temperature
        if found is not None and (type(found) is not float or not LEAST_TEMPERATURE <= found <= LARGEST_TEMPERATURE):
            raise CheckpointError(f"its temperature must be from {LEAST_TEMPERATURE} to {LARGEST_TEMPERATURE}")


def check_weights(weights: object, spec: ModelSpec) -> None:
    """Check that weights from a file are those of a model.

    Raises:
        CheckpointError: one is missing, unknown, or of another shape or dtype.
    """
    with torch.device("meta"):  # shapes without memory, however large they claim to be
        expected = ImageRNN(spec).state_dict()
    if not isinstance(weights, dict) or weights.keys() != expected.keys():
        raise CheckpointError("its weights are not those of the model it describes")
    for name, tensor in expected.items():
        if not is_like(weights[name], tensor):
            raise CheckpointError(f"the weight {name} is not float32 of shape {tuple(tensor.shape)}")


def is_like(found: object, expected: Tensor) -> bool:
    """Whether a value from a file is a plain tensor with the shape and dtype of another.

    Plain means contiguous on the CPU: a view that repeats its elements could claim any size.
    """
    return (
        type(found) is Tensor
        and found.layout == torch.strided
        and found.device.type == "cpu"
        and not found.requires_grad
        and found.shape == expected.shape
        and found.dtype == expected.dtype
        and found.is_contiguous()
    )


def _check_archive(path: str | Path) -> None:
    """Raise for an archive that is damaged or could unpack to more than its size, which torch would read anyway."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):  # reading a pipe would wait for its writer
        raise CheckpointError("not a regular file")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError("an archive that is compressed")
        if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
            raise CheckpointError("an archive whose parts are larger than the whole")
        if damaged := archive.testzip():
            raise CheckpointError(f"damaged: the checksum of {damaged} is not the one it was written with")


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
