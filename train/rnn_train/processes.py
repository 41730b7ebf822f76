"""The processes that train one model together: those that `torchrun` started, or this one alone.

All of them run the same code and meet in the same calls, in the same order. Alone, each call does nothing.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rnn_runtime.errors import OtherProcessError, ProcessLostError, RnnOnnxError, SettingsError
from rnn_runtime.interruption import exit_code_of
from rnn_train.torchrun import Launch

# A process that ends is noticed at once, because its connections close. These are for machines that vanish.
WAIT = timedelta(minutes=2)  # between steps
_MEETING = timedelta(minutes=2)  # at the start
_WAIT_FOR_DATA = timedelta(hours=6)  # while another process of the machine downloads or reads the images
_WAIT_FOR_STORE = timedelta(seconds=10)

_Value = TypeVar("_Value")
_joined = itertools.count()
_ALONE = Launch()


class Processes:
    """The processes that train together.

    Attributes:
        rank: The number of this process, from 0 on. Process 0 reads and writes files, and reports.
        count: How many there are.
    """

    def __init__(self, launch: Launch = _ALONE, store: Store | None = None) -> None:
        self.rank, self.count, self._launch, self._store = launch.rank, launch.count, launch, store
        self._control: Any = None
        self._patient: Any = None
        self._gradients: Any = None
        if not self.is_alone:
            with self._failures():
                self._patient = dist.new_group(timeout=_WAIT_FOR_DATA, backend="gloo")
                self._control = self._gradients = dist.new_group(timeout=WAIT, backend="gloo")

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine, from 0 on."""
        return self._launch.local_rank

    @property
    def local_count(self) -> int:
        """How many of the processes are on this machine."""
        return self._launch.local_count

    def use_device(self, device: torch.device) -> None:
        """Let gradients go from GPU to GPU, by NCCL, if the device is one. Call it once, before `add_up`."""
        self.check_same({"device": device.type})
        if device.type == "cuda" and not self.is_alone:
            # Without it, NCCL ends the process after a failure, instead of raising an error.
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
            with self._failures():
                self._gradients = dist.new_group(timeout=WAIT, backend="nccl")

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes: float32, on one device, the same shapes everywhere.

        All are sent as one, since a message takes longer than its bytes.
        """
        if self.is_alone:
            return
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._failures():
            dist.all_reduce(together, group=self._gradients)
        for tensor, total in zip(tensors, torch.split(together, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def from_main(self, make: Callable[[], _Value]) -> _Value:
        """Call a function in process 0, and give what it returns, or raises, to all."""
        if self.is_alone:
            return make()
        made: list[Any] = [None]
        with self.agree():
            if self.is_main:
                made = [make()]
        with self._failures():
            dist.broadcast_object_list(made, group=self._control)
        value: _Value = made[0]
        return value

    def gather(self, value: _Value, *, patient: bool = False) -> list[_Value]:
        """The values of all processes, in the order of their numbers.

        Args:
            value: That of this process.
            patient: Whether others may take hours until they are there.
        """
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.count
        with self._failures():
            dist.all_gather_object(values, value, group=self._patient if patient else self._control)
        return values

    def concatenate(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """Join the rows of all processes, in the order of their numbers.

        Args:
            own: The rows of this process, on the CPU.
            counts: How many rows each process has.
        """
        if self.is_alone:
            return own
        joined = own.new_empty(sum(counts), *own.shape[1:])
        with self._failures():
            for rank, rows in enumerate(torch.split(joined, list(counts))):
                if rank == self.rank:
                    rows.copy_(own)
                if len(rows):
                    dist.broadcast(rows, src=rank, group=self._control)
        return joined

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Check that all processes were started with the same values.

        Raises:
            SettingsError: one differs; the text names it.
        """
        first, *_ = all_of_them = self.gather(dict(values))
        with self.agree():
            for rank, found in enumerate(all_of_them):
                for name, value in found.items():
                    if value != first[name]:
                        raise SettingsError(
                            f"process {rank} was started with `{name}={value!r}`, and process 0 with "
                            f"`{name}={first[name]!r}`. Start all with the same options"
                        )

    @contextmanager
    def agree(self, *, patient: bool = False) -> Iterator[None]:
        """Run a part that may fail in some processes: then it fails in all, and process 0 reports the first error.

        All leave the block at the same time.

        Args:
            patient: Whether others may take hours for it.

        Raises:
            RnnOnnxError, KeyboardInterrupt: in process 0, what was raised here or in another process.
            OtherProcessError: in the others.
        """
        if self.is_alone:
            yield
            return
        error: RnnOnnxError | KeyboardInterrupt | None = None
        try:
            yield
        except (ProcessLostError, OtherProcessError):
            raise
        except (RnnOnnxError, KeyboardInterrupt) as caught:
            error = caught
        raised = self.gather(None if error is None else (type(error), str(error)), patient=patient)
        if self.is_main and error is not None:
            raise error
        for rank, found in enumerate(raised):
            if found is not None:
                kind, text = found
                self._raise_of(rank, kind, text)

    def _raise_of(self, rank: int, kind: type[RnnOnnxError | KeyboardInterrupt], text: str) -> None:
        """Raise what another process raised."""
        text = f"process {rank}: {text}"
        error = kind() if issubclass(kind, KeyboardInterrupt) else kind(text)
        if self.is_main:
            raise error from None
        code = exit_code_of(error) if isinstance(error, KeyboardInterrupt) else error.exit_code
        raise OtherProcessError(text, code) from None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn errors of the connections into one line, which one process reports."""
        try:
            yield
        except RuntimeError:  # torch's own classes for it derive from it, and Gloo raises no other
            if self._reports_loss():
                raise ProcessLostError(f"another process ended, or didn't answer for {_minutes(WAIT)}") from None
            raise OtherProcessError(
                "another process ended; a third one reports it", ProcessLostError.exit_code
            ) from None

    def _reports_loss(self) -> bool:
        """Whether this process is the first to notice that another has ended."""
        if self._store is None:
            return True
        try:
            self._store.set_timeout(_WAIT_FOR_STORE)
            return bool(self._store.add("lost", 1) == 1)
        except RuntimeError:  # the store, which torchrun keeps, has ended as well
            return True


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Meet the processes that torchrun started with this one, until the end of the block.

    A program that has made its process group already keeps it.

    Raises:
        ProcessLostError: they aren't there after two minutes.
    """
    launch = Launch.of_this_process()
    if launch.count == 1:
        yield Processes(launch)
        return
    makes = not dist.is_initialized()
    # In a thread: torch's code, which waits for the others, would hold up Ctrl-C and SIGTERM.
    met: SimpleQueue[Store | RuntimeError] = SimpleQueue()
    threading.Thread(target=lambda: met.put(_meet(launch, makes=makes)), daemon=True).start()
    store = met.get()
    if isinstance(store, RuntimeError):
        raise ProcessLostError(
            f"the other processes that torchrun started didn't come within {_minutes(_MEETING)}. One may have ended "
            "with an error of its own, such as a wrong option"
        )
    try:
        yield Processes(launch, store)
    finally:
        if makes:
            with contextlib.suppress(RuntimeError):  # some may have ended
                dist.destroy_process_group()


def _meet(launch: Launch, *, makes: bool) -> Store | RuntimeError:
    """Wait for the other processes: the store that all of them see, or why there is none."""
    try:
        store, *_ = next(rendezvous("env://", timeout=_MEETING))
        # The keys of a group that has ended must not meet those of the next.
        store = PrefixStore(f"rnn_train/{next(_joined)}", store)
        if makes:
            dist.init_process_group("gloo", store=store, rank=launch.rank, world_size=launch.count, timeout=_MEETING)
        return store
    except RuntimeError as error:
        return error


def _minutes(wait: timedelta) -> str:
    return f"{wait.total_seconds() / 60:.0f} minutes"
