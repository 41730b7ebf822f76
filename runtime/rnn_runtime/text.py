"""Text for people: printable, in one line, or as a table."""

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported only where a table is printed
    from rich.table import Table

_LONGEST_MESSAGE = 2000  # characters


def printable(text: str) -> str:
    """Escape line breaks, terminal codes and undecodable bytes, all of which a file name may hold."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(message: str) -> str:
    """Bring a message into one line, and shorten a long one."""
    return shorten(printable(" ".join(message.split())), _LONGEST_MESSAGE)


def shorten(text: str, most: int) -> str:
    """A text of at most `most` characters. Of a longer one, beginning and end are kept: names often differ there."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 1]}…{text[-end:]}"


def print_table(table: "Table", file: IO[str]) -> None:
    """Print a rich table: as wide as the file's terminal; elsewhere as wide as needed, so that no cell is cut."""
    from rich.console import Console

    # In a notebook, rich would display the table instead of printing it to the file.
    console = Console(file=file, markup=False, highlight=False, emoji=False, force_jupyter=False)
    needed = console.measure(table, options=console.options.update(max_width=10_000))
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    with console.capture() as text:  # not printed by rich, which ends the process if the reader has gone
        console.print(table)
    file.write(text.get())


def count_of(number: int, what: str) -> str:
    """A number of things: `1 part`, `2,000 parts`."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"
