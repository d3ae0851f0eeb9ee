"""The passages that a turn was shown, and which of them its reply cites."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from turnmill.schemas.citations.markers import Citation, find_citations
from turnmill.schemas.content import Document

#: Characters of a passage that a reply's reader is shown.
MAX_SNIPPET_CHARS = 200


class Source(BaseModel):
    """A passage as a turn was shown it: pinned, whatever becomes of its document."""

    model_config = ConfigDict(frozen=True)

    #: None: it is of no document, but of a page that a search of the web found at `url`.
    document_id: str | None = None
    version: int | None = None
    uri: str
    title: str
    content: str
    score: float
    #: Where people find the document; None: nowhere.
    url: str | None = None

    @property
    def document(self) -> Document:
        return Document(title=self.title[:256], text=self.content)


class ReplySource(BaseModel):
    """A passage that a reply could cite, as its readers see it."""

    model_config = ConfigDict(frozen=True)

    #: Its number in the prompt, which the reply cites it by.
    index: int
    #: Null: the passage is of a page of the web, and not of a document.
    document_id: str | None
    uri: str
    #: Where people find the document; null: nowhere.
    url: str | None
    title: str
    #: Of the document, when the turn was shown the passage; null without one.
    version: int | None
    cited: bool
    #: How the passage begins.
    snippet: str

    @property
    def line(self) -> str:
        """The source as one line of plain text."""
        place = self.url or (self.uri if self.uri != self.title else "")
        return f"[{self.index}] {self.title}" + (f" ({place})" if place else "")

    @classmethod
    def of(cls, source: Source, index: int, *, cited: bool) -> "ReplySource":
        text = " ".join(source.content.split())
        is_cut = len(text) > MAX_SNIPPET_CHARS
        return cls(
            index=index,
            document_id=source.document_id,
            uri=source.uri,
            url=source.url,
            title=source.title,
            version=source.version,
            cited=cited,
            snippet=text[: MAX_SNIPPET_CHARS - 1] + "…" if is_cut else text,
        )


def read_sources(
    text: str, pinned: Sequence[object] | None, shown: int | None, first_number: int | None
) -> tuple[tuple[ReplySource, ...], tuple[Citation, ...]]:
    """The sources of a reply, and where it cites them.

    `pinned`, `shown` and `first_number` are the columns of `turn_sources`; None: the turn has no
    row there, or an older release wrote it.
    """
    if not pinned or not shown:
        return (), ()
    sources = [Source.model_validate(each) for each in pinned[:shown]]
    start = first_number or 1
    numbers = range(start, start + len(sources))
    citations = find_citations(text, numbers) if first_number is not None else []
    cited = {each.number for each in citations}
    found = (
        ReplySource.of(source, number, cited=number in cited)
        for number, source in zip(numbers, sources, strict=True)
    )
    return tuple(found), tuple(citations)
