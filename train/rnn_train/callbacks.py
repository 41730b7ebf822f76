"""What a person sees of a training run: the article's lines, and on a terminal a live bar below them."""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rnn_runtime.command.command import as_options
from rnn_runtime.command.streams import print_line, say
from rnn_runtime.text import printable

if TYPE_CHECKING:
    from torch import Tensor

LINES_EVERY = 100  # steps, as in the article


class TrainingCallback:
    """Told of each step by the training loop; this base class keeps quiet."""

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        """Training begins, of `epochs` times `steps_per_epoch`, of which `steps_done` are behind it."""

    def note(self, text: str) -> None:
        """Something to know about the data or the files, before training starts."""

    def first_batch(self, epoch: int, images: "Tensor") -> None:
        """An epoch begins, with these images as the model sees them: uint8, `(batch, height, width, channels)`."""

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        """A step is done; `epoch` and `step` count from 1. `images` went through it."""

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """An epoch is done; `metrics` is its row of `metrics.csv`."""

    def message(self, text: str) -> None:
        """Something worth a line of its own."""


class CallbackList(TrainingCallback):
    """Passes everything on to several callbacks, in their order."""

    def __init__(self, *callbacks: TrainingCallback) -> None:
        self._callbacks = callbacks

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        for callback in self._callbacks:
            callback.start(epochs, steps_per_epoch, steps_done)

    def note(self, text: str) -> None:
        for callback in self._callbacks:
            callback.note(text)

    def first_batch(self, epoch: int, images: "Tensor") -> None:
        for callback in self._callbacks:
            callback.first_batch(epoch, images)

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        for callback in self._callbacks:
            callback.step(epoch, step, loss, images)

    def epoch(self, metrics: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            callback.epoch(metrics)

    def message(self, text: str) -> None:
        for callback in self._callbacks:
            callback.message(text)


class ConsoleCallback(TrainingCallback):
    """Lines on stdout, as the article prints them, notes on stderr; a bar with speed and time left if it is a terminal.

    Used in a `with` block, which takes the bar down again.
    """

    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._epochs = self._steps_per_epoch = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        if self._console.is_terminal:
            columns = (
                TextColumn("Training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=epochs * steps_per_epoch, completed=steps_done, speed="")
            self._bar.start()

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        if self._bar:
            self._bar.advance(self._task)
            speed = self._bar.tasks[0].speed  # steps a second
            self._bar.update(self._task, speed=f"{speed * images:,.0f} images/s" if speed else "")
        if step % LINES_EVERY == 0 and step < self._steps_per_epoch:
            self.message(f"Epoch [{epoch}/{self._epochs}], Step [{step}/{self._steps_per_epoch}], Loss: {loss:.4f}")

    def epoch(self, metrics: Mapping[str, float]) -> None:
        epoch, steps = f"Epoch [{metrics['epoch']}/{self._epochs}]", self._steps_per_epoch
        self.message(f"{epoch}, Step [{steps}/{steps}], Loss: {metrics['train_loss']:.4f} (mean of the epoch)")
        if "validation_loss" in metrics:
            loss, accuracy = metrics["validation_loss"], metrics["validation_accuracy"]
            self.message(f"{epoch}, Validation loss: {loss:.4f}, accuracy: {100 * accuracy:.2f} %")

    def note(self, text: str) -> None:
        say(printable(as_options(text)))  # with names of files, which may hold terminal codes

    def message(self, text: str) -> None:
        text = as_options(text)
        if self._bar:
            self._console.print(text)
        else:
            print_line(text)
