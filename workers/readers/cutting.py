"""What the child process does: read one document, and cut it into passages.

A child starts for each document, so that this module and its imports are few.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.safety.invisible import visible
from turnmill.schemas.store.knowledge.lexemes import passage_terms
from turnmill.workers.readers.registry import read_document
from turnmill.workers.readers.sniffing import refuse_disguised

#: Passages of a document: a book has about a thousand.
MAX_PASSAGES = 20_000
#: Of a row of questions and answers, which is never cut.
_MAX_CHARS = 20_000


class Cut(NamedTuple):
    """A passage, as `passages` has it."""

    heading: str
    content: str
    #: The text of a `tsvector`.
    terms: str
    length: int
    #: Where people find it, instead of its document.
    url: str | None = None


class Read(NamedTuple):
    """A document, cut into passages."""

    title: str
    passages: list[Cut]
    #: Where people find it, as it says itself.
    url: str | None = None


def read(path: Path) -> Read:
    """Read a file and cut it into passages.

    Raises:
        InvalidInput: it cannot be read; the message says why, and what to do.
        SettingsError: a library is missing.
    """
    try:
        refuse_disguised(path)
        document = read_document(path)
        # What nobody sees is left out, as of the passages.
        document = replace(document, title=visible(document.title))
        passages = [
            _cut(document.title, heading, content, url)
            for heading, content, url in document.passages()
        ]
    except InvalidInput as error:
        # Readers of tables name the file, which is one of this process's own.
        message = error.message.replace(f"{path}, ", "").replace(str(path), path.name)
        raise InvalidInput(message) from None
    if not passages:
        raise InvalidInput("It has no text.")
    if len(passages) > MAX_PASSAGES:
        raise InvalidInput(
            f"It has {len(passages):,} passages; {MAX_PASSAGES:,} are read. Split it."
        )
    return Read(document.title, passages, document.url)


def _cut(title: str, heading: str, content: str, url: str | None) -> Cut:
    if len(content) > _MAX_CHARS:
        raise InvalidInput(
            f"A row has {len(content):,} characters; {_MAX_CHARS:,} are read. Save it as text."
        )
    return Cut(heading, content, *passage_terms(title, heading, content), url)
