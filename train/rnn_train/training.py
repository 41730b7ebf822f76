"""Training: the loop, what it keeps, and resuming it."""

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from rnn_runtime.errors import CheckpointError, DataError, SettingsError, TrainingInterruptedError
from rnn_runtime.model_spec import ModelSpec
from rnn_train.augment import augment
from rnn_train.checkpoint import Checkpoint
from rnn_train.data import Data, DataSource, LabeledImages, load_data
from rnn_train.model import ImageRNN
from rnn_train.progress import TrainingProgress
from rnn_train.reports import write_reports
from rnn_train.settings import TrainSettings

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")
EVALUATION_BATCH = 512
SAMPLES = 64  # images that travel with the checkpoint, for parity where its data isn't at hand


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run. `accuracy`, 0 to 1, is of the `part` of the data it names; None without such a part."""

    checkpoint: Checkpoint
    accuracy: float | None
    part: Literal["test", "validation"] | None
    images: int


def train(
    source: DataSource,
    settings: TrainSettings,
    output: str | Path,
    *,
    device: Device = "auto",
    progress: TrainingProgress | None = None,
    plots: bool = True,
) -> TrainResult:
    """Train a classifier, and write a checkpoint after every epoch and reports at the end.

    Args:
        source: The data to train on.
        settings: The model and how to train it.
        output: The checkpoint to write. `metrics.csv` and the plots are written beside it.
        device: `auto` is CUDA where torch has it.
        progress: Told of every step; None for silence.
        plots: Whether to draw curves, confusion matrix and examples as PNG files.

    Raises:
        DataError: the data can't be had.
        SettingsError: the settings are out of range, or CUDA was asked for and isn't there.
        TrainingInterruptedError: Ctrl-C; the checkpoint holds the epochs that were done.
        OSError: `output` can't be written.
    """
    run = _prepare(source, settings, device)
    notes = [f"{output} is there already: it is replaced after the first epoch"] if Path(output).exists() else []
    return _run(run, Path(output), progress or TrainingProgress(), plots, notes)


def resume(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    epochs: int | None = None,
    source: DataSource | None = None,
    device: Device = "auto",
    progress: TrainingProgress | None = None,
    plots: bool = True,
) -> TrainResult:
    """Go on where a checkpoint stopped; on the CPU, the result is that of a run without the stop, bit for bit.

    Args:
        checkpoint: The checkpoint to go on from.
        output: The checkpoint to write; None for the same.
        epochs: Train until so many epochs in all; None for as many as it was started with.
        source: Where its data is now, if it has moved; it must be the same data.
        device: As for `train`.
        progress: As for `train`.
        plots: As for `train`.

    Raises:
        CheckpointError: it can't be read, or what it holds for resuming is damaged.
        DataError: the data can't be had, or isn't what the checkpoint was trained on.
        SettingsError: `epochs` doesn't fit what was done already or how the learning rate was laid out.
    """
    saved = Checkpoint.load(checkpoint)
    settings = saved.settings
    if epochs is not None and epochs != settings.epochs:
        if settings.schedule != "constant":
            raise SettingsError(
                f"{checkpoint}: its learning rate was laid out over {settings.epochs} epochs "
                f"({settings.schedule}), so it can't be resumed for {epochs}; train anew with --epochs {epochs}"
            )
        settings = replace(settings, epochs=epochs)
    run = _prepare(source or saved.source, settings, device)
    if run.spec != saved.spec:
        raise DataError(
            f"{run.source.name}: not the data that {checkpoint} was trained on: image size, channels or "
            "classes differ; say where that is now with --data or --data-root"
        )
    run.restore(saved, checkpoint)
    if saved.progress.get("data_sha256") != run.data_sha256:
        raise DataError(
            f"{run.source.name}: not the data that {checkpoint} was trained on: the training images differ; say where "
            "that is now with --data or --data-root"
        )
    if run.epoch > settings.epochs:
        raise SettingsError(f"{checkpoint}: {run.epoch} epochs are done already, more than --epochs {settings.epochs}")
    done = f"{checkpoint}: all {run.epoch} epochs are done already; to train longer, add --epochs"
    notes = [done] if run.epoch == settings.epochs else []
    return _run(run, Path(output or checkpoint), progress or TrainingProgress(), plots, notes)


def predict_logits(
    model: ImageRNN, images: NDArray[np.uint8], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Run a model over any number of images, without gradients and without dropout.

    Args:
        model: On `device`.
        images: uint8, shape `(images, height, width, channels)`.
        device: Where to run.

    Returns:
        Logits, in the dtype of the weights, shape `(images, classes)`.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(np.ascontiguousarray(images)), EVALUATION_BATCH)
        logits = torch.cat([model(batch.to(device)).cpu() for batch in batches])
    model.train(was_training)
    return logits.numpy()


@dataclass(slots=True)
class _Run:
    """Everything that changes while a model is trained."""

    data: Data
    source: DataSource
    settings: TrainSettings
    spec: ModelSpec
    device: torch.device
    model: ImageRNN
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    steps: int
    data_sha256: str
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_weights: dict[str, Tensor] | None = None

    def weights_to_keep(self) -> Mapping[str, Tensor]:
        """Of the best epoch by validation; without validation images, of the last."""
        return self.best_weights or self.model.state_dict()

    def checkpoint(self, metrics: Mapping[str, Any] | None = None) -> Checkpoint:
        held_out = self.data.test or self.data.validation or self.data.train
        spread = np.linspace(0, len(held_out) - 1, min(SAMPLES, len(held_out))).astype(int)
        return Checkpoint(
            spec=self.spec,
            weights=_on_cpu(self.weights_to_keep()),
            settings=self.settings,
            source=self.source,
            metrics={"epochs": self.history, **(metrics or {})},
            samples=torch.from_numpy(held_out.images[spread]),
            progress={
                "epoch": self.epoch,
                "weights": _on_cpu(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "best_accuracy": self.best_accuracy,
                "data_sha256": self.data_sha256,
                "generator": torch.get_rng_state(),
                "cuda_generators": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        )

    def restore(self, saved: Checkpoint, path: str | Path) -> None:
        """Take up the state that `checkpoint` stored."""
        progress = saved.progress
        try:
            self.model.load_state_dict(progress["weights"])
            self.optimizer.load_state_dict(progress["optimizer"])
            _check_optimizer(self.optimizer)
            self.schedule.load_state_dict(progress["schedule"])
            self.epoch = int(progress["epoch"])
            self.history = list(saved.metrics["epochs"])
            if [row["epoch"] for row in self.history] != list(range(1, self.epoch + 1)):
                raise ValueError("metrics without a row for each epoch")
            self.best_accuracy = float(progress["best_accuracy"])
            if self.data.validation:
                self.best_weights = {name: tensor.to(self.device) for name, tensor in saved.weights.items()}
            torch.set_rng_state(progress["generator"])
            if self.device.type == "cuda" and progress["cuda_generators"]:
                torch.cuda.set_rng_state_all(progress["cuda_generators"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{path}: what it holds for resuming is damaged ({type(error).__name__})") from None


def _prepare(source: DataSource, settings: TrainSettings, device: Device) -> _Run:
    target = _find_device(device)
    data = load_data(source)
    spec = _describe(data, settings)
    torch.manual_seed(settings.seed)
    model = ImageRNN(spec).to(target)
    # without weight decay, AdamW is Adam
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    if settings.shift >= min(spec.image.height, spec.image.width):
        raise SettingsError(f"shift must be less than the images' sides ({spec.image}), not {settings.shift}")
    steps = -(-len(data.train) // settings.batch_size)
    schedule: LRScheduler
    if settings.schedule == "one-cycle":
        schedule = OneCycleLR(
            optimizer,
            settings.learning_rate,
            total_steps=settings.epochs * steps,
            cycle_momentum=False,  # made for SGD's momentum; Adam's is left as it is
        )
    else:
        schedule = LambdaLR(optimizer, lambda _: 1.0)
    sha256 = hashlib.sha256(data.train.images.tobytes() + data.train.labels.tobytes()).hexdigest()
    return _Run(data, source, settings, spec, target, model, optimizer, schedule, steps, sha256)


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise for a state that doesn't fit the weights: torch doesn't look, and its fused kernel would write past it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            moments = state["exp_avg"], state["exp_avg_sq"]
            if any(moment.shape != parameter.shape or moment.dtype != parameter.dtype for moment in moments):
                raise ValueError("optimizer state of another shape than its weight")
            if state["step"].shape != ():
                raise ValueError("optimizer step that is no number")


def _find_device(device: Device) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("torch finds no CUDA device here; use --device cpu, or install a torch built for your CUDA")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _describe(data: Data, settings: TrainSettings) -> ModelSpec:
    channels = data.image.channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    if settings.normalize:
        pixels = data.train.images.reshape(-1, channels)
        mean = tuple(float(value) for value in pixels.mean(axis=0, dtype=np.float64) / 255)
        # a channel that never changes has no scale of its own
        std = tuple(float(value) or 1.0 for value in pixels.std(axis=0, dtype=np.float64) / 255)
    return ModelSpec(
        image=data.image,
        class_names=data.class_names,
        cell=settings.cell,
        nonlinearity=settings.nonlinearity,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        bidirectional=settings.bidirectional,
        dropout=float(settings.dropout),
        mean=mean,
        std=std,
    )


def _run(run: _Run, output: Path, progress: TrainingProgress, plots: bool, notes: Sequence[str]) -> TrainResult:
    output.parent.mkdir(parents=True, exist_ok=True)  # before the training, not after it
    for text in (f"{run.source.name}: {run.data.describe()}", *run.data.notes, *notes):
        progress.note(text)
    progress.start(run.settings.epochs, run.steps, run.epoch)
    images = torch.from_numpy(run.data.train.images).to(run.device)
    labels = torch.from_numpy(run.data.train.labels).to(run.device)
    started_at = run.epoch
    try:
        while run.epoch < run.settings.epochs:
            _train_epoch(run, images, labels, progress)
            run.checkpoint().save(output)
    except KeyboardInterrupt:
        raise TrainingInterruptedError(_how_to_go_on(run, output, started_at)) from None
    return _finish(run, output, progress, plots)


def _how_to_go_on(run: _Run, output: Path, started_at: int) -> str:
    if run.epoch == started_at:
        return "interrupted before an epoch was done: nothing was written"
    return (
        f"interrupted: {output} holds {run.epoch} of {run.settings.epochs} epochs; go on with: "
        f"rnn-train --resume {output}"
    )


def _train_epoch(run: _Run, images: Tensor, labels: Tensor, progress: TrainingProgress) -> None:
    settings, model = run.settings, run.model
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    start, seen = time.perf_counter(), 0
    loss_sum = correct = 0.0
    learning_rate = settings.learning_rate
    model.train()
    for step, batch in enumerate(torch.split(torch.randperm(len(labels)), settings.batch_size), start=1):
        batch = batch.to(run.device)
        targets = labels[batch]
        logits = model(augment(images[batch], settings))
        loss = criterion(logits, targets)
        run.optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        learning_rate = float(run.schedule.get_last_lr()[0])
        run.optimizer.step()
        run.schedule.step()
        value = loss.item()
        loss_sum += value * len(batch)
        correct += (logits.argmax(dim=1) == targets).sum().item()
        seen += len(batch)
        progress.step(run.epoch + 1, step, value, len(batch))
    seconds = time.perf_counter() - start
    # the loss is that of the weights before the last step
    if not np.isfinite(loss_sum) or not all(weight.isfinite().all() for weight in model.parameters()):
        raise SettingsError(
            f"training diverged in epoch {run.epoch + 1}: loss or weights are no longer finite; "
            "lower --learning-rate, or set --clip-norm 1"
        )
    run.epoch += 1
    row = {
        "epoch": run.epoch,
        "learning_rate": learning_rate,
        "train_loss": loss_sum / seen,
        "train_accuracy": correct / seen,
        **_validate(run, progress),
        "seconds": round(seconds, 3),
        "images_per_second": round(seen / seconds, 1),
    }
    run.history = [*run.history, row]


def _validate(run: _Run, progress: TrainingProgress) -> dict[str, float]:
    part = run.data.validation
    if part is None:
        return {}
    logits = predict_logits(run.model, part.images, run.device)
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(part.labels)).item()
    accuracy = _accuracy(logits, part)
    progress.message(
        f"Epoch [{run.epoch}/{run.settings.epochs}], Validation loss: {loss:.4f}, accuracy: {100 * accuracy:.2f} %"
    )
    if accuracy > run.best_accuracy:
        run.best_accuracy = accuracy
        run.best_weights = copy.deepcopy(run.model.state_dict())
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def _finish(run: _Run, output: Path, progress: TrainingProgress, plots: bool) -> TrainResult:
    """Evaluate the weights that are kept, once, and write the final checkpoint and the reports."""
    final = run.checkpoint()
    part: Literal["test", "validation"] | None = None
    part, held_out = next(
        (named for named in (("test", run.data.test), ("validation", run.data.validation)) if named[1]), (None, None)
    )
    logits, accuracy = None, None
    if held_out is not None:
        logits = predict_logits(final.build_model().to(run.device), held_out.images, run.device)
        accuracy = _accuracy(logits, held_out)
        final = run.checkpoint({f"{part}_accuracy": accuracy, f"{part}_images": len(held_out)})
    final.save(output)
    write_reports(output.parent, run.history, run.spec.class_names, held_out, logits, plots=plots)
    if held_out is not None and accuracy is not None:
        progress.message(f"Accuracy of the network on the {len(held_out)} {part} images: {100 * accuracy:.1f} %")
    else:
        progress.message("No accuracy: this data has no test images; hold some out with --val-split 0.2")
    return TrainResult(final, accuracy, part, len(held_out) if held_out else 0)


def _accuracy(logits: NDArray[np.float32], part: LabeledImages) -> float:
    return float((logits.argmax(axis=1) == part.labels).mean())


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}
