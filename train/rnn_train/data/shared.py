"""One copy of the images for all processes of a machine."""

import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any

from rnn_runtime.errors import DataError
from rnn_train.data.labeled_images import Data
from rnn_train.data.load import load_data
from rnn_train.data.source import DataSource
from rnn_train.processes import Processes

_ALIGNMENT = 64  # bytes


def load_shared(source: DataSource, processes: Processes) -> Data:
    """Load a data set as `load_data` does, once per machine. The processes of a machine map the same memory.

    While it is copied there, the first of them holds it twice.

    Raises:
        DataError: as for `load_data`, or there is no memory for the copy.
    """
    if processes.local_count == 1:
        with processes.agree(patient=True):
            return load_data(source)
    place: tuple[str, Any] | None = None
    descriptor = None
    try:
        with processes.agree(patient=True):
            if processes.local_rank == 0:
                descriptor = os.memfd_create("rnn-train data")  # has no name, so nothing is left of it in any case
                place = (f"/proc/{os.getpid()}/fd/{descriptor}", _write(load_data(source), descriptor))
        # torchrun numbers the processes of a machine one after the other.
        place = processes.gather(place)[processes.rank - processes.local_rank]
        assert place is not None
        with processes.agree():
            return _map(*place)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _write(data: Data, descriptor: int) -> tuple[bytes, Sequence[tuple[int, int]]]:
    """Write the arrays of a data set into a file: the rest of it, and where each array begins and ends."""
    arrays: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(data, protocol=5, buffer_callback=arrays.append)
    bounds = []
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            for array in arrays:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                start = file.tell()
                file.write(array.raw())
                bounds.append((start, file.tell()))
    except OSError as error:
        raise DataError(f"the images can't be shared by the processes of this machine: {error.strerror}") from None
    return rest, bounds


def _map(path: str, description: tuple[bytes, Sequence[tuple[int, int]]]) -> Data:
    rest, bounds = description
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            # Private to this process where it is written to, and the same memory where it isn't.
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise DataError(f"the images of process {path.split('/')[2]} can't be read: {error.strerror}") from None
    data: Data = pickle.loads(rest, buffers=[memory[start:stop] for start, stop in bounds])
    return data
