"""What readers make of files: documents, and the passages that they are cut into."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from turnmill.schemas.safety.invisible import visible

#: Characters of a passage: about 200 tokens of English. Longer ones hide their point from a search,
#: and few of them fit into a prompt.
MAX_PASSAGE_CHARS = 1000

#: After the end of a sentence, in scripts with and without spaces.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")


@dataclass(frozen=True, slots=True)
class Section:
    """Paragraphs below the same headings."""

    #: The headings above it, the outermost first.
    headings: tuple[str, ...]
    paragraphs: tuple[str, ...]
    #: It is never cut or joined with another: a question with its answer.
    is_whole: bool = False
    #: Where people find it, instead of its document.
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document as its reader found it."""

    title: str
    sections: tuple[Section, ...]
    #: Where people find it, as it says itself.
    url: str | None = None

    def passages(self) -> Iterator[tuple[str, str, str | None]]:
        """Yield heading, text and own address of each passage, in the document's order.

        What nobody sees is left out: a reader of the document would not know of it.
        """
        for heading, text, url in self._passages():
            yield visible(heading), visible(text), url

    def _passages(self) -> Iterator[tuple[str, str, str | None]]:
        for section in self.sections:
            heading = " › ".join(section.headings)
            if section.is_whole:
                yield heading, "\n".join(section.paragraphs), section.url
                continue
            pieces = (piece for each in section.paragraphs for piece in _pieces(each))
            for text in _joined(pieces):
                yield heading, text, section.url


def _pieces(paragraph: str) -> Iterator[str]:
    """The paragraph, or its sentences where it is too long; a sentence without an end is cut."""
    if len(paragraph) <= MAX_PASSAGE_CHARS:
        yield paragraph
        return
    for sentence in _joined(_SENTENCE_END.split(paragraph), " "):
        for at in range(0, len(sentence), MAX_PASSAGE_CHARS):
            yield sentence[at : at + MAX_PASSAGE_CHARS]


def _joined(pieces: Iterable[str], glue: str = "\n") -> Iterator[str]:
    """The pieces, as many together as a passage holds."""
    text = ""
    for piece in pieces:
        if text and len(text) + len(glue) + len(piece) > MAX_PASSAGE_CHARS:
            yield text
            text = ""
        text = f"{text}{glue}{piece}" if text else piece
    if text.strip():
        yield text


class Outline:
    """Paragraphs below their headings, as they come."""

    def __init__(self) -> None:
        self._headings: list[tuple[int, str]] = []
        self._paragraphs: list[str] = []
        self._sections: list[Section] = []
        self._title = ""

    def head(self, level: int, text: str) -> None:
        self._end_section()
        if level == 1 and not self._title:
            self._title = text
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        self._headings.append((level, text))

    def add(self, text: str) -> None:
        if text.strip():
            self._paragraphs.append(text.strip())

    def add_row(self, cells: Sequence[Sequence[str]]) -> None:
        """Add a table's row, cells of paragraphs: as one line, so that no passage begins with a
        price whose article is in another one. A longer row is a page's layout, or text.
        """
        line = " | ".join(map(" ".join, cells)).strip(" |")
        for text in [line] if len(line) <= MAX_PASSAGE_CHARS else chain.from_iterable(cells):
            self.add(text)

    def document(self, title: str) -> Document:
        self._end_section()
        return Document(self._title or title, tuple(self._sections))

    def _end_section(self) -> None:
        if self._paragraphs:
            headings = tuple(text for _, text in self._headings if text != self._title)
            self._sections.append(Section(headings, tuple(self._paragraphs)))
        self._paragraphs = []
