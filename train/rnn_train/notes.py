"""What to know about a run before it begins, in lines for its user."""

from collections.abc import Iterator
from pathlib import Path

import torch

from rnn_train.calibration import LEAST_IMAGES
from rnn_train.training_state import TrainingState


def describe_run(run: TrainingState) -> list[str]:
    """The data and its use, and what decides how fast the run is."""
    return [
        f"{run.source.name}: {run.data.describe()}",
        *run.data.notes,
        *_describe_use(run),
        *_describe_batches(run),
        *_describe_processes(run),
        *_describe_precision(run),
    ]


def describe_restored(run: TrainingState, checkpoint: str | Path, threads: int) -> Iterator[str]:
    """What to know about a run that continues."""
    settings = run.settings
    if not run.is_done:
        yield f"{checkpoint}: continuing after {run.describe_position()}"
    elif run.stopped_early:
        yield (
            f"{checkpoint}: stopped early after epoch {run.epoch}. To train longer, set `patience` to more than "
            f"{settings.patience}, or to 0 for all {settings.epochs} epochs"
        )
    else:
        # A one-cycle schedule is planned for its number of epochs, so such a run can't go on.
        how = "start a new run with more" if settings.schedule == "one-cycle" else "set"
        yield (
            f"{checkpoint}: this run is complete, with {run.epoch} of {settings.epochs} epochs. To train longer, {how} "
            "`epochs`"
        )
    if run.device.type == "cpu" and threads != torch.get_num_threads() and not run.is_done:
        yield (
            f"{checkpoint}: trained with {threads} thread{'s' if threads != 1 else ''}; torch uses "
            f"{torch.get_num_threads()} here, so results may differ by rounding from an uninterrupted run. For "
            f"identical ones, set OMP_NUM_THREADS={threads}"
        )


def _describe_use(run: TrainingState) -> list[str]:
    """What validation and test images are used for, if there are validation images."""
    if run.data.validation is None:
        return []
    use = "The validation images choose the epoch that is kept"
    if run.settings.calibrate and len(run.data.validation) >= LEAST_IMAGES:
        use += " and calibrate its probabilities"
    return [f"{use}; the test images are used once, for the final accuracy" if run.data.test else use]


def _describe_batches(run: TrainingState) -> list[str]:
    size, images = run.settings.batch_size, len(run.data.train)
    if size <= images:
        return []
    return [f"A batch of {size:,} holds all {images:,} training images, so each epoch is one step"]


def _describe_processes(run: TrainingState) -> list[str]:
    if run.processes.is_alone:
        return []
    return [f"{run.processes.count} processes share each batch, on {run.device.type}"]


def _describe_precision(run: TrainingState) -> list[str]:
    if run.device.type != "cpu" or not run.settings.amp or run.is_done:
        return []
    return ["`amp` is for CUDA. On CPUs, training is usually faster in float32, without it"]
