"""A training run's curves for TensorBoard."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from rnn_runtime.command.command import require_packages, say
from rnn_runtime.errors import Argument, OutputError
from rnn_train.callbacks import TrainingCallback

if TYPE_CHECKING:
    from torch import Tensor

_STEPS_PER_POINT = 10  # of the curve of single batches
_IMAGES = 16
# TensorBoard groups curves by what comes before the slash.
_TAGS = {f"{split}_{value}": f"{value}/{split}" for split in ("train", "validation") for value in ("loss", "accuracy")}


class TensorBoardCallback(TrainingCallback):
    """Writes loss, accuracy, learning rate, speed and each epoch's first training images as TensorBoard events.

    The horizontal axis counts optimizer steps. A resumed run continues the curves in the same folder: points beyond its
    checkpoint are hidden, since it reaches these steps again. A new run hides all points of earlier runs in the folder.
    Use it in a `with` block, which closes the file.

    Events are written by this thread, not by the one that torch's `SummaryWriter` starts: a thread would print a
    traceback of its own where the disk is full.

    Args:
        folder: Where the events go; `tensorboard --logdir` shows it, or several below one folder.

    Raises:
        MissingPackageError: the package tensorboard isn't installed.
    """

    def __init__(self, folder: str | Path) -> None:
        require_packages(["tensorboard"])
        self._folder = Path(folder)
        self._file: IO[bytes] | None = None
        self._steps_per_epoch = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:  # noqa: ARG002
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._steps_per_epoch = steps_per_epoch
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files in the order of their names.
            self._file = (self._folder / f"events.out.tfevents.{time.time_ns()}").open("xb")
        except OSError as error:
            raise OutputError(
                f"{self._folder}: TensorBoard's events can't be written to this folder: {error.strerror or error}. "
                "Choose another folder with ",
                Argument("tensorboard"),
            ) from None
        self._write(0, file_version="brain.Event:2")
        self._write(steps_done + 1, session_log=SessionLog(status=SessionLog.START))  # hides later points, if any

    def first_batch(self, epoch: int, images: "Tensor") -> None:
        from torch.utils.tensorboard.summary import image

        step = (epoch - 1) * self._steps_per_epoch + 1
        self._write(step, summary=image("images/train", images[:_IMAGES].cpu(), dataformats="NHWC"))  # type: ignore[no-untyped-call]

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:  # noqa: ARG002
        done = (epoch - 1) * self._steps_per_epoch + step
        if done % _STEPS_PER_POINT == 0:
            self._write_scalar(done, "loss/batch", loss)

    def epoch(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name != "epoch":
                self._write_scalar(int(metrics["epoch"]) * self._steps_per_epoch, _TAGS.get(name, name), value)

    def _write_scalar(self, step: int, tag: str, value: float) -> None:
        from torch.utils.tensorboard.summary import scalar

        self._write(step, summary=scalar(tag, value))  # type: ignore[no-untyped-call]

    def _write(self, step: int, **content: Any) -> None:
        """Write an event, unless that has failed before: a full disk is no reason to stop training."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            return
        try:
            RecordWriter(self._file).write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
            self._file.flush()  # a checkpoint may follow, from which a resumed run continues the curves
        except OSError as error:
            self._close()
            say(f"{self._folder}: TensorBoard's events can't be written any more: {error.strerror or error}")

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # that it can't be written is said already
                self._file.close()
            self._file = None
