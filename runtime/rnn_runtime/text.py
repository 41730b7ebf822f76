"""Text for people: safe to print, in one line, or as a table."""

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported where a table is printed
    from rich.table import Table

_LONGEST_MESSAGE = 2000  # characters


def printable(text: str) -> str:
    """A text without line breaks, terminal codes and bytes that are no text, which a file's name may hold: escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(message: str) -> str:
    """A message in one line, whatever a library, or a file's name, put into it; of a long one, beginning and end."""
    text = printable(" ".join(message.split()))
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def print_table(table: "Table", file: IO[str]) -> None:
    """Print a rich table: as wide as the terminal, or as it needs where there is none, or else cells would be cut."""
    from rich.console import Console

    console = Console(file=file, markup=False, highlight=False, emoji=False)
    needed = console.measure(table, options=console.options.update(max_width=10_000))
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    with console.capture() as text:  # written by us, since rich ends the process where the reader has gone
        console.print(table)
    file.write(text.get())
