"""HTML pages as tests read them: their elements and text, with the standard library's parser."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


@dataclass
class Element:
    """An element: its name, attributes, and what is in it, texts and elements."""

    tag: str
    attributes: dict[str, str]
    content: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for part in self.content:
            yield from [part] if isinstance(part, str) else part._texts()

    def find(self, tag: str | None = None, /, **attributes: str) -> list["Element"]:
        """All elements in it, at any depth, of a name and with attributes."""
        found = []
        for part in self.content:
            if isinstance(part, Element):
                if tag in (None, part.tag) and attributes.items() <= part.attributes.items():
                    found.append(part)
                found += part.find(tag, **attributes)
        return found


def read_page(html: str) -> Element:
    """Parse a page, each of whose elements must be closed.

    Raises:
        AssertionError: one is not, or another is closed in its place.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert [element.tag for element in reader.open] == ["page"]
    return reader.open[0]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].content.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].content.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)
