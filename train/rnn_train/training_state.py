"""Everything that changes during training: created for a new run, saved in a checkpoint, restored from one."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from rnn_runtime.errors import Argument, CheckpointError, ProviderError, SettingsError
from rnn_runtime.interruption import noted_signal
from rnn_runtime.model.spec import ModelSpec
from rnn_runtime.model.values import check_argument
from rnn_train.checkpoint import Checkpoint, check_weights, is_like
from rnn_train.data import Data, DataSource, LabeledImages, load_data
from rnn_train.data_checks import Finding, check_data
from rnn_train.evaluation import LEAST_IMAGES
from rnn_train.model import ImageRNN, predict_logits
from rnn_train.profile import fit_profile
from rnn_train.settings import TrainSettings

Device = Literal["auto", "cpu", "cuda"]
# What Python and torch raise for values of wrong types and ranges.
_UNFIT = (CheckpointError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError)
# The most that a loss, weight or logit may be. Beyond 1e6, neighbouring float32 values are 0.06 or more apart and
# cross-entropy is saturated: training has diverged, even if every number is still finite.
LARGEST_VALUE = 1e6
SAMPLES = 64  # images in the checkpoint, for checking parity where the data isn't available; fewer of large ones
_COUNTED_TOGETHER = 1 << 20  # values
_MOST_SAMPLE_BYTES = 64 << 20

_Value = TypeVar("_Value")


class OneProcess:
    """The process that trains. `rnn_train.processes` has those that torchrun starts, which do the same together.

    Attributes:
        rank: Its number, from 0 on.
        count: How many there are.
    """

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes the files and reports."""
        return self.rank == 0

    @property
    def is_stopped(self) -> bool:
        """Whether a signal came. Several processes learn of it in the same step."""
        return noted_signal() is not None

    def use_device(self, device: torch.device) -> torch.device:
        """Start: the device of this process, of this kind."""
        return device

    def load(self, source: DataSource) -> Data:
        """Start: the data, which is the same in all processes."""
        return load_data(source)

    def from_first(self, make: Callable[[], _Value]) -> _Value:
        """Start, and start of an epoch: what process 0 makes."""
        return make()

    def check_position(self, position: str) -> None:
        """Start: check that all processes go on from the same place."""

    def seed(self, seed: int, steps_done: int) -> None:
        """Start: let other processes draw other random numbers than the first."""

    def take_share(self, batch: Tensor, weigh: Callable[[Tensor], float]) -> tuple[Tensor, float]:  # noqa: ARG002
        """Step: the rows of a batch that this process computes, and their share of its loss."""
        return batch, 1.0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Step, and evaluation: replace each tensor by its sum over all processes."""

    def meet(self) -> None:
        """Save: wait until the first process has written the checkpoint."""


@dataclass(slots=True)
class EpochState:
    """How far an epoch is.

    Attributes:
        order_generator: State of the generator before the order of the images was drawn, to draw it again.
        step: Steps done.
        learning_rate: Of the last step.
        loss_sum: Sum of the losses of all images so far.
        correct: How many of them were classified correctly.
        seconds: Time spent in this epoch.
    """

    order_generator: Tensor
    step: int = 0
    learning_rate: float = 0.0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        # A checkpoint may hold anything.
        if any(type(value) is not int or value < 0 for value in (self.step, self.correct)):
            raise ValueError("steps and right answers must be counts")
        for value in (self.learning_rate, self.loss_sum, self.seconds):
            if type(value) is not float or not math.isfinite(value):
                raise ValueError("learning rate, loss and seconds must be numbers")

    def count(self, loss: float, weight: float, correct: int, seconds: float) -> None:
        """Add a step: the loss of its batch, what its images weigh in it, and how many were classified correctly."""
        self.step += 1
        self.loss_sum += loss * weight
        self.correct += correct
        self.seconds += seconds

    def draw_order(self, count: int) -> Tensor:
        """The order of this epoch's images, a permutation of `count` indices."""
        generator = torch.Generator()
        generator.set_state(self.order_generator)
        return torch.randperm(count, generator=generator)


@dataclass(slots=True)
class TrainingState:
    """A run: its data and settings, which are fixed, and its model, optimizer, schedule and position, which change.

    Attributes:
        processes: The process that trains it, or several that hold the same.
        steps_per_epoch: Optimizer steps per epoch.
        data_sha256: Of the training images and labels, and of those in a folder of validation images.
        epoch: Number of finished epochs.
        under_way: The unfinished epoch, if any.
        last_loss: Loss of the last step, over the whole batch.
        history: One row of metrics per finished epoch.
        best_weights: Those of the epoch with the highest validation accuracy so far.
        findings: What in the data will disappoint; in the first process only.
    """

    data: Data
    source: DataSource
    settings: TrainSettings
    spec: ModelSpec
    device: torch.device
    processes: OneProcess
    model: ImageRNN
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    steps_per_epoch: int
    data_sha256: str
    epoch: int = 0
    under_way: EpochState | None = None
    last_loss: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = None
    findings: tuple[Finding, ...] = ()

    @classmethod
    def new(cls, source: DataSource, settings: TrainSettings, device: Device, processes: OneProcess) -> "TrainingState":
        """Load the data and draw the initial weights.

        Raises:
            DataError: the data is missing, damaged, not as expected, or not the same in all processes.
            SettingsError: the settings don't fit the data or the number of processes.
            ProviderError: there is no CUDA device, and `device` is `cuda`; or the device can't do what `amp` asks for.
        """
        target = processes.use_device(_find_device(device))
        _check_precision(settings, target)
        data = processes.load(source)
        # Processors round differently, and mean and standard deviation must not depend on the machine.
        spec = processes.from_first(lambda: _make_spec(data, settings))
        _check_settings(settings, data, processes.count)
        torch.manual_seed(settings.seed)
        model = ImageRNN(spec).to(target)
        processes.seed(settings.seed, 0)
        # without weight decay, AdamW is Adam
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        steps_per_epoch = -(-len(data.train) // settings.batch_size)
        schedule = _make_schedule(optimizer, settings, steps_per_epoch)
        sha256 = _data_sha256(data, source)
        run = cls(data, source, settings, spec, target, processes, model, optimizer, schedule, steps_per_epoch, sha256)
        if processes.is_first:
            run.findings = check_data(data)
        return run

    @property
    def steps_done(self) -> int:
        """Steps done in the whole run."""
        return self.epoch * self.steps_per_epoch + (self.under_way.step if self.under_way else 0)

    @property
    def checkpoint_size(self) -> int:
        """About how many bytes a checkpoint of this run takes."""
        weights = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        # those that are kept, those in training, and two moments of each; a little for all else
        return 4 * weights + self._samples().nbytes + 100_000

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights a checkpoint holds: the first with the highest validation accuracy, else the last."""
        if self.data.validation is None or not self.history:
            return self.epoch
        best = max(self.history, key=lambda row: float(row["validation_accuracy"]))  # of equal ones, the first
        return int(best["epoch"])

    @property
    def is_done(self) -> bool:
        """Whether all epochs are done, or the last `patience` epochs brought no higher validation accuracy."""
        return self.epoch >= self.settings.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether training ends here because of `patience`, before all epochs are done."""
        patience = self.settings.patience
        return 0 < patience <= self.epoch - self.kept_epoch and self.epoch < self.settings.epochs

    def begin_epoch(self) -> EpochState:
        """The epoch that is under way, or the next one."""
        if self.under_way is None:
            self.under_way = EpochState(self.processes.from_first(torch.get_rng_state))
            torch.randperm(len(self.data.train))  # moves the generator past what `draw_order` draws
        return self.under_way

    def class_weights(self) -> Tensor | None:
        """The weight of each class in the loss, float32 on the device; None if all count the same."""
        if self.settings.class_weights == "none":
            return None
        from sklearn.utils.class_weight import compute_class_weight

        present = np.unique(self.data.train.labels)
        weights = np.ones(len(self.data.class_names), np.float32)  # 1 for a class without images, which is no target
        weights[present] = compute_class_weight("balanced", classes=present, y=self.data.train.labels)
        return torch.from_numpy(weights).to(self.device)

    def describe(self) -> Iterator[str]:
        """For people: the data and its use, and what decides how fast the run is."""
        yield f"{self.source.name}: {self.data.describe()}"
        yield from self.data.notes
        yield from (finding.text for finding in self.findings)
        if self.data.validation is not None:
            use = "The validation images choose the epoch that is kept"
            if self.settings.calibrate and len(self.data.validation) >= LEAST_IMAGES:
                use += " and calibrate its probabilities"
            yield f"{use}; the test images are used once, for the final accuracy" if self.data.test else use
        if self.settings.batch_size > len(self.data.train):
            yield (
                f"A batch of {self.settings.batch_size:,} holds all {len(self.data.train):,} training images, so each "
                "epoch is one step"
            )
        if self.spec.profile is None:
            yield "With fewer than 20 training images, the model won't notice images that are unlike them"
        if self.processes.count > 1:
            yield f"{self.processes.count} processes share each batch, on {self.device.type}"
        if self.settings.amp and self.device.type == "cpu" and not self.is_done:
            yield "bfloat16 is for CUDA. On CPUs, training is usually faster in float32"

    def describe_continuation(self, path: Path, threads: int) -> Iterator[str]:
        """For people: where the run goes on that a checkpoint holds, which was trained with so many threads."""
        position = f"{self.epoch} of {self.settings.epochs} epochs"
        if self.stopped_early:
            yield (
                f"{path}: stopped early after {position}. To train longer, raise the patience above "
                f"{self.settings.patience}, or set it to 0"
            )
        elif self.is_done:
            # A one-cycle schedule is planned for its number of epochs, so such a run can't go on.
            how = "start a new run with more epochs" if self.settings.schedule == "one-cycle" else "ask for more epochs"
            yield f"{path}: this run is complete, with {position}. To train longer, {how}"
        else:
            yield f"{path}: continuing after {self.describe_position()}"
        if self.device.type == "cpu" and threads != torch.get_num_threads() and not self.is_done:
            yield (
                f"{path}: trained with {threads} thread{'s' if threads != 1 else ''}; torch uses "
                f"{torch.get_num_threads()} here, so results may differ by rounding from an uninterrupted run. For "
                f"identical ones, set OMP_NUM_THREADS={threads}"
            )

    def describe_position(self) -> str:
        """Progress for messages: `1 of 2 epochs`, or `step 37 of 600 in epoch 2 of 2`."""
        if self.under_way is None:
            return f"{self.epoch} of {self.settings.epochs} epochs"
        return (
            f"step {self.under_way.step} of {self.steps_per_epoch} in epoch {self.epoch + 1} of {self.settings.epochs}"
        )

    def has_diverged(self) -> bool:
        """Whether the last loss, a weight or a logit of the samples is beyond `LARGEST_VALUE` or not a number."""
        row = self.history[-1] if self.history else {}
        losses = [self.last_loss, row.get("validation_loss", 0.0)]
        # The last loss belongs to the weights before the last step, so the weights after it are checked as well.
        weights = [weight.detach().abs().max().item() for weight in self.model.parameters()]
        logits = np.abs(predict_logits(self.model, self._samples(), self.device)).max()
        return not all(value <= LARGEST_VALUE for value in (*losses, *weights, logits))  # nothing compares with NaN

    def checkpoint(self, metrics: Mapping[str, Any] | None = None, temperature: float | None = None) -> Checkpoint:
        """The checkpoint of this moment. Its weights are those of `kept_epoch`.

        Args:
            metrics: Metrics beside the epochs' rows.
            temperature: The temperature of these weights, which is fitted once training is done.
        """
        return Checkpoint(
            spec=self.spec,
            weights=_on_cpu(self.best_weights or self.model.state_dict()),
            settings=self.settings,
            source=self.source,
            metrics={"epochs": self.history, **(metrics or {})},
            samples=torch.from_numpy(self._samples()),
            resume_state={
                "epoch": self.epoch,
                "under_way": asdict(self.under_way) if self.under_way else None,
                "weights": _on_cpu(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict()["state"],
                "data_sha256": self.data_sha256,
                "threads": torch.get_num_threads(),
                "generator": torch.get_rng_state(),
                "cuda_generators": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            temperature=temperature,
        )

    def _samples(self) -> NDArray[np.uint8]:
        held_out = next(iter(self.data.held_out.values()), self.data.train)
        most = max(1, min(SAMPLES, _MOST_SAMPLE_BYTES // held_out.images[:1].nbytes))
        spread = np.linspace(0, len(held_out) - 1, min(most, len(held_out))).astype(int)
        samples: NDArray[np.uint8] = held_out.images[spread]
        return samples

    def restore(self, saved: Checkpoint, path: str | Path) -> None:
        """Continue from what `checkpoint` stored; each value is checked before it is used.

        Raises:
            CheckpointError: a value is missing or wrong; the text names `path`.
        """
        state = saved.resume_state
        try:
            if state["data_sha256"] != self.data_sha256 or type(state["threads"]) is not int:
                raise ValueError("other training data, or threads that are no number")
            self._restore_epochs(state, saved.metrics)
            check_weights(state["weights"], self.spec)
            self.model.load_state_dict(state["weights"])
            self._restore_optimizer(state["optimizer"])
            if self.data.validation and self.history:
                self.best_weights = {name: tensor.to(self.device) for name, tensor in saved.weights.items()}
            torch.set_rng_state(state["generator"])
            if self.device.type == "cuda" and state["cuda_generators"]:
                torch.cuda.set_rng_state_all(state["cuda_generators"])
            self.processes.seed(self.settings.seed, self.steps_done)
        except _UNFIT as error:
            raise CheckpointError(f"{path}: what it holds for resuming is damaged ({type(error).__name__})") from None

    def _restore_epochs(self, state: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.history = list(metrics["epochs"])
        if type(self.epoch) is not int or [row["epoch"] for row in self.history] != list(range(1, self.epoch + 1)):
            raise ValueError("metrics without a row for each epoch")
        if self.data.validation and not all("validation_accuracy" in row for row in self.history):
            raise ValueError("metrics without validation")
        begun = state["under_way"]
        if begun is not None:
            self.under_way = EpochState(**begun)
            self.under_way.draw_order(1)  # raises if the generator's state is damaged
            if self.under_way.step > self.steps_per_epoch:
                raise ValueError("more steps than an epoch has")

    def _restore_optimizer(self, moments: Mapping[int, Mapping[str, Any]]) -> None:
        """Load Adam's moments. The rest of optimizer and schedule follows from the settings and the steps done."""
        parameters = list(self.model.parameters())
        if set(moments) != set(range(len(parameters))):
            raise ValueError("optimizer state of other weights")
        for i, parameter in enumerate(parameters):
            # torch doesn't check this, and its fused kernel would write beyond a state of another shape.
            if not all(is_like(moments[i][name], parameter) for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("optimizer state of another shape than its weight")
            if moments[i]["step"].shape != () or moments[i]["step"].item() != self.steps_done:
                raise ValueError("optimizer state of another step")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": dict(moments)})
        if self.steps_done:
            # A schedule computes the learning rate from the step's number alone.
            behind = {"last_epoch": self.steps_done - 1, "_step_count": self.steps_done + 1}
            self.schedule.load_state_dict(self.schedule.state_dict() | behind)
            self.schedule.step()


def _check_settings(settings: TrainSettings, data: Data, count: int) -> None:
    """Check the settings that depend on the data, and on how many processes share a batch."""
    if settings.batch_size < count:
        raise SettingsError(
            Argument("batch_size", settings.batch_size),
            f" is less than one image for each of {count} processes. Start fewer, or choose a larger ",
            Argument("batch_size"),
        )
    size = data.image_spec
    if settings.shift >= min(size.height, size.width):
        raise SettingsError(Argument("shift"), f" must be less than the images' sides ({size}), not {settings.shift}")
    if settings.patience and data.validation is None:
        raise SettingsError(
            Argument("patience"),
            " needs validation images. Hold some out with ",
            Argument("val_split", 0.2),
            ", or put them into a folder val beside train",
        )


def _data_sha256(data: Data, source: DataSource) -> str:
    """What a resumed run must find as it was: accuracies on other validation images can't be compared."""
    # Images that were held out follow from the training images.
    return images_sha256(data.train, None if source.val_split else data.validation)


def images_sha256(*splits: LabeledImages | None) -> str:
    """The SHA-256 of images and labels, in hexadecimal."""
    digest = hashlib.sha256()
    for split in splits:
        if split is not None:
            digest.update(np.ascontiguousarray(split.images).data.cast("B"))  # no copy of what takes the memory
            digest.update(split.labels.tobytes())
    return digest.hexdigest()


def _make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps_per_epoch: int) -> LRScheduler:
    if settings.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    return OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=settings.epochs * steps_per_epoch,
        cycle_momentum=False,  # made for SGD's momentum; Adam's is left as it is
    )


def _find_device(device: Device) -> torch.device:
    check_argument("device", device, Device)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ProviderError(
            "torch finds no CUDA device here. Choose ",
            Argument("device", "cpu"),
            ", or install a torch built for your CUDA",
        )
    return torch.device("cpu" if device == "cpu" or not available else "cuda")


def _check_precision(settings: TrainSettings, device: torch.device) -> None:
    """Check that the device computes what `amp` asks for."""
    if not settings.amp:
        return
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ProviderError(
            "this GPU doesn't compute in bfloat16 (NVIDIA's do since Ampere). Train without ", Argument("amp")
        )
    if device.type == "cpu" and settings.cell == "lstm":
        try:
            with torch.autocast("cpu", torch.bfloat16):
                nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
        except RuntimeError:  # oneDNN has such LSTMs for some processors only, and says it when one is computed
            raise ProviderError(
                "torch has no LSTM in bfloat16 for this processor (on x86, it needs AVX-512). Train without ",
                Argument("amp"),
                ", or on a GPU",
            ) from None


def _make_spec(data: Data, settings: TrainSettings) -> ModelSpec:
    channels = data.image_spec.channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    if settings.normalize:
        mean, std = _mean_and_deviation(data.train.images)
    return ModelSpec(
        image_spec=data.image_spec,
        class_names=data.class_names,
        cell=settings.cell,
        nonlinearity=settings.nonlinearity,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        bidirectional=settings.bidirectional,
        dropout=float(settings.dropout),
        mean=mean,
        std=std,
        profile=fit_profile(data),
    )


def _mean_and_deviation(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's values, as 0 to 1; a channel of one value has a deviation of 1.

    From the counts of values: floating point numbers of all pixels would take eight times the memory of the images.
    """
    values, counts = np.arange(256), np.zeros((images.shape[3], 256), np.int64)
    together = max(1, _COUNTED_TOGETHER // images[0].size)
    for start in range(0, len(images), together):
        for channel, counted in enumerate(counts):
            counted += np.bincount(images[start : start + together, :, :, channel].ravel(), minlength=256)
    means = counts @ values / counts.sum(axis=1)
    variances = [count @ (values - mean) ** 2 / count.sum() for count, mean in zip(counts, means, strict=True)]
    return tuple((means / 255).tolist()), tuple(float(np.sqrt(value)) / 255 or 1.0 for value in variances)


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}
