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

from rnn_runtime.errors import OtherProcessError
from rnn_runtime.interruption import RunInterruptedError
from rnn_train import DataSource, TrainSettings, resume
from rnn_train.processes import Processes, join_processes
from rnn_train.training_state import TrainingState
from tests.support.training import Recorder, SignalIn, train_quietly

# The last batch of 60 images has 4.
SMALL = TrainSettings(hidden_size=8, learning_rate=0.01, epochs=2, batch_size=7)
RUNS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "one image in the last batch": {"batch_size": 59},
    "lstm": {"cell": "lstm", "bidirectional": True, "schedule": "one-cycle"},
    "weighted": {"class_weights": "balanced", "label_smoothing": 0.1, "normalize": True},
    "clipped": {"cell": "gru", "clip_norm": 0.1, "weight_decay": 0.01},
}
RANDOM = replace(SMALL, dropout=0.3, shift=1, flip=True, augment=True, cell="gru", batch_size=16)


def compared(source: DataSource, folder: Path) -> dict[str, list[float]]:
    """The losses of all steps of `RUNS`."""
    losses = {}
    for name, changes in RUNS.items():
        recorder = Recorder()
        train_quietly(folder / name / "model.pt", source, replace(SMALL, **changes), callback=recorder)
        losses[name] = recorder.losses
    return losses


def _stopped(source: DataSource, folder: Path) -> str:
    """Train a run to its end, and another that is stopped within its second epoch and resumed."""
    train_quietly(folder / "whole" / "model.pt", source, RANDOM)
    path = folder / "stopped" / "model.pt"
    try:
        train_quietly(path, source, RANDOM, callback=SignalIn(2, 2))
    except (RunInterruptedError, OtherProcessError) as error:
        text = str(error)
    resume(path, device="cpu", plots=False)
    return text


def _state(source: DataSource, processes: Processes) -> dict[str, Any]:
    """What a process has at the beginning of a run."""
    run = TrainingState.new(source, RANDOM, "cpu", processes)
    return {
        "weights": [float(weight.detach().double().sum()) for weight in run.model.parameters()],
        "random": torch.rand(4).tolist(),
        "launch": [processes.rank, processes.count, processes.local_rank, processes.local_count],
    }


def main() -> None:
    """Write what happened into one file per process."""
    source, folder = DataSource(data=sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Any] = {"losses": compared(source, folder), "stopped": _stopped(source, folder)}
    with join_processes() as processes:
        found["state"] = _state(source, processes)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
