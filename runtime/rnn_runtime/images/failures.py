"""Whatever goes wrong with one image is an error of that image, and everything else goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rnn_runtime.errors import ImageError, RnnOnnxError

Item = TypeVar("Item")
Value = TypeVar("Value")


@contextmanager
def image_errors(problem: str | None = None) -> Iterator[None]:
    """Turn any exception into an `ImageError`: decoders raise exceptions of every kind for damaged files.

    Errors of this project pass as they are, since a storage that refuses, say, is no error of the image. So does what
    ends a process, such as `KeyboardInterrupt`.

    Args:
        problem: The text of the error; by default the kind and the text of the exception.

    Raises:
        ImageError: something else was raised.
    """
    try:
        yield
    except RnnOnnxError:
        raise
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except Exception as error:
        raise ImageError(problem or f"can't be read ({type(error).__name__}: {error})") from None


def result_or_error(function: Callable[[Item], Value], image: Item) -> Value | ImageError:
    """What a function returns for an image, or the error of the image."""
    try:
        with image_errors():
            return function(image)
    except ImageError as error:
        return ImageError(str(error))  # `error` keeps the file's bytes, in its traceback
