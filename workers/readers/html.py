"""HTML: what people read of a page."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from turnmill.schemas.citations.addresses import address_of
from turnmill.workers.readers.base import Document, Outline
from turnmill.workers.readers.text import text_of

#: Never read by people. Their text may hold anything.
_UNSEEN_TAGS = frozenset({"script", "style", "template", "noscript", "svg"})
#: What stands on every page of a site.
_COMMON_TAGS = frozenset({"nav", "footer", "aside", "button", "select", "dialog"})
_BLOCK_TAGS = frozenset(
    {"p", "div", "li", "tr", "td", "th", "dt", "dd", "br", "section", "article", "pre", "table",
     "blockquote", "figure", "figcaption", "summary", "details", "ul", "ol", "main", "caption"}
)  # fmt: skip
_CELLS = frozenset({"td", "th"})
#: What begins or ends a row. A heading or a table within a cell is a page's layout.
_ROW_ENDS = frozenset({"tr", "table"})

#: https://html.spec.whatwg.org/multipage/semantics.html#charset: within the first 1,024 bytes.
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([\w-]{1,40})""", re.IGNORECASE)
_CHARSET_BYTES = 1024


def read(path: Path) -> Document:
    with path.open("rb") as file:
        encoding = _encoding(file.read(_CHARSET_BYTES))
    return read_page(text_of(path, encoding), path.stem)


def read_page(text: str, title: str) -> Document:
    """Read a page: its `main`, if there is something in it, and else all but what every page of a
    site has. A page that leaves such a part open is read as if it had none. Its address is that of
    `<link rel="canonical">`: https://www.rfc-editor.org/rfc/rfc6596
    """
    nothing: frozenset[str] = frozenset()
    for common, within in ((_COMMON_TAGS, "main"), (_COMMON_TAGS, ""), (nothing, "")):
        page = _Page(_UNSEEN_TAGS | common, within)
        page.feed(text)
        page.close()
        found = page.outline.document(page.title or title)
        if found.sections and not page.is_open:
            break
    return replace(found, url=page.url)


def _encoding(head: bytes) -> str:
    named = _CHARSET.search(head)
    if named is None or head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    try:
        name = codecs.lookup(named[1].decode("ascii")).name
        b"a".decode(name, "ignore")  # some codecs are no encodings of text
    except LookupError:
        return "utf-8-sig"
    # What browsers take for these names: https://encoding.spec.whatwg.org/#names-and-labels
    replaced = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252", "ascii": "cp1252"}
    return replaced.get(name, name) if name != "utf-8" else "utf-8-sig"


class _Page(HTMLParser):
    def __init__(self, skipped: frozenset[str], within: str) -> None:
        super().__init__()
        self.outline = Outline()
        self.title = ""
        self._skipped_tags = skipped
        #: The tag whose contents are read; "": all of the page.
        self._within = within
        self._text: list[str] = []
        self._skipped = 0
        self._inside = 0
        self._in_title = False
        #: The paragraphs of each cell of the table's row that is being read.
        self._row: list[list[str]] | None = None
        self.url: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the page ended within a part that is skipped."""
        return self._skipped > 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag == self._within:
            self._inside += 1
        if tag in self._skipped_tags:
            self._skipped += 1
        elif tag == "link" and not self._skipped:
            self.url = self.url or _canonical(dict(attrs))
        elif tag == "title" and not self._skipped:
            self._in_title = True
        elif tag in _ROW_ENDS or _level(tag):
            self._end_row()
            self._row = [] if tag == "tr" else None
        elif tag in _BLOCK_TAGS:
            self._end_paragraph()
        if tag in _CELLS and self._row is not None:
            self._row.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped_tags:
            self._skipped = max(0, self._skipped - 1)
        elif tag == "title":
            self._in_title = False
        elif level := _level(tag):
            self._head(level)
        elif tag in _ROW_ENDS:
            self._end_row()
        elif tag in _BLOCK_TAGS:
            self._end_paragraph()
        if tag == self._within:
            self._inside = max(0, self._inside - 1)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data.strip()
        elif not self._skipped and (self._inside or not self._within):
            self._text.append(data)

    def close(self) -> None:
        super().close()
        self._end_row()

    def _head(self, level: int) -> None:
        if text := self._taken():
            self.outline.head(level, text)

    def _end_paragraph(self) -> None:
        text = self._taken()
        if self._row is None:
            self.outline.add(text)
        elif text:
            self._row = self._row or [[]]
            self._row[-1].append(text)

    def _end_row(self) -> None:
        self._end_paragraph()
        row, self._row = self._row or [], None
        self.outline.add_row(row)

    def _taken(self) -> str:
        text = " ".join("".join(self._text).split())
        self._text.clear()
        return text


def _canonical(attributes: dict[str, str | None]) -> str | None:
    if "canonical" not in (attributes.get("rel") or "").lower().split():
        return None
    return address_of(attributes.get("href") or "")


def _level(tag: str) -> int:
    """Of a heading; 0 for other tags."""
    return int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456" else 0
