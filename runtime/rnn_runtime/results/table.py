"""Results as a table for people."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import IO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

from rnn_runtime.results.write import Columns, Value
from rnn_runtime.text import printable, table_text

MEASURED_ROWS = 1000  # they decide how wide the columns are; later rows are written as they come
_SHORTEST_PATH = 16  # characters that a table shows of a path, however little room there is


def write_table(rows: Iterable[list[Value]], columns: Columns, file: IO[str]) -> None:
    """Write a table as wide as the terminal, or 80 characters: a long path is shortened in its middle.

    Args:
        rows: The values of each result, in the order of `columns.names`.
        columns: What a row shows.
        file: A text file open for writing.
    """
    remaining = (dict(zip(columns.names, row, strict=True)) for row in rows)
    first = list(itertools.islice(remaining, MEASURED_ROWS))
    following = list(itertools.islice(remaining, 1))
    names = list(_shown(dict.fromkeys(columns.names), columns))
    if not following and not any(row["error"] for row in first):
        names.remove("error")
    width = Console(file=file).width
    for digits in (4, 2):  # with fewer where they wouldn't fit
        shown = [_shown(row, columns, digits) for row in first]
        widths = {name: max(map(cell_len, (name, *(row[name] for row in shown)))) for name in names}
        others = sum(width for name, width in widths.items() if name not in ("path", "error")) + 3 * len(names) + 1
        error = _SHORTEST_PATH if following else min(widths.get("error", 0), _SHORTEST_PATH)
        room = width - others - error
        if room >= min(widths["path"], _SHORTEST_PATH):
            break
    room = max(room, _SHORTEST_PATH)
    least = {"path": room, "error": error} if following else {}
    table = Table()
    for name in names:
        # a long error continues in the next line; a number or label is never cut
        table.add_column(name, overflow="fold", no_wrap=name != "error", min_width=least.get(name))
    for row in shown:
        table.add_row(shorten(row.pop("path"), room), *(row[name] for name in names[1:]))
    lines = table_text(table, file).splitlines(keepends=True)
    if not following:
        file.writelines(lines)
        return
    file.writelines(lines[:-1])
    cells = (_shown(row, columns, digits) for row in itertools.chain(following, remaining))
    file.writelines(_continue(lines, ([row[name] for name in names] for row in cells)))


def _continue(lines: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of more rows, in the columns that a table has, and the line at its end."""
    side, end = lines[-2][0], lines[-1].rstrip()
    widths = [len(part) - 2 for part in re.split(f"[^{re.escape(end[1])}]", end[1:-1])]  # without a space on both sides
    for path, *others in rows:
        cells = zip(widths, (shorten(path, widths[0]), *others), strict=True)
        # What is longer than in the rows before makes its line longer: it is never cut.
        yield side + side.join(f" {cell}{' ' * (width - cell_len(cell))} " for width, cell in cells) + side + "\n"
    yield end + "\n"


def _shown(row: dict[str, Value], columns: Columns, digits: int = 4) -> dict[str, str]:
    """The cells of a row: with several classes, each has its probability beside it, or they wouldn't fit."""
    cells = {
        name: printable(f"{value:.{digits}f}" if isinstance(value, float) else value or "")
        for name, value in row.items()
        if name != "checkpoint"
    }
    if columns.top_k > 1:
        first = "label" if columns.min_probability is None else "guess"
        for rank in range(1, columns.top_k + 1):
            label, probability = (f"label_{rank}", f"probability_{rank}") if rank > 1 else (first, "probability")
            cells[label] = f"{cells[label]} {cells.pop(probability)}".strip()
    return cells


def shorten(text: str, width: int) -> str:
    """A text of at most `width` columns of a terminal: of a longer one, its middle is left out."""
    if cell_len(text) <= width:
        return text
    end = (width - 1) * 2 // 3  # the name of a file says more than where its path begins
    # Letters of some scripts take two columns: where half of one would fit, there is a space instead.
    return f"{set_cell_size(text, width - 1 - end).rstrip()}…{set_cell_size(text[::-1], end)[::-1].lstrip()}"
