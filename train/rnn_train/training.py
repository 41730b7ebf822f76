"""Training: the loop, what it writes, and resuming."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnn_runtime.errors import DataError, OutputError, ProcessLostError, SettingsError
from rnn_runtime.interruption import RunInterruptedError, describe_interrupt
from rnn_runtime.model.values import Count, check_argument
from rnn_train.augment import augment
from rnn_train.callbacks import TrainingCallback
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import DataSource, LabeledImages
from rnn_train.evaluation import evaluate, predict_shared, predict_splits
from rnn_train.notes import describe_restored, describe_run
from rnn_train.output_folder import check_output_space, reserve
from rnn_train.processes import Processes, join_processes
from rnn_train.report import write_metrics, write_reports
from rnn_train.settings import TrainSettings
from rnn_train.shared_stop import SharedStop
from rnn_train.training_state import LARGEST_VALUE, Device, EpochState, TrainingState
from rnn_train.unchanged import PLACES, all_values, check_unchanged


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
    Called by each of the processes that `torchrun` started, they train together, and share each batch.
    A loss, weight or logit beyond 1,000,000 is divergence: training stops, and the last checkpoint stays.

    Args:
        source: The data to train on.
        settings: The model and how to train it.
        output: The checkpoint to write. `metrics.csv`, `report.html` and `examples.png` are written beside it.
        resume: Continue the run in `output` if that file exists, so that the same call starts a run and continues it.
            Only `epochs`, `patience` and the place of the data may differ from that run's.
        device: `auto` is CUDA where torch has it.
        checkpoint_every: Also write a checkpoint every this many steps; None for after each epoch only.
        callback: Called at every step, epoch and message; None for none. Of several processes, only the first calls it.
        plots: Whether to write `report.html` and `examples.png`.

    Raises:
        DataError: the data is missing, damaged or not as expected.
        SettingsError: the settings are out of range, contradict each other, make training diverge, or aren't those of
            the run to continue.
        CheckpointError: the run to continue can't be read.
        ProviderError: there is no CUDA device, and `device` is `cuda`; or the device can't do what `amp` asks for.
        OutputError: the checkpoint can't be written (the last one stays), or another run writes to its folder.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what the checkpoint holds.
        ProcessLostError: another process ended or doesn't answer; the text says what the checkpoint holds.
        OtherProcessError: in all processes but the one that reports an error.
    """
    check_argument("source", source, DataSource)
    check_argument("settings", settings, TrainSettings)
    check_argument("output", output, Path)
    output, values = Path(output), all_values(settings, source)
    with _join(output, values | {"resume": resume, "checkpoint_every": checkpoint_every}) as processes:
        saved = processes.from_main(lambda: Checkpoint.load(output) if resume and output.exists() else None)
        if saved:
            with processes.agree():
                check_unchanged(saved, output, values)
            run, notes = _restore(saved, output, settings.epochs, settings.patience, source, device, processes)
        else:
            run = TrainingState.new(source, settings, device, processes)
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
            value isn't as expected, or the run had another number of processes.
        ProviderError, OutputError, RunInterruptedError, ProcessLostError, OtherProcessError: as for `train`.
    """
    check_argument("checkpoint", checkpoint, Path)
    check_argument("output", output, Path | None)
    check_argument("source", source, DataSource | None)
    target = Path(output or checkpoint)
    values = {"epochs": epochs, "patience": patience, "checkpoint_every": checkpoint_every, **(expected or {})}
    with _join(target, values) as processes:
        saved = processes.from_main(lambda: Checkpoint.load(checkpoint))
        with processes.agree():
            check_unchanged(saved, checkpoint, expected or {})
        run, notes = _restore(saved, checkpoint, epochs, patience, source, device, processes)
        saving = _Saving(run, target, checkpoint_every, held=None if output else saved)
        return _run(run, saving, callback or TrainingCallback(), plots, notes)


@contextmanager
def _join(output: Path, values: Mapping[str, Any]) -> Iterator[Processes]:
    """Meet the other processes, if there are any. The first keeps other runs out of the folder of `output`.

    Args:
        output: The checkpoint to write.
        values: What all must have been started with, but for the places of the data.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes())
        processes.check_same({name: value for name, value in values.items() if name not in PLACES})
        with processes.agree():
            if processes.is_main:
                stack.enter_context(reserve(output))
        yield processes


def _restore(
    saved: Checkpoint,
    checkpoint: str | Path,
    epochs: int | None,
    patience: int | None,
    source: DataSource | None,
    device: Device,
    processes: Processes,
) -> tuple[TrainingState, list[str]]:
    """The run that a checkpoint holds, as `resume` describes it, and what to know about it."""
    with processes.agree():
        _check_count(saved, checkpoint, processes.count)
        settings = _continued_settings(saved, checkpoint, epochs, patience)
    run = TrainingState.new(source or saved.source, settings, device, processes)
    with processes.agree():
        _check_data(run, saved, checkpoint)
        run.restore(saved, checkpoint)
        if run.steps_done > settings.epochs * run.steps_per_epoch:
            more = f" and {run.under_way.step:,} of {run.steps_per_epoch:,} steps" if run.under_way else ""
            raise SettingsError(
                f"{checkpoint}: {run.epoch} epochs{more} are done already, more than `epochs={settings.epochs}`"
            )
    return run, list(describe_restored(run, checkpoint, saved.resume_state["threads"]))


def _check_count(saved: Checkpoint, checkpoint: str | Path, count: int) -> None:
    """Check that as many processes continue a run as began it."""
    others = saved.resume_state.get("other_processes", [])
    if not isinstance(others, list) or len(others) + 1 == count:  # what is no list is refused by `restore`
        return
    began = len(others) + 1
    how = f"with {began} processes: torchrun --nproc-per-node {began}" if others else "in one process, without torchrun"
    raise SettingsError(
        f"{checkpoint}: trained by {began} process{'es' if others else ''}, and can't be continued by {count}. "
        f"Continue {how}"
    )


def _continued_settings(
    saved: Checkpoint, checkpoint: str | Path, epochs: int | None, patience: int | None
) -> TrainSettings:
    """The settings of a continued run."""
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
    return settings


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
        check_argument("checkpoint_every", every, Count | None)
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
        checkpoint = run.checkpoint(metrics, temperature)
        with run.processes.agree():
            if run.has_diverged():  # the last checkpoint is of more use
                raise _divergence(run)
            if self._is_saved(checkpoint):
                return checkpoint
            if run.processes.is_main:
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
        with self._run.processes.agree():
            if self._run.processes.is_main:
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
    with run.processes.agree():
        if run.processes.is_main:
            check_output_space(saving.output, run.checkpoint_size)
        else:
            callback = TrainingCallback()
    missing = None if run.is_done else run.model.choose_computation(amp=run.settings.amp)
    for text in (*describe_run(run), *([missing] if missing else []), *notes):
        callback.note(text)
    if run.history:
        saving.save_metrics()
    callback.start(run.settings.epochs, run.steps_per_epoch, run.steps_done)
    try:
        with SharedStop(run.processes) as stop:
            _train(run, saving, callback, stop)
        return _finish(run, saving, callback, plots)
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(f"{describe_interrupt(interrupt)}; {saving.how_to_continue()}", interrupt) from None
    except ProcessLostError as error:
        raise ProcessLostError(f"{error}; {saving.how_to_continue()}") from None


def _train(run: TrainingState, saving: _Saving, callback: TrainingCallback, stop: SharedStop) -> None:
    images = torch.from_numpy(run.data.train.images).to(run.device)
    labels = torch.from_numpy(run.data.train.labels).to(run.device)
    while not run.is_done:
        for _ in _train_epoch(run, images, labels, callback, stop):
            if stop.interrupt or saving.is_due:
                saving.save()
            if stop.interrupt:
                raise stop.interrupt
        _end_epoch(run, callback)
        saving.save()
        saving.save_metrics()
    stop.share()
    if stop.interrupt:
        raise stop.interrupt


def _train_epoch(
    run: TrainingState, images: Tensor, labels: Tensor, callback: TrainingCallback, stop: SharedStop
) -> Iterator[None]:
    """Train the rest of an epoch; yields after each step."""
    processes = run.processes
    class_weights = run.class_weights()
    criterion = nn.CrossEntropyLoss(class_weights, label_smoothing=run.settings.label_smoothing)
    weigh = _weigher(class_weights, run.data.train.labels)
    if run.under_way is None:
        run.under_way = EpochState(processes.from_main(torch.get_rng_state))
        torch.randperm(len(labels))  # moves the default generator past what `draw_order` draws
    epoch = run.under_way
    batches = torch.split(epoch.draw_order(len(labels)), run.settings.batch_size)
    run.model.train()
    for batch in batches[epoch.step :]:
        start = time.perf_counter()
        own = batch[processes.rank :: processes.count]
        weight = weigh(batch)
        with run.model.threads_of_step():
            rows = own.to(run.device)
            inputs, targets = augment(images.index_select(0, rows), run.settings), labels[rows]
            if epoch.step == 0:
                callback.first_batch(run.epoch + 1, inputs)
            loss, correct = _take_gradient(run, criterion, inputs, targets, weigh(own) / weight, stop)
            _step(run)
        run.last_loss = loss
        # a batch's loss is a mean weighted by class; over the epoch, these weights add up to the number of images
        epoch.loss_sum += loss * weight
        epoch.correct += correct
        epoch.step += 1
        epoch.seconds += time.perf_counter() - start
        callback.step(run.epoch + 1, epoch.step, loss, len(batch))
        yield


def _autocast(run: TrainingState) -> torch.autocast:
    """With `amp`, compute products in bfloat16. Its exponents are those of float32, so no gradient needs scaling."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.settings.amp)


def _weigher(class_weights: Tensor | None, labels: NDArray[np.int64]) -> Callable[[Tensor], float]:
    """What the images of some rows count together in the loss of a batch."""
    if class_weights is None:
        return len
    weights = class_weights.cpu()[torch.from_numpy(labels)]
    return lambda rows: float(weights[rows].sum())


def _take_gradient(
    run: TrainingState, criterion: nn.Module, inputs: Tensor, targets: Tensor, share: float, stop: SharedStop
) -> tuple[float, int]:
    """Compute the gradient of a batch's loss.

    Each process has some of the images. The loss of the batch is the sum of their losses, each times its share.

    Returns:
        The loss, and how many images were classified correctly, of the whole batch.
    """
    run.optimizer.zero_grad()
    # The number of images is exact up to 2**24, and so many don't fit into memory.
    outcome = torch.zeros(2, device=run.device)
    if len(targets):
        with _autocast(run):
            logits = run.model(inputs).float()
            loss = criterion(logits, targets) * share
        loss.backward()
        outcome[0], outcome[1] = loss.detach(), (logits.argmax(dim=1) == targets).sum()
    else:  # the last batch of an epoch may have fewer images than there are processes
        for weight in run.model.parameters():
            weight.grad = torch.zeros_like(weight)
    signals = stop.recorded().to(run.device)
    gradients = [weight.grad for weight in run.model.parameters() if weight.grad is not None]
    run.processes.add_up([*gradients, outcome, signals])
    stop.learn(signals)
    loss_of_batch, correct = outcome.tolist()
    return loss_of_batch, int(correct)


def _step(run: TrainingState) -> None:
    """Change the weights."""
    epoch, settings = run.under_way, run.settings
    assert epoch is not None
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip_norm)
    epoch.learning_rate = float(run.schedule.get_last_lr()[0])
    run.optimizer.step()
    run.schedule.step()


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
    logits = predict_shared(run.model, split.images, run.device, run.processes)
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(split.labels)).item()
    accuracy = _accuracy(logits, split)
    if accuracy > run.best_accuracy:
        run.best_accuracy = accuracy
        run.best_weights = copy.deepcopy(run.model.state_dict())
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def _finish(run: TrainingState, saving: _Saving, callback: TrainingCallback, plots: bool) -> TrainResult:
    """Evaluate the weights that are kept, once, and write the final checkpoint and the reports."""
    model = run.checkpoint().build_model().to(run.device)
    splits = predict_splits(model, run.data, run.device, run.processes)
    with run.processes.agree():
        if not all(np.abs(split.logits).max() <= LARGEST_VALUE for split in splits):  # nothing compares with NaN
            raise _divergence(run)
    results = evaluate(splits, run.spec.class_names, calibrate=run.settings.calibrate)
    final = saving.save({**results.metrics(), "kept_epoch": run.kept_epoch}, results.temperature)
    best = results.splits[0] if results.splits else None
    if run.processes.is_main:
        write_reports(saving.output, final, run.data, results, plots=plots)
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
