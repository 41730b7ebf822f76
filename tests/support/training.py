"""Training runs that are watched, stopped at a step, given known accuracies, and compared."""

import copy
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_train import DataSource, TrainSettings, train, training
from rnn_train.callbacks import TrainingCallback
from rnn_train.checkpoint import Checkpoint
from rnn_train.model import ImageRNN
from rnn_train.training import TrainResult
from rnn_train.training_state import OneProcess


def _has_lstm_in_bfloat16() -> bool:
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True


LSTM_IN_BFLOAT16 = pytest.mark.skipif(
    not _has_lstm_in_bfloat16(), reason="torch has no LSTM in bfloat16 for this processor: on x86, it needs AVX-512"
)


def train_quietly(path: Path, source: DataSource, settings: TrainSettings, **others: Any) -> TrainResult:
    """Train on the CPU, without plots."""
    return train(source, settings, path, device="cpu", plots=False, **others)


def resume(
    path: Path, output: Path | None = None, *, source: DataSource | None = None, plots: bool = False, **others: Any
) -> TrainResult:
    """Continue a run from its checkpoint alone, on the CPU.

    Args:
        path: The checkpoint.
        output: What to write; None for the same.
        source: Where the data is now.
        plots: As for `train`.
        others: `epochs` and `patience` replace the run's; all else is passed on.
    """
    saved = Checkpoint.load(path)
    changes = {name: others.pop(name) for name in ("epochs", "patience") if name in others}
    settings = replace(saved.settings, **changes)
    return train(source or saved.source, settings, output or path, resume=path, device="cpu", plots=plots, **others)


class Recorder(TrainingCallback):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int, int]] = []
        self.steps: list[tuple[int, int, int]] = []
        self.losses: list[float] = []
        self.messages: list[str] = []
        self.notes: list[str] = []

    def start(self, epochs: int, steps: int, done: int) -> None:
        self.started.append((epochs, steps, done))

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        self.steps.append((epoch, step, images))
        self.losses.append(loss)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def message(self, text: str) -> None:
        self.messages.append(text)


class StopIn(Recorder):
    """Ends the run in the middle of an epoch, as a failure of the power would: nothing is saved."""

    def __init__(self, epoch: int, step: int = 2) -> None:
        super().__init__()
        self._place = epoch, step

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        super().step(epoch, step, loss, images)
        if (epoch, step) == self._place:
            raise KeyboardInterrupt


class SignalIn(Recorder):
    """Sends this process a signal in a step."""

    def __init__(self, epoch: int, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self._place, self._number = (epoch, step), number

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        super().step(epoch, step, loss, images)
        if (epoch, step) == self._place:
            signal.raise_signal(self._number)  # not Ctrl-C, which may be ignored where the tests run in the background


class KnownAccuracies:
    """Stands in for validation: epochs reach these accuracies, whatever was learned.

    Attributes:
        weights: Those that each epoch ended with.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, labels: NDArray[np.int64], accuracies: Sequence[float]) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self._labels, self._accuracies = labels, list(accuracies)
        monkeypatch.setattr(training, "predict_shared", self._predict_shared)

    def _predict_shared(
        self, model: ImageRNN, images: NDArray[np.uint8], _device: torch.device, _processes: OneProcess
    ) -> NDArray[np.float32]:
        epoch = len(self.weights)
        self.weights.append(copy.deepcopy(model.state_dict()))
        assert len(images) == len(self._labels)
        right = np.arange(len(images)) < round(self._accuracies[epoch] * len(images))
        classes = len(model.spec.class_names)
        return np.eye(classes, dtype=np.float32)[np.where(right, self._labels, (self._labels + 1) % classes)]


def assert_same_run(found: Checkpoint, expected: Checkpoint) -> None:
    """Both hold the same, tensors bit for bit; how fast they were trained, and where their data is, don't count."""
    for name in ("spec", "settings", "weights", "metrics", "samples", "resume_state", "temperature"):
        assert_equal(getattr(found, name), getattr(expected, name), name)


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    """The same values all the way down, tensors bit for bit; speeds don't count."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected.keys() - {"seconds", "images_per_second"}:
            assert_equal(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{place}/{i}")
    else:
        assert found == expected, place
