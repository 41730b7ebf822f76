"""Batch sizes that a device runs: few, so that any number of images needs a bounded number of buffers and graphs."""

import threading
from collections.abc import Iterator

LARGEST = 1 << 14  # images per run. Measured on no GPU yet: beyond it, launching kernels is a small part of a run
_MOST_CHOSEN = 8


class Buckets:
    """Powers of two up to `LARGEST`, and the first few batch sizes that a caller chose.

    Rows of a batch are independent, so a batch may be padded to the next size, and a larger one divided. Any number of
    threads may use one object.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chosen: dict[int, bool] = {}  # by size: whether a run of it has succeeded

    def fit(self, images: int, batch_size: int | None = None) -> int:
        """The number of rows to run for a batch.

        Args:
            images: Number of images, 1 to `LARGEST`.
            batch_size: The size of the caller's full batches, of which this is one or a part.

        Returns:
            At least `images`, and less than twice as many.
        """
        power = 1 << (images - 1).bit_length()
        with self._lock:
            if batch_size is not None and batch_size <= LARGEST and len(self._chosen) < _MOST_CHOSEN:
                self._chosen.setdefault(batch_size, False)
            return min([power, *(size for size in self._chosen if size >= images)])

    def keep(self, rows: int) -> None:
        """Note that a run of so many rows succeeded."""
        with self._lock:
            if rows in self._chosen:
                self._chosen[rows] = True

    def forget(self, rows: int) -> None:
        """Note that a run of so many rows failed: if none has succeeded, another size may have its place."""
        with self._lock:
            if not self._chosen.get(rows, True):
                del self._chosen[rows]


def divide(images: int) -> Iterator[slice]:
    """Divide a batch into parts of at most `LARGEST` images."""
    return (slice(start, min(start + LARGEST, images)) for start in range(0, images, LARGEST))
