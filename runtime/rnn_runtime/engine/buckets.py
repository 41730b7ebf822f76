"""Batch sizes that a device runs: few, so that any number of images needs a bounded number of buffers and graphs."""

from collections.abc import Iterator

LARGEST = 1 << 14  # images per run. Measured on no GPU yet: beyond it, launching kernels is a small part of a run
_MOST_CHOSEN = 8


class Buckets:
    """Powers of two up to `LARGEST`, and the first few batch sizes that a caller chose.

    Rows of a batch are independent, so a batch may be padded to the next size, and a larger one divided.
    """

    def __init__(self) -> None:
        self._chosen: tuple[int, ...] = ()  # replaced as a whole, since several threads read it

    def fit(self, images: int, batch_size: int | None = None) -> int:
        """The number of rows to run for a batch.

        Args:
            images: Number of images, 1 to `LARGEST`.
            batch_size: The size of the caller's full batches, of which this is one or a part.

        Returns:
            At least `images`, and less than twice as many.
        """
        is_new = batch_size is not None and batch_size <= LARGEST and batch_size not in self._chosen
        if batch_size is not None and is_new and len(self._chosen) < _MOST_CHOSEN:
            self._chosen += (batch_size,)
        power = 1 << (images - 1).bit_length()
        return min([power, *(size for size in self._chosen if size >= images)])


def divide(images: int) -> Iterator[slice]:
    """Divide a batch into parts of at most `LARGEST` images."""
    return (slice(start, min(start + LARGEST, images)) for start in range(0, images, LARGEST))
