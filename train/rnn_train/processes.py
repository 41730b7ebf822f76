"""The processes that `torchrun` started to train one model together. A run of one process never comes here.

All of them run the same code. They ask something of each other at three places: at the start, whether all have the same
settings and data; in each step, for the sum of gradients and of signals; and after a checkpoint, whether it was
written. A process that fails claims the report, prints it and ends. The others notice that its connections close, and
end silently.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rnn_runtime.errors import (
    Argument,
    DataError,
    OtherProcessError,
    ProcessLostError,
    ProviderError,
    RnnOnnxError,
    SettingsError,
)
from rnn_runtime.interruption import SIGNALS, note_signal, noted_signal, wait_for
from rnn_train.data import Data, DataSource, load_data
from rnn_train.training_state import OneProcess, images_sha256

# A process that ends is noticed at once, because its connections close. These are for machines that vanish.
WAIT = timedelta(minutes=2)
_WAIT_FOR_DATA = timedelta(hours=6)  # while another process downloads or reads the images
_WAIT_FOR_STORE = timedelta(seconds=10)
_WAIT_FOR_REPORT = 5  # seconds in which the process that fails prints why

_Value = TypeVar("_Value")
_joined = 0  # how often this process has met the others


class Processes(OneProcess):
    """The processes that train together; `OneProcess` describes the methods.

    Args:
        store: A dictionary that all of them see.
    """

    def __init__(self, store: Store) -> None:
        # https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        self.rank, self.count, self._local_rank, self._local_count = (int(os.environ[name]) for name in names)
        self._store = store
        self._stopped = False
        with self._connections():
            self._patient: Any = dist.new_group(timeout=_WAIT_FOR_DATA, backend="gloo")
            self._control: Any = dist.new_group(timeout=WAIT, backend="gloo")
        self._gradients: Any = self._control

    @property
    def is_stopped(self) -> bool:
        """Whether all processes know of a signal to one of them."""
        return self._stopped

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Check that all processes were started with the same values."""
        first, rank, other = self._compare(dict(values))
        for name in first:
            if other[name] != first[name]:
                its, mine = Argument(name, other[name]), Argument(name, first[name])
                raise SettingsError(
                    f"process {rank} was started with ", its, ", and process 0 with ", mine, ". Start all alike"
                )

    def check_position(self, position: str) -> None:
        """Check that all processes go on from the same checkpoint, or from none."""
        first, rank, other = self._compare(position)
        if other != first:
            raise SettingsError(
                f"process {rank} is at {other}, and process 0 at {first}. Copy the checkpoint to all machines, or let "
                "them share its folder"
            )

    def use_device(self, device: torch.device) -> torch.device:
        """The device of this process. Between GPUs, gradients go by NCCL."""
        self.check_same({"device": device.type})
        if device.type != "cuda":
            return device
        if self._local_count > torch.cuda.device_count():
            raise ProviderError(
                f"{self._local_count} processes on this machine, and torch finds {torch.cuda.device_count()} GPUs. "
                "Start one process per GPU, or choose ",
                Argument("device", "cpu"),
            )
        torch.cuda.set_device(self._local_rank)
        # Without it, NCCL ends the process after a failure, instead of raising an error.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        with self._connections():
            self._gradients = dist.new_group(timeout=WAIT, backend="nccl")
        return torch.device("cuda", self._local_rank)

    def load(self, source: DataSource) -> Data:
        """Load the data in each process, and check that it is the same. The first of a machine may download it."""
        waits_for_download = source.data is None and self._local_rank > 0
        if waits_for_download:
            self._gather(None, patient=True)
        data = load_data(source)
        if source.data is None and not waits_for_download:
            self._gather(None, patient=True)
        images = images_sha256(data.train, data.validation, data.test)
        first, rank, other = self._compare((images, data.class_names), patient=True)
        if other != first:
            raise DataError(f"{source.name}: process {rank} reads other images or classes than process 0")
        return data

    def from_first(self, make: Callable[[], _Value]) -> _Value:
        """What process 0 makes, given to all."""
        made = [make() if self.is_first else None]
        with self._connections():
            dist.broadcast_object_list(made, group=self._control)
        value: Any = made[0]
        return value  # type: ignore[no-any-return]

    def seed(self, seed: int, steps_done: int) -> None:
        """Draw other dropout and augmentation than process 0, whose random numbers are those of a single process."""
        if not self.is_first:
            own = np.random.SeedSequence([seed, self.rank, steps_done]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(own) >> 1)

    def take_share(self, batch: Tensor, weigh: Callable[[Tensor], float]) -> tuple[Tensor, float]:
        """Every n-th row of a batch, and its share of the batch's loss."""
        own = batch[self.rank :: self.count]
        if not len(own):  # the last batch of an epoch may have fewer images than there are processes
            return batch[:1], 0.0
        return own, weigh(own) / weigh(batch)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, and learn of their signals.

        All are sent as one, since a message takes longer than its bytes.
        """
        signals = torch.tensor([float(number == noted_signal()) for number in SIGNALS], device=tensors[0].device)
        tensors = [*tensors, signals]
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._connections():
            dist.all_reduce(together, group=self._gradients)
        for tensor, total in zip(tensors, torch.split(together, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
        for number, came in zip(SIGNALS, signals.tolist(), strict=True):
            if came:
                note_signal(number)
                self._stopped = True

    def meet(self) -> None:
        """Wait until all are here, which none is that failed."""
        self._gather(None)

    def _gather(self, value: _Value, *, patient: bool = False) -> list[_Value]:
        """The values of all processes, in the order of their numbers; `patient` if others may take hours."""
        values: list[Any] = [None] * self.count
        with self._connections():
            dist.all_gather_object(values, value, group=self._patient if patient else self._control)
        return values

    def _compare(self, value: _Value, *, patient: bool = False) -> tuple[_Value, int, _Value]:
        """The value of process 0, and the number and value of the first process that has another, or of itself."""
        values = self._gather(value, patient=patient)
        rank = next((rank for rank, other in enumerate(values) if other != values[0]), 0)
        return values[0], rank, values[rank]

    @contextmanager
    def _connections(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:  # torch's own classes for it derive from it, and Gloo raises no other
            raise ProcessLostError(f"another process ended, or didn't answer for {_minutes(WAIT)}") from None

    def claims_report(self) -> bool:
        """Whether this process is the first that fails, and is to say why."""
        try:
            self._store.set_timeout(_WAIT_FOR_STORE)
            return bool(self._store.add("failed", 1) == 1)
        except RuntimeError:  # torchrun, which keeps the store, has ended as well
            return True


@contextmanager
def join_processes(values: Mapping[str, Any]) -> Iterator[OneProcess]:
    """Meet the processes that torchrun started with this one, until the end of the block.

    A program that has made its process group already keeps it.

    Args:
        values: What all must have been started with, by the names of arguments.

    Raises:
        ProcessLostError: they aren't there after two minutes.
        SettingsError: a value differs; the text names it.
        OtherProcessError: an error ended the block, here or elsewhere, and another process reports it.
    """
    if os.environ["WORLD_SIZE"] == "1":
        yield OneProcess()
        return
    makes_group = not dist.is_initialized()
    # In a thread: torch's code, which waits for the others, would hold up Ctrl-C and SIGTERM.
    store = wait_for(lambda: _meet(makes_group=makes_group))
    try:
        processes = Processes(store)
        try:
            processes.check_same(values)
            yield processes
        except BaseException as error:
            if not processes.claims_report() and isinstance(error, RnnOnnxError | KeyboardInterrupt):
                raise OtherProcessError(f"another process reports an error; here: {error}", 1) from None
            raise
    finally:
        if makes_group:
            with contextlib.suppress(RuntimeError):  # some may have ended
                dist.destroy_process_group()


def _meet(*, makes_group: bool) -> Store:
    """Wait for the other processes."""
    global _joined
    try:
        store, rank, count = next(rendezvous("env://", timeout=WAIT))
        # The keys of a group that has ended must not meet those of the next.
        _joined += 1
        store = PrefixStore(f"rnn_train/{_joined}", store)
        if makes_group:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=WAIT)
        return store
    except RuntimeError:
        text = (
            f"the other processes that torchrun started didn't come within {_minutes(WAIT)}. One may have ended with "
            "an error of its own, such as a wrong option"
        )
        raise ProcessLostError(text) if os.environ["LOCAL_RANK"] == "0" else OtherProcessError(text, 1) from None


def is_reported_elsewhere(error: BaseException) -> bool:
    """Whether another process prints an error; then wait until it has.

    Before the processes meet, the first of each machine reports.
    """
    elsewhere = isinstance(error, OtherProcessError) or (os.environ["LOCAL_RANK"] != "0" and not _joined)
    if elsewhere:
        # Once one process has ended, torchrun sends SIGTERM to the others, also to the one that is about to print.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.sigtimedwait([signal.SIGTERM], _WAIT_FOR_REPORT)
    return elsewhere


def _minutes(wait: timedelta) -> str:
    return f"{wait.total_seconds() / 60:.0f} minutes"
