"""What a person sees of a training run: the article's lines, and on a terminal or in a notebook a progress bar."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rnn_runtime.command.command import Screen, print_line, say
from rnn_runtime.cores import threads_are_scarce
from rnn_runtime.text import printable

if TYPE_CHECKING:
    from torch import Tensor

LINES_EVERY = 100  # steps, as in the article
_REDRAWN_EVERY = 0.25  # seconds, in a notebook


class TrainingCallback:
    """Base class of what `train` reports to; it prints nothing. Override what you need."""

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        """Training starts. It takes `epochs` times `steps_per_epoch` steps; `steps_done` of them were done before."""

    def note(self, text: str) -> None:
        """A remark about the data or the files, before training starts."""

    def first_batch(self, epoch: int, images: "Tensor") -> None:
        """An epoch starts; `images` is its first batch as the model sees it, uint8 `(batch, height, width, 1 or 3)`."""

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        """A step is done, on a batch of `images`. `epoch` and `step` count from 1."""

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """An epoch is done; `metrics` is its row of `metrics.csv`."""

    def message(self, text: str) -> None:
        """A line for the user."""


class CallbackList(TrainingCallback):
    """Calls several callbacks, in order."""

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
    """Prints the article's lines on stdout and remarks on stderr; shows a progress bar on a terminal or in a notebook.

    Use it in a `with` block, which removes the bar from the terminal:

    ```python
    with ConsoleCallback() as callback:
        train(DataSource(dataset="digits"), TrainSettings(), "model.pt", callback=callback)
    ```
    """

    def __init__(self) -> None:
        self._console = Console(
            file=cast(IO[str], Screen(sys.stdout)), markup=False, highlight=False, emoji=False, soft_wrap=True
        )
        self._bar: Progress | None = None
        self._cell: Any = None  # of a notebook
        self._drawn = 0.0
        self._task = TaskID(0)
        self._epochs = self._steps_per_epoch = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cell:
            self._cell.update(self._bar)
        elif self._bar:
            self._bar.stop()

    def start(self, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        if not (self._console.is_terminal or self._console.is_jupyter) or threads_are_scarce():
            return
        columns = (
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=epochs * steps_per_epoch, completed=steps_done, speed="")
        if self._console.is_jupyter:
            from IPython.display import display  # there is one where there is a notebook

            # rich needs ipywidgets to draw a bar in its place, which not every notebook has.
            self._cell = display(self._bar, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._bar.start()

    def step(self, epoch: int, step: int, loss: float, images: int) -> None:
        if self._bar:
            self._bar.advance(self._task)
            speed = self._bar.tasks[0].speed  # steps per second
            self._bar.update(self._task, speed=f"{speed * images:,.0f} images/s" if speed else "")
        if self._cell and time.monotonic() - self._drawn > _REDRAWN_EVERY:
            self._cell.update(self._bar)
            self._drawn = time.monotonic()
        if step % LINES_EVERY == 0 and step < self._steps_per_epoch:
            self.message(f"Epoch [{epoch}/{self._epochs}], Step [{step}/{self._steps_per_epoch}], Loss: {loss:.4f}")

    def epoch(self, metrics: Mapping[str, float]) -> None:
        epoch, steps = f"Epoch [{metrics['epoch']}/{self._epochs}]", self._steps_per_epoch
        self.message(f"{epoch}, Step [{steps}/{steps}], Loss: {metrics['train_loss']:.4f} (mean of the epoch)")
        if "validation_loss" in metrics:
            loss, accuracy = metrics["validation_loss"], metrics["validation_accuracy"]
            self.message(f"{epoch}, Validation loss: {loss:.4f}, accuracy: {100 * accuracy:.2f} %")

    def note(self, text: str) -> None:
        say(printable(text))  # with names of files, which may hold terminal codes

    def message(self, text: str) -> None:
        if self._bar and not self._cell:
            self._console.print(text)
        else:
            print_line(text)
