"""Training: the loop, what it writes, and resuming."""

import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnn_runtime.errors import Argument, DataError, OutputError, ProcessLostError, SettingsError
from rnn_runtime.files.atomic import check_output, followed, open_locked
from rnn_runtime.interruption import RunInterruptedError, describe_interrupt, signals_noted, stop_if_signaled
from rnn_runtime.model.values import Count, check_argument
from rnn_runtime.text import shorten
from rnn_train.augment import augment
from rnn_train.callbacks import TrainingCallback
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import DataSource
from rnn_train.evaluation import evaluate, predict_held_out, predict_shared
from rnn_train.report import REPORTS, write_metrics, write_reports
from rnn_train.settings import TrainSettings
from rnn_train.training_state import LARGEST_VALUE, Device, EpochState, OneProcess, TrainingState

_PLACES = ("data", "labels", "data_root")  # where the data is; it is recognized by its content
_CHANGEABLE = ("epochs", "patience", *_PLACES)  # what a continued run may have other values of
_LOCK = ".rnn-train.lock"
_LONGEST = 60  # characters of a value in an error


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run.

    Attributes:
        checkpoint: The final checkpoint.
        accuracy: Share of correct predictions on `split`, 0 to 1; None without held-out images.
        split: The held-out images that were evaluated; None without any.
        images: Their number.
        written: Whether this process wrote the checkpoint. A complete run that is resumed leaves it as it is.
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
    resume: str | Path | None = None,
    device: Device = "auto",
    checkpoint_every: int | None = None,
    callback: TrainingCallback | None = None,
    plots: bool = True,
) -> TrainResult:
    """Train a classifier. Each epoch ends with a checkpoint and a row of `metrics.csv`, the run with a report.

    With validation images, training ends with calibration, unless `settings.calibrate` is False: it fits
    `Checkpoint.temperature`, which the export applies.
    On Ctrl-C or SIGTERM, training finishes the current step and writes a checkpoint, from which `resume` continues. On
    the CPU, with the same thread count, a resumed run ends with bit-identical weights.
    Called by each of the processes that `torchrun` started, they train together, and share each batch.
    A loss, weight or logit beyond 1,000,000 is divergence: training stops, and the last checkpoint stays.

    Args:
        source: The data to train on.
        settings: The model and how to train it.
        output: The checkpoint to write. `metrics.csv`, `report.html` and `examples.png` are written beside it.
        resume: The checkpoint of the run to continue; None to start one. `auto` is `output` if that file exists, so
            that the same call starts a run and continues it. Only `epochs`, `patience` and the place of the data may
            differ from that run's.
        device: `auto` is CUDA where torch has it.
        checkpoint_every: Also write a checkpoint every this many steps; None for after each epoch only.
        callback: Called at every step, epoch and message; None for none. Of several processes, only the first calls it.
        plots: Whether to write `report.html` and `examples.png`. If not, earlier ones stay as they are.

    Raises:
        DataError: the data is missing, damaged, not as expected, or not what the run to continue was trained on.
        SettingsError: the settings are out of range, contradict each other, make training diverge, or aren't those of
            the run to continue.
        CheckpointError: the run to continue can't be read, or what it holds for resuming is damaged.
        ProviderError: there is no CUDA device, and `device` is `cuda`; or the device can't do what `amp` asks for.
        OutputError: the checkpoint can't be written (the last one stays), or another run writes to its folder.
        RunInterruptedError: Ctrl-C or SIGTERM; the text says what the checkpoint holds.
        ProcessLostError: another process ended or doesn't answer; the text says what the checkpoint holds.
        OtherProcessError: in all processes but the one that reports an error.
    """
    check_argument("source", source, DataSource)
    check_argument("settings", settings, TrainSettings)
    check_argument("output", output, Path)
    check_argument("resume", resume, Path | None)
    check_argument("checkpoint_every", checkpoint_every, Count | None)
    output, values = Path(output), _values(settings, source) | {"checkpoint_every": checkpoint_every}
    with _begun(output, values) as processes:
        path = Path(resume) if resume is not None else None
        if str(path) == "auto":
            path = output if output.exists() else None
        saved = Checkpoint.load(path) if path else None
        if saved and path:
            _check_settings(saved, path, settings, source)
        run = TrainingState.new(source, settings, device, processes)
        notes: list[str] = []
        if saved and path:
            _check_data(run, saved, path)
            run.restore(saved, path)
            _check_position(run, path)
            notes += run.describe_continuation(path, saved.resume_state["threads"])
        elif output.exists():
            notes.append(f"{output} exists: the first checkpoint replaces it")
        processes.check_position(run.describe_position())
        saving = _Saving(run, output, checkpoint_every, held=saved if path == output else None)
        return _run(run, saving, callback if callback and processes.is_first else TrainingCallback(), plots, notes)


def _run(
    run: TrainingState, saving: "_Saving", callback: TrainingCallback, plots: bool, notes: Sequence[str]
) -> TrainResult:
    if run.processes.is_first:
        _check_space(saving.output, run.checkpoint_size)
    missing = None if run.is_done else run.model.choose_computation(amp=run.settings.amp)
    for text in (*run.describe(), *([missing] if missing else []), *notes):
        callback.note(text)
    if run.history:
        saving.save_metrics()
    callback.start(run.settings.epochs, run.steps_per_epoch, run.steps_done)
    try:
        _train(run, saving, callback)
        return _finish(run, saving, callback, plots)
    except KeyboardInterrupt as interrupt:
        what = describe_interrupt(interrupt)
        raise RunInterruptedError(f"{what}; ", *saving.how_to_continue(), interrupt=interrupt) from None
    except ProcessLostError as error:
        raise ProcessLostError(*error.args, "; ", *saving.how_to_continue()) from None


def _train(run: TrainingState, saving: "_Saving", callback: TrainingCallback) -> None:
    """Train the epochs that are left. Between two steps, the checkpoint may be written, and the run may end."""
    settings, model, processes = run.settings, run.model, run.processes
    try:
        images = torch.from_numpy(run.data.train.images).to(run.device)
        labels = torch.from_numpy(run.data.train.labels).to(run.device)
    except torch.OutOfMemoryError:
        size = run.data.train.images.nbytes / 1e9
        raise DataError(
            f"{run.source.name}: the training images take {size:,.1f} GB, more than the GPU has left. Choose a "
            "smaller ",
            Argument("image_size"),
            ", or ",
            Argument("device", "cpu"),
        ) from None
    class_weights = run.class_weights()
    criterion = nn.CrossEntropyLoss(class_weights, label_smoothing=settings.label_smoothing)
    weigh = _weigher(class_weights, run.data.train.labels)
    while not run.is_done:
        epoch = run.begin_epoch()
        batches = torch.split(epoch.draw_order(len(labels)), settings.batch_size)
        model.train()
        for batch in batches[epoch.step :]:
            start = time.perf_counter()
            own, share = processes.take_share(batch, weigh)
            with model.threads_of_step():
                rows = own.to(run.device)
                inputs, targets = images.index_select(0, rows), labels[rows]
                if settings.shift or settings.flip or settings.augment:
                    inputs = augment(inputs, settings)
                if epoch.step == 0:
                    callback.first_batch(run.epoch + 1, inputs)
                run.optimizer.zero_grad()
                # With `amp`, products are in bfloat16. Its exponents are those of float32: no gradient needs scaling.
                with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.amp):
                    logits = model(inputs).float()
                    loss = criterion(logits, targets) * share
                loss.backward()
                correct = (logits.argmax(dim=1) == targets).sum() * bool(share)
                outcome = torch.stack([loss.detach(), correct.float()])  # so many images are exact up to 2**24
                gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
                processes.add_up([*gradients, outcome])
                if settings.clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                epoch.learning_rate = float(run.schedule.get_last_lr()[0])
                run.optimizer.step()
                run.schedule.step()
            run.last_loss, right = outcome.tolist()
            epoch.count(run.last_loss, weigh(batch), int(right), time.perf_counter() - start)
            callback.step(run.epoch + 1, epoch.step, run.last_loss, len(batch))
            stops = processes.is_stopped
            if stops or saving.is_due:
                saving.save()
            if stops:
                stop_if_signaled()
        _end_epoch(run, epoch, callback)
        saving.save()
        saving.save_metrics()
        if processes.is_stopped:
            stop_if_signaled()


def _weigher(class_weights: Tensor | None, labels: NDArray[np.int64]) -> Callable[[Tensor], float]:
    """What the images of some rows count together in the loss of a batch, which is a mean weighted by class."""
    if class_weights is None:
        return len
    weights = class_weights.cpu()[torch.from_numpy(labels)]
    return lambda rows: float(weights[rows].sum())


def _end_epoch(run: TrainingState, epoch: EpochState, callback: TrainingCallback) -> None:
    """Validate, if there are images for it, and add the epoch's row of metrics."""
    seen = len(run.data.train)
    run.epoch += 1
    row = {
        "epoch": run.epoch,
        "learning_rate": epoch.learning_rate,
        "train_loss": epoch.loss_sum / seen,  # over an epoch, the weights of all images add up to their number
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
    accuracy = float((logits.argmax(axis=1) == split.labels).mean())
    if all(accuracy > row["validation_accuracy"] for row in run.history):
        run.best_weights = copy.deepcopy(run.model.state_dict())
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def _finish(run: TrainingState, saving: "_Saving", callback: TrainingCallback, plots: bool) -> TrainResult:
    """Evaluate the weights that are kept, once, and write the final checkpoint and the reports."""
    model = run.checkpoint().build_model().to(run.device)
    logits = predict_held_out(model, run.data, run.device, run.processes)
    if not all(np.abs(values).max() <= LARGEST_VALUE for values in logits.values()):  # nothing compares with NaN
        raise _divergence(run)
    stop_if_signaled()
    results = evaluate(run.data, logits, calibrate=run.settings.calibrate)
    final = saving.save({**results.metrics(), "kept_epoch": run.kept_epoch}, results.temperature)
    best = results.splits[0] if results.splits else None
    if run.processes.is_first:
        stop_if_signaled()
        if plots:
            write_reports(saving.output, final, run.data, results, run.findings)
        elif earlier := saving.earlier_reports():
            callback.message(f"Of an earlier run, and left as they were: {', '.join(earlier)}")
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
        callback.message("No accuracy: this data has no test images. Hold some images out for validation")
        return TrainResult(final, None, None, 0, saving.has_written)
    accuracy = best.evaluation.accuracy
    callback.message(f"Accuracy of the network on the {len(best.images)} {best.name} images: {100 * accuracy:.1f} %")
    return TrainResult(final, accuracy, best.name, len(best.images), saving.has_written)


def _divergence(run: TrainingState) -> SettingsError:
    epoch = run.epoch + bool(run.under_way)
    what = f"a loss, weight or logit is beyond {LARGEST_VALUE:,.0f}, or not a number"
    text, lower = f"training diverged in epoch {epoch}: {what}. Lower ", Argument("learning_rate")
    if 0 < run.settings.clip_norm <= 1:
        return SettingsError(text, lower)
    return SettingsError(text, lower, ", or set ", Argument("clip_norm", 1))


class _Saving:
    """Writes a run's checkpoint, and knows what the file holds.

    Args:
        run: The run.
        output: The file.
        every: Steps between two checkpoints; None for one after each epoch.
        held: What the file holds of this run already.
    """

    def __init__(self, run: TrainingState, output: Path, every: int | None, *, held: Checkpoint | None) -> None:
        self.output = output
        self.has_written = False
        self._run, self._every = run, every
        self._held = run.describe_position() if held else None
        self._before, self._steps_before = held, run.steps_done

    @property
    def is_due(self) -> bool:
        return self._every is not None and self._run.steps_done % self._every == 0

    def save(self, metrics: Mapping[str, Any] | None = None, temperature: float | None = None) -> Checkpoint:
        """Write the checkpoint of this moment, unless the file holds it already."""
        run = self._run
        if run.has_diverged():  # the last checkpoint is of more use
            raise _divergence(run)
        checkpoint = run.checkpoint(metrics, temperature)
        if not self._is_saved(checkpoint):
            if run.processes.is_first:
                with self._writing(self.output, "this checkpoint"):
                    checkpoint.save(self.output)
                self.has_written = True
            run.processes.meet()
            self._held = run.describe_position()
        return checkpoint

    def _is_saved(self, checkpoint: Checkpoint) -> bool:
        """Whether a complete run was started again, which keeps its file as it is."""
        parts = ("settings", "source", "metrics", "temperature")
        return (
            self._before is not None
            and self._run.steps_done == self._steps_before
            and all(getattr(checkpoint, part) == getattr(self._before, part) for part in parts)
        )

    def save_metrics(self) -> None:
        """Write `metrics.csv` with the epochs that the checkpoint holds."""
        if self._run.processes.is_first:
            with self._writing(self.output.parent / "metrics.csv", "this file"):
                write_metrics(self.output.parent, self._run.history)

    @contextmanager
    def _writing(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"{path}: {what} can't be written: {error.strerror or error}; "
            raise OutputError(reason, *self.how_to_continue()) from None

    def earlier_reports(self) -> list[str]:
        """The reports in the folder that aren't of the checkpoint that was written; none if it was there already."""
        return [name for name in REPORTS if self.has_written and (self.output.parent / name).exists()]

    def how_to_continue(self) -> tuple[str | Argument, ...]:
        """The end of an error's text."""
        if self._held is None:
            return ("nothing was written before",)
        return (f"{self.output} holds {self._held}. Continue with ", Argument("resume", str(self.output)))


def _values(settings: TrainSettings, source: DataSource) -> dict[str, Any]:
    """The values of both, by the names of their fields."""
    return {field.name: getattr(part, field.name) for part in (settings, source) for field in fields(part)}


def _check_settings(saved: Checkpoint, path: Path, settings: TrainSettings, source: DataSource) -> None:
    """Check that a run continues with the settings and data that it began with."""
    before, values = _values(saved.settings, saved.source), _values(settings, source)
    if source.data is None and saved.source.data is None:
        before["dataset"], values["dataset"] = (name or "mnist" for name in (before["dataset"], values["dataset"]))
    for name, value in values.items():
        if before[name] != value and name not in _CHANGEABLE:
            now, then = (None if part == () else part for part in (value, before[name]))  # a list of nothing
            raise SettingsError(
                "without " if now is None else "",
                Argument(name, now),
                f": {path} was trained {'without' if then is None else 'with'} ",
                Argument(name, then),
                ". Use that value to continue the run, or another ",
                Argument("output"),
                " to start a new one",
            )
    if settings.epochs != saved.settings.epochs and settings.schedule != "constant":
        raise SettingsError(
            f"{path}: its learning rate is planned for {saved.settings.epochs} epochs ({settings.schedule}), so it "
            f"can't be resumed for {settings.epochs}. Start a new run with ",
            Argument("epochs", settings.epochs),
        )


def _check_data(run: TrainingState, saved: Checkpoint, path: Path) -> None:
    """Check that a run continues on the data that it began with."""
    before, now = (
        {**asdict(spec.image_spec), "classes": ", ".join(spec.class_names)} for spec in (saved.spec, run.spec)
    )
    changes = [
        f"{name.replace('_', ' ')} {shorten(str(value), _LONGEST)} instead of {shorten(str(before[name]), _LONGEST)}"
        for name, value in now.items()
        if value != before[name]
    ]
    # A checkpoint without the SHA-256 is refused by `restore`.
    if run.spec != saved.spec or saved.resume_state.get("data_sha256", run.data_sha256) != run.data_sha256:
        changes = changes or ["training or validation images differ"]
    if changes:
        raise DataError(
            f"{run.source.name}: not the data that {path} was trained on: {', '.join(changes)}. Point ",
            Argument("data"),
            " or ",
            Argument("data_root"),
            " to that data",
        )


def _check_position(run: TrainingState, path: Path) -> None:
    """Check that no more is done than is asked for."""
    if run.steps_done > run.settings.epochs * run.steps_per_epoch:
        more = f" and {run.under_way.step:,} of {run.steps_per_epoch:,} steps" if run.under_way else ""
        raise SettingsError(
            f"{path}: {run.epoch} epochs{more} are done already, more than ", Argument("epochs", run.settings.epochs)
        )


@contextmanager
def _begun(output: Path, values: Mapping[str, Any]) -> Iterator[OneProcess]:
    """From here on, only note signals. Meet the other processes, if torchrun started some, and reserve the folder.

    Args:
        output: The checkpoint to write.
        values: What all processes must have been started with, except for the places of the data.
    """
    with_others = "TORCHELASTIC_RUN_ID" in os.environ
    with ExitStack() as stack:
        # torchrun passes on a signal that the process may have had already.
        stack.enter_context(signals_noted(second_ends=not with_others))
        processes = OneProcess()
        if with_others:
            from rnn_train.processes import join_processes

            same = {name: value for name, value in values.items() if name not in _PLACES}
            processes = stack.enter_context(join_processes(same))
        if processes.is_first:
            stack.enter_context(_reserved(output))
        yield processes


@contextmanager
def _reserved(output: Path) -> Iterator[None]:
    """Make the folder of `output`, and keep other runs out of it until the end of the block.

    The lock is on the whole folder, since the reports beside a checkpoint have the same names for every run. It ends
    with the process, even if it is killed. Folders that were made and stay empty are removed.

    Raises:
        OutputError: the folder can't be made or written to, or another run is writing to it.
    """
    folder, lock, other = output.parent, output.parent / _LOCK, " is writing"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open_locked(lock)
        except BlockingIOError:
            with contextlib.suppress(OSError):  # it has just ended
                other = lock.read_text(errors="replace") or other
            raise OutputError(
                f"{output}: another training run{other} to this folder. Wait for it to end, or choose another folder "
                "with ",
                Argument("output"),
            ) from None
        except OSError as error:
            raise OutputError(
                f"{error.filename or folder}: {output.name} can't be written to this folder: "
                f"{error.strerror or error}. Choose another ",
                Argument("output"),
            ) from None
        with file:
            os.ftruncate(file.fileno(), 0)
            with contextlib.suppress(OSError):  # it is only for messages; a full disk is found by `_check_space`
                what = f" (process {os.getpid()}) is writing {output.name} and its reports"
                os.write(file.fileno(), what.encode(errors="replace"))
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # it was somebody else's, in a folder where only they may remove it
                    lock.unlink()
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def _check_space(output: Path, size: int) -> None:
    """Check that a file of `size` bytes can be written in place of `output`.

    Raises:
        InputError: `output` is a folder, a device or the like.
        OutputError: such a file can't be written; the text says why.
    """
    check_output(output, ())
    folder = Path(followed(output)).parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise OutputError(
            f"{output}: no room for a checkpoint of {size / 1e6:,.1f} MB: {error.strerror or error}. Free some space, "
            "or choose another ",
            Argument("output"),
        ) from None
