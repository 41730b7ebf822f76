"""Training: the loop, what it writes, and resuming."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnn_runtime.errors import DataError, OutputError, SettingsError
from rnn_runtime.interruption import RunInterruptedError, StopRequest, describe_interrupt
from rnn_runtime.model.fields import Range, check_argument
from rnn_train.augment import augment
from rnn_train.calibration import LEAST_IMAGES
from rnn_train.callbacks import TrainingCallback
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import DataSource, LabeledImages
from rnn_train.evaluation import evaluate, predict_splits
from rnn_train.model import predict_logits
from rnn_train.output_folder import check_output_space, reserve
from rnn_train.report_page import write_report
from rnn_train.reports import write_metrics, write_reports
from rnn_train.settings import TrainSettings
from rnn_train.training_state import LARGEST_VALUE, Device, EpochState, TrainingState
from rnn_train.unchanged import all_values, check_unchanged


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run.

    Attributes:
        checkpoint: The final checkpoint.
        accuracy: Share of correct predictions on `split`, 0 to 1; None without held-out images.
        split: The held-out images that were evaluated; None without any.
        images: Their number.
        written: Whether this call wrote the checkpoint. A complete run that is resumed leaves it as it is.
    """

    checkpoint: Checkpoint
    accuracy: float | None
    split: Literal["test", "validation"] | None
    images: int
    written: bool = True


def train(
    source: DataSource,
    settings: TrainSettings,
    output: str | Path,
    *,
    resume: bool = False,
    device: Device = "auto",
    checkpoint_every: int | None = None,
    callback: TrainingCallback | None = None,
    plots: bool = True,
) -> TrainResult:
    """Train a classifier. Each epoch ends with a checkpoint and a row of `metrics.csv`, the run with a report.

    With validation images, training ends with calibration, unless `settings.calibrate` is False: it fits
    `Checkpoint.temperature`, which the export applies.
    On Ctrl-C or SIGTERM, training finishes the current step and writes a checkpoint, from which `resume` continues.
    A loss, weight or logit beyond 1,000,000 is divergence: training stops, and the last checkpoint stays.

    Args:
        source: The data to train on.
        settings: The model and how to train it.
        output: The checkpoint to write. `metrics.csv`, `report.html` and the plots are written beside it.
        resume: Continue the run in `output` if that file exists, so that the same call starts a run and continues it.
            Only `epochs`, `patience` and the place of the data may differ from that run's.
        device: `auto` is CUDA where torch has it.
        checkpoint_every: Also write a checkpoint every this many steps; None for after each epoch only.
        callback: Called at every step, epoch and message; None for none.
        plots: Whether to write `report.html`, and curves, confusion matrix and examples as PNG files.

    Raises:
        DataError: the data is missing, damaged or not as expected.
        SettingsError: the settings are out of range, contradict each other, make training diverge, or aren't those of
            the run to continue.
        CheckpointError: the run to continue can't be read.
        ProviderError: there is no CUDA device, and `device` is `cuda`.
        OutputError: the checkpoint can't be written (the last one stays), or another run writes to its folder.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what the checkpoint holds.
    """
    check_argument("source", source, DataSource)
    check_argument("settings", settings, TrainSettings)
    check_argument("output", output, Path)
    output = Path(output)
    with reserve(output):
        saved = Checkpoint.load(output) if resume and output.exists() else None
        if saved:
            check_unchanged(saved, output, all_values(settings, source))
            run, notes = _restore(saved, output, settings.epochs, settings.patience, source, device)
        else:
            run = TrainingState.new(source, settings, device)
            notes = [f"{output} exists: the first checkpoint replaces it"] if output.exists() else []
        saving = _Saving(run, output, checkpoint_every, held=saved)
        return _run(run, saving, callback or TrainingCallback(), plots, notes)


def resume(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    epochs: int | None = None,
    patience: int | None = None,
    source: DataSource | None = None,
    expected: Mapping[str, Any] | None = None,
    device: Device = "auto",
    checkpoint_every: int | None = None,
    callback: TrainingCallback | None = None,
    plots: bool = True,
) -> TrainResult:
    """Continue a run from its checkpoint.

    On the CPU, with the same thread count, a resumed run ends with bit-identical weights.

    Args:
        checkpoint: The checkpoint to continue from.
        output: The checkpoint to write; None to replace the one it continues from.
        epochs: Number of epochs in all; None for as many as it was started with.
        patience: Replaces the run's own, to train on after it has stopped early; None to keep it.
        source: Where its data is now, if it has moved; it must be the same data.
        expected: What the checkpoint must have been trained with, by the names of the fields of `TrainSettings` and
            `DataSource`: `{"hidden_size": 64}`.
        device: As for `train`.
        checkpoint_every: As for `train`.
        callback: As for `train`.
        plots: As for `train`.

    Raises:
        CheckpointError: it can't be read, or what it holds for resuming is damaged.
        DataError: the data is missing or damaged, or isn't the data that the checkpoint was trained on.
        SettingsError: more than `epochs` are done already, a one-cycle schedule is planned for another number, or a
            value isn't as expected.
        ProviderError, OutputError, RunInterruptedError: as for `train`.
    """
    check_argument("checkpoint", checkpoint, Path)
    check_argument("output", output, Path | None)
    check_argument("source", source, DataSource | None)
    target = Path(output or checkpoint)
    with reserve(target):
        saved = Checkpoint.load(checkpoint)
        check_unchanged(saved, checkpoint, expected or {})
        run, notes = _restore(saved, checkpoint, epochs, patience, source, device)
        saving = _Saving(run, target, checkpoint_every, held=None if output else saved)
        return _run(run, saving, callback or TrainingCallback(), plots, notes)


def _restore(
    saved: Checkpoint,
    checkpoint: str | Path,
    epochs: int | None,
    patience: int | None,
    source: DataSource | None,
    device: Device,
) -> tuple[TrainingState, list[str]]:
    """The run that a checkpoint holds, as `resume` describes it, and what to know about it."""
    settings = saved.settings
    if epochs is not None and epochs != settings.epochs:
        if settings.schedule != "constant":
            raise SettingsError(
                f"{checkpoint}: its learning rate is planned for {settings.epochs} epochs "
                f"({settings.schedule}), so it can't be resumed for {epochs}. Start a new run with `epochs={epochs}`"
            )
        settings = replace(settings, epochs=epochs)
    if patience is not None:
        settings = replace(settings, patience=patience)
    run = TrainingState.new(source or saved.source, settings, device)
    _check_data(run, saved, checkpoint)
    run.restore(saved, checkpoint)
    if run.steps_done > settings.epochs * run.steps_per_epoch:
        more = f" and {run.under_way.step:,} of {run.steps_per_epoch:,} steps" if run.under_way else ""
        raise SettingsError(
            f"{checkpoint}: {run.epoch} epochs{more} are done already, more than `epochs={settings.epochs}`"
        )
    notes = []
    if not run.is_done:
        notes.append(f"{checkpoint}: continuing after {run.describe_position()}")
    elif run.stopped_early:
        notes.append(
            f"{checkpoint}: stopped early after epoch {run.epoch}. To train longer, set `patience` to more than "
            f"{settings.patience}, or to 0 for all {settings.epochs} epochs"
        )
    else:
        # A one-cycle schedule is planned for its number of epochs, so such a run can't go on.
        how = "start a new run with more" if settings.schedule == "one-cycle" else "set"
        notes.append(
            f"{checkpoint}: this run is complete, with {run.epoch} of {settings.epochs} epochs. To train longer, {how} "
            "`epochs`"
        )
    threads = saved.resume_state["threads"]
    if run.device.type == "cpu" and threads != torch.get_num_threads() and not run.is_done:
        notes.append(
            f"{checkpoint}: trained with {threads} threads; torch uses {torch.get_num_threads()} here, so results will "
            f"differ by rounding from an uninterrupted run. For identical ones, set OMP_NUM_THREADS={threads}"
        )
    return run, notes


def _check_data(run: TrainingState, saved: Checkpoint, checkpoint: str | Path) -> None:
    """Check that a run continues on the data that it began with."""
    # Mean and standard deviation come from the images, where they are normalized.
    differs = None
    if replace(run.spec, mean=saved.spec.mean, std=saved.spec.std) != saved.spec:
        differs = "image size, channels or classes differ"
    # A checkpoint without the SHA-256 is refused by `restore`.
    elif run.spec != saved.spec or saved.resume_state.get("data_sha256", run.data_sha256) != run.data_sha256:
        differs = "training or validation images differ"
    if differs:
        raise DataError(
            f"{run.source.name}: not the data that {checkpoint} was trained on: {differs}. Point `data` or `data_root` "
            "to that data"
        )


class _Saving:
    """Writes a run's checkpoint, and knows what the file holds."""

    def __init__(self, run: TrainingState, output: Path, every: int | None, *, held: Checkpoint | None) -> None:
        check_argument("checkpoint_every", every, Annotated[int, Range(1)] | None)
        self.output = output
        self._run, self._every = run, every
        self._held = run.describe_position() if held else None
        self._before, self._steps_before = held, run.steps_done
        self.has_written = False

    @property
    def is_due(self) -> bool:
        return self._every is not None and self._run.steps_done % self._every == 0

    def save(self, metrics: Mapping[str, Any] | None = None, temperature: float | None = None) -> Checkpoint:
        run = self._run
        if run.has_diverged():  # the last checkpoint is of more use
            raise _divergence(run)
        checkpoint = run.checkpoint(metrics, temperature)
        if self._is_saved(checkpoint):
            return checkpoint
        with self._writing(self.output, "this checkpoint"):
            checkpoint.save(self.output)
        self.has_written = True
        self._held = run.describe_position()
        return checkpoint

    def _is_saved(self, checkpoint: Checkpoint) -> bool:
        """Whether the file holds this already: a complete run that is started again keeps its file as it is."""
        parts = ("settings", "source", "metrics", "temperature")
        return (
            self._before is not None
            and self._run.steps_done == self._steps_before
            and all(getattr(checkpoint, part) == getattr(self._before, part) for part in parts)
        )

    def save_metrics(self) -> None:
        """Write `metrics.csv` with the epochs that the checkpoint holds."""
        with self._writing(self.output.parent / "metrics.csv", "this file"):
            write_metrics(self.output.parent, self._run.history)

    @contextmanager
    def _writing(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"{path}: {what} can't be written: {error.strerror or error}"
            raise OutputError(f"{reason}; {self.how_to_continue()}") from None

    def how_to_continue(self) -> str:
        if self._held is None:
            return "nothing was written before"
        return f"{self.output} holds {self._held}. Continue with `resume({str(self.output)!r})`"


def _run(
    run: TrainingState, saving: _Saving, callback: TrainingCallback, plots: bool, notes: Sequence[str]
) -> TrainResult:
    check_output_space(saving.output, run.checkpoint_size)
    about_data = [f"{run.source.name}: {run.data.describe()}", *run.data.notes]
    for text in (*about_data, *_describe_use(run), *_describe_batches(run), *notes):
        callback.note(text)
    if run.history:
        saving.save_metrics()
    callback.start(run.settings.epochs, run.steps_per_epoch, run.steps_done)
    try:
        with StopRequest() as stop:
            _train(run, saving, callback, stop)
        return _finish(run, saving, callback, plots)
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(f"{describe_interrupt(interrupt)}; {saving.how_to_continue()}", interrupt) from None


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


def _train(run: TrainingState, saving: _Saving, callback: TrainingCallback, stop: StopRequest) -> None:
    images = torch.from_numpy(run.data.train.images).to(run.device)
    labels = torch.from_numpy(run.data.train.labels).to(run.device)
    while not run.is_done:
        for _ in _train_epoch(run, images, labels, callback):
            if stop.interrupt or saving.is_due:
                saving.save()
            if stop.interrupt:
                raise stop.interrupt
        _end_epoch(run, callback)
        saving.save()
        saving.save_metrics()
    if stop.interrupt:
        raise stop.interrupt


def _train_epoch(run: TrainingState, images: Tensor, labels: Tensor, callback: TrainingCallback) -> Iterator[None]:
    """Train the rest of an epoch; yields after each step."""
    settings, model = run.settings, run.model
    class_weights = run.class_weights()
    criterion = nn.CrossEntropyLoss(class_weights, label_smoothing=settings.label_smoothing)
    if run.under_way is None:
        run.under_way = EpochState(torch.get_rng_state())
        torch.randperm(len(labels))  # moves the default generator past what `draw_order` draws
    epoch = run.under_way
    batches = torch.split(epoch.draw_order(len(labels)), settings.batch_size)
    model.train()
    for batch in batches[epoch.step :]:
        start = time.perf_counter()
        batch = batch.to(run.device)
        inputs, targets = augment(images[batch], settings), labels[batch]
        if epoch.step == 0:
            callback.first_batch(run.epoch + 1, inputs)
        logits = model(inputs)
        loss = criterion(logits, targets)
        run.optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        epoch.learning_rate = float(run.schedule.get_last_lr()[0])
        run.optimizer.step()
        run.schedule.step()
        run.last_loss = loss.item()
        # a batch's loss is a mean weighted by class; over the epoch, these weights add up to the number of images
        epoch.loss_sum += run.last_loss * (len(batch) if class_weights is None else float(class_weights[targets].sum()))
        epoch.correct += int((logits.argmax(dim=1) == targets).sum())
        epoch.step += 1
        epoch.seconds += time.perf_counter() - start
        callback.step(run.epoch + 1, epoch.step, run.last_loss, len(batch))
        yield


def _end_epoch(run: TrainingState, callback: TrainingCallback) -> None:
    """Validate, if there are images for it, and add the epoch's row of metrics."""
    epoch, seen = run.under_way, len(run.data.train)
    assert epoch is not None
    run.epoch += 1
    row = {
        "epoch": run.epoch,
        "learning_rate": epoch.learning_rate,
        "train_loss": epoch.loss_sum / seen,
        "train_accuracy": epoch.correct / seen,
        **_validate(run),
        "seconds": round(epoch.seconds, 3),
        "images_per_second": round(seen / epoch.seconds, 1),
    }
    run.history = [*run.history, row]
    run.under_way = None
    callback.epoch(row)


def _validate(run: TrainingState) -> dict[str, float]:
    split = run.data.validation
    if split is None:
        return {}
    logits = predict_logits(run.model, split.images, run.device)
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(split.labels)).item()
    accuracy = _accuracy(logits, split)
    if accuracy > run.best_accuracy:
        run.best_accuracy = accuracy
        run.best_weights = copy.deepcopy(run.model.state_dict())
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def _finish(run: TrainingState, saving: _Saving, callback: TrainingCallback, plots: bool) -> TrainResult:
    """Evaluate the weights that are kept, once, and write the final checkpoint and the reports."""
    model = run.checkpoint().build_model().to(run.device)
    splits = predict_splits(model, run.data, run.device)
    if not all(np.abs(split.logits).max() <= LARGEST_VALUE for split in splits):  # nothing compares with NaN
        raise _divergence(run)
    results = evaluate(splits, run.spec.class_names, calibrate=run.settings.calibrate)
    final = saving.save({**results.metrics(), "kept_epoch": run.kept_epoch}, results.temperature)
    best = results.splits[0] if results.splits else None
    write_reports(
        saving.output.parent,
        run.history,
        run.spec.class_names,
        best.images if best else None,
        best.predicted if best else None,
        plots=plots,
    )
    if plots:
        write_report(saving.output, final, run.data, results)
    if run.data.validation:
        if run.stopped_early:
            callback.message(
                f"Stopped early after epoch {run.epoch} of {run.settings.epochs}: no higher validation accuracy in "
                f"{run.epoch - run.kept_epoch} epochs"
            )
        kept = run.history[run.kept_epoch - 1]["validation_accuracy"]
        callback.message(
            f"Kept epoch {run.kept_epoch} of {run.settings.epochs} (validation accuracy {100 * kept:.1f} %)"
        )
    for text in results.describe():
        callback.message(text)
    if best is None:
        callback.message("No accuracy: this data has no test images. Hold some images out with `val_split=0.2`")
        return TrainResult(final, None, None, 0, saving.has_written)
    accuracy = best.evaluation.accuracy
    callback.message(f"Accuracy of the network on the {len(best.images)} {best.name} images: {100 * accuracy:.1f} %")
    return TrainResult(final, accuracy, best.name, len(best.images), saving.has_written)


def _divergence(run: TrainingState) -> SettingsError:
    epoch = run.epoch + bool(run.under_way)
    return SettingsError(
        f"training diverged in epoch {epoch}: a loss, weight or logit is beyond {LARGEST_VALUE:,.0f}, or not a number. "
        f"Lower `learning_rate`{'' if 0 < run.settings.clip_norm <= 1 else ', or set `clip_norm=1`'}"
    )


def _accuracy(logits: NDArray[np.float32], split: LabeledImages) -> float:
    return float((logits.argmax(axis=1) == split.labels).mean())
