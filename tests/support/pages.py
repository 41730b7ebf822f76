"""The code on a page of the documentation."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code, its language, the heading it is under, and the output that the page shows below it."""

    language: str
    code: str
    heading: str
    output: str | None


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order.

    Args:
        page: `README.md`, or a page below `docs/` such as `guides/python.md`.
    """
    found: list[Block] = []
    heading = ""
    text = (ROOT / page if page == "README.md" else DOCS / page).read_text()
    for match in re.finditer(
        r"^(#+ (?P<heading>[^\n]*)|```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```)$", text, re.M | re.S
    ):
        if match["heading"]:
            heading = match["heading"]
        elif match["language"] == "text" and found:
            found[-1] = Block(found[-1].language, found[-1].code, found[-1].heading, match["code"])
        else:
            found.append(Block(match["language"], match["code"], heading, None))
    return found


def without_numbers(text: str) -> str:
    """An output whose numbers, and the spaces that align them, may differ from those of another run."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", text)).strip()
