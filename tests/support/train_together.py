"""A program for torchrun: trains by Python, and writes down what each process saw.

Arguments: a folder of IDX files, and a folder to write to.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rnn_runtime.errors import OtherProcessError, SettingsError
from rnn_runtime.interruption import RunInterruptedError
from rnn_train import DataSource, TrainSettings
from rnn_train.processes import join_processes
from rnn_train.training_state import TrainingState
from tests.support.training import Recorder, SignalIn, resume, train_quietly

# The last batch of 60 images has 4.
SMALL = TrainSettings(hidden_size=8, learning_rate=0.01, epochs=2, batch_size=7)
RUNS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "one image in the last batch": {"batch_size": 59},
    "lstm": {"cell": "lstm", "bidirectional": True, "schedule": "one-cycle"},
    "weighted": {"class_weights": "balanced", "label_smoothing": 0.1, "normalize": True},
    "clipped": {"cell": "gru", "clip_norm": 0.1, "weight_decay": 0.01},
}


def compared(source: DataSource, folder: Path) -> dict[str, list[float]]:
    """The losses of all steps of `RUNS`."""
    losses = {}
    for name, changes in RUNS.items():
        recorder = Recorder()
        train_quietly(folder / name / "model.pt", source, replace(SMALL, **changes), callback=recorder)
        losses[name] = recorder.losses
    return losses


def _stopped_and_resumed(source: DataSource, path: Path) -> tuple[str, list[float]]:
    """The error of a run that is stopped within its second epoch, and the losses after it is resumed."""
    recorder = Recorder()
    try:
        train_quietly(path, source, SMALL, callback=SignalIn(2, 2))
    except (RunInterruptedError, OtherProcessError) as error:
        text = str(error)
    resume(path, callback=recorder)
    return text, recorder.losses


def _diverged(source: DataSource, path: Path) -> str:
    """The error of a run whose weights soon are beyond all bounds, in all processes at once."""
    try:
        train_quietly(path, source, replace(SMALL, learning_rate=1e30))
    except (SettingsError, OtherProcessError) as error:
        return str(error)
    raise AssertionError("it didn't diverge")


def main() -> None:
    """Write what happened into one file per process."""
    source, folder = DataSource(data=sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Any] = {"losses": compared(source, folder)}
    found["stopped"], found["resumed"] = _stopped_and_resumed(source, folder / "stopped" / "model.pt")
    found["diverged"] = _diverged(source, folder / "diverged" / "model.pt")
    with join_processes({}) as processes:
        run = TrainingState.new(source, SMALL, "cpu", processes)
        found["weights"] = [float(weight.detach().double().sum()) for weight in run.model.parameters()]
        found["random"] = torch.rand(4).tolist()
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
