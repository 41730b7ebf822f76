"""Commands that a page shows with their output: what they print at a terminal, compared loosely."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from tests.support.commands import COMMANDS
from tests.support.processes import on_a_terminal, on_a_terminal_in_process

_COMMAND = re.compile(r"^\$ ((?:[^\\\n]|\\[\s\S])*)\n?", re.M)
_CONTROL = re.compile(r"\x1b\[(?P<count>\d*)(?P<what>[A-Za-z])|\x1b\[\?\d+[hl]|(?P<text>[^\x1b\r\n]+)|(?P<move>[\r\n])")
_FOR_BASH = re.compile(r"[|&;<>$*?]")
_ANY_LINES = "..."


def shown_commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a `console` block, each with the output below it."""
    _, *pieces = _COMMAND.split(block)
    yield from zip_longest(pieces[::2], pieces[1::2], fillvalue="")


def run_at_a_terminal(command: str, folder: Path) -> str:
    """What a terminal of 80 columns shows when bash has run a command that ends with exit code 0.

    One of `COMMANDS` that needs nothing of bash runs in this process: importing torch takes most commands' time.
    """
    env = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80", "LINES": "24"}
    name, *arguments = shlex.split(command.replace("\\\n", " "))
    if name in COMMANDS and not _FOR_BASH.search(command):
        exit_code, shown = on_a_terminal_in_process(name, *arguments, folder=folder, env=env)
    else:
        env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        exit_code, shown = on_a_terminal(["bash", "-o", "pipefail", "-c", command], folder, env=os.environ | env)
    text = _screen(shown)
    assert exit_code == 0, f"$ {command}\n{text}"
    return text


def difference(shown: str, printed: str) -> str | None:
    """Where an output differs from the one that a page shows, in more than numbers and spaces; None if nowhere.

    A line `...` on the page is for any number of lines.
    """
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == _ANY_LINES else re.escape(_loosely(line)) + r"\n" for line in shown.splitlines()
    )
    text = "".join(_loosely(line) + "\n" for line in printed.splitlines())
    return None if re.fullmatch(pattern, text) else f"the page shows:\n{shown}\nthe command printed:\n{printed}"


def _loosely(line: str) -> str:
    """A line without what another run may print otherwise: numbers, hashes, the widths of columns."""
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b", "0", line)  # SHA-256, whole or its beginning
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]\d+)?", "0", line)
    line = re.sub(r"(?<= )\.(?= |$)", "0", line)  # how a confusion matrix shows 0
    line = re.sub(r"([─━])\1+", r"\1", line)
    return re.sub(r"\s+", " ", line).strip()


def _screen(output: str) -> str:
    """What is left on the screen after the movements of the cursor that progress bars make."""
    lines, row, column = [""], 0, 0
    for match in _CONTROL.finditer(output):
        if match["move"] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif match["move"] == "\r":
            column = 0
        elif match["what"] == "A":
            row = max(0, row - int(match["count"] or 1))
        elif match["what"] == "K":
            lines[row] = ""
        elif match["text"]:
            text = match["text"]
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"
