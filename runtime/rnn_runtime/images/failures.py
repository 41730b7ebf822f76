"""Whatever goes wrong with one image is an error of that image, and everything else goes on."""

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from rnn_runtime.errors import ImageError, RnnOnnxError

Item = TypeVar("Item")
Value = TypeVar("Value")


class ImageErrors:
    """A `with` block that turns any exception into an `ImageError`: decoders raise exceptions of every kind.

    Errors of this project pass as they are, since a storage that refuses, say, is no error of the image. So does what
    ends a process, such as `KeyboardInterrupt`.

    A class, since a generator would take a microsecond more per block, of some 70 that a small file takes in all.

    Args:
        problem: The text of the error; by default the kind and the text of the exception.

    Raises:
        ImageError: something else was raised.
    """

    __slots__ = ("_problem",)

    def __init__(self, problem: str | None = None) -> None:
        self._problem = problem

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, MemoryError):
            raise ImageError("not enough memory to decode it") from None
        if isinstance(error, Exception) and not isinstance(error, RnnOnnxError):
            raise ImageError(self._problem or f"can't be read ({type(error).__name__}: {error})") from None


def result_or_error(function: Callable[[Item], Value], image: Item) -> Value | ImageError:
    """What a function returns for an image, or the error of the image."""
    try:
        with ImageErrors():
            return function(image)
    except ImageError as error:
        return ImageError(str(error))  # `error` keeps the file's bytes, in its traceback
