"""A training run's curves for TensorBoard."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rnn_runtime.command.packages import require_packages
from rnn_runtime.command.streams import say
from rnn_runtime.errors import OutputError
from rnn_train.callbacks import TrainingCallback

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

_STEPS_PER_POINT = 10  # of the curve of single batches
_IMAGES = 16


class TensorBoardCallback(TrainingCallback):
    """Writes loss, accuracy, learning rate, speed and each epoch's first training images as TensorBoard events.

    The horizontal axis counts optimizer steps. A resumed run continues the curves in the same folder: points beyond its
    checkpoint are hidden, since it reaches these steps again (`purge_step` of `SummaryWriter`). A new run hides all
    points of earlier runs in the folder. Use it in a `with` block, which closes the file.

    Args:
        folder: Where the events go; `tensorboard --logdir` shows it, or several below one folder.

    Raises:
        MissingPackageError: the package tensorboard isn't installed.
    """

    def __init__(self, folder: str | Path) -> None:
        require_packages(["tensorboard"])
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._steps_per_epoch = 0
        self._thread_hook = threading.excepthook

    def __enter__(self) -> Self:
        # The thread that writes would print its error, which `_write` reports.
        self._thread_hook, threading.excepthook = threading.excepthook, self._report_thread_error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(lambda writer: writer.close())
        threading.excepthook = self._thread_hook

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:  # noqa: ARG002
        from torch.utils.tensorboard import SummaryWriter

        self._steps_per_epoch = steps_per_epoch
        _wait_for_a_later_name(Path(self._folder))
        try:
            self._writer = SummaryWriter(self._folder, purge_step=steps_done + 1)
        except (OSError, UnicodeError) as error:
            unwritable = error.strerror or error if isinstance(error, OSError) else "its name isn't UTF-8"
            raise OutputError(
                f"{self._folder}: TensorBoard's events can't be written to this folder: {unwritable}. "
                "Choose another folder with `tensorboard`"
            ) from None

    def first_batch(self, epoch: int, images: "Tensor") -> None:
        step, shown = (epoch - 1) * self._steps_per_epoch + 1, images[:_IMAGES].cpu()
        self._write(lambda writer: writer.add_images("images/train", shown, step, dataformats="NHWC"))

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:  # noqa: ARG002
        done = (epoch - 1) * self._steps_per_epoch + step
        if done % _STEPS_PER_POINT == 0:
            self._add_scalars({"loss/batch": loss}, done)

    def epoch(self, metrics: Mapping[str, float]) -> None:
        values = {_TAGS.get(name, name): value for name, value in metrics.items() if name != "epoch"}
        self._add_scalars(values, int(metrics["epoch"]) * self._steps_per_epoch)

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        def add(writer: "SummaryWriter") -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.flush()  # a checkpoint may follow, from which a resumed run continues the curves

        self._write(add)

    def _write(self, write: Callable[["SummaryWriter"], None]) -> None:
        """Write something, unless that has failed before: a full disk is no reason to stop training."""
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            self._writer = None
            say(f"{self._folder}: TensorBoard's events can't be written any more: {error.strerror or error}")

    def _report_thread_error(self, failed: threading.ExceptHookArgs) -> None:
        if not (issubclass(failed.exc_type, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            self._thread_hook(failed)


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait while the folder has events of this very second.

    TensorBoard reads files in the order of their names. A name begins with the second in which its file was opened, and
    what follows (host, process, count) is in no order.
    """
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


# TensorBoard groups curves by what comes before the slash.
_TAGS = {f"{split}_{value}": f"{value}/{split}" for split in ("train", "validation") for value in ("loss", "accuracy")}
