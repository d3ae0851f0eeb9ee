"""What a reply may cite: the passages that its prompt had room for, by their numbers there."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from turnmill.schemas.citations.markers import ALL, CitationReader, find_citations
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.turns import Role
from turnmill.workers.engines.base import Chunk
from turnmill.workers.turn.claim import Claim


class _Pinned(NamedTuple):
    shown: int


#: The first attempt's prompt decides: a later one continues a reply that may cite all of it.
_PIN = """
UPDATE turn_sources s SET shown = coalesce(s.shown, %(shown)s),
    first_number = CASE WHEN s.shown IS NULL THEN %(first)s ELSE s.first_number END
FROM turns t
WHERE s.turn_id = t.id AND t.id = %(turn)s AND t.attempt = %(attempt)s
  AND t.worker_id = %(worker)s AND t.state = 'running'
RETURNING s.shown
"""


def pin_shown(database: Database, claim: Claim, document_count: int) -> Claim:
    """Note how many of its sources the turn is shown; the claim knows what its reply may cite.

    `document_count`: passages in the prompt, those that came with the turn first.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    if not claim.sources:
        return claim
    first = len(claim.documents) + 1
    shown = max(0, document_count - len(claim.documents))
    values = {"shown": shown, "first": first if claim.is_to_cite else None}
    rows = database.fetch(_Pinned, _PIN, claim.owned | values)
    if rows:
        shown = rows[0].shown
    return replace(claim, citable=range(first, first + shown) if claim.is_to_cite else None)


def check_citations(chunks: Iterator[Chunk], claim: Claim) -> Iterator[Chunk]:
    """Return the chunks without the markers of what was not shown.

    A marker waits for its end, so that text already given out is never contradicted.
    """
    return chunks if claim.citable is None else _checked(chunks, claim, claim.citable)


def _checked(chunks: Iterable[Chunk], claim: Claim, citable: range) -> Iterator[Chunk]:
    reader = CitationReader(citable, _spared(claim))
    reader.resume(claim.kept_text)
    held_tokens = 0
    for chunk in chunks:
        text = reader.feed(chunk.text)
        if chunk.finish_reason is not None:
            text += reader.end()
        held_tokens += chunk.token_count
        if text or chunk.finish_reason is not None or chunk.tool_calls or chunk.logprobs:
            chunk, held_tokens = replace(chunk, text=text, token_count=held_tokens), 0
        else:
            chunk = replace(chunk, text="", token_count=0)
        yield chunk


def _spared(claim: Claim) -> Container[int]:
    """The numbers of the passages that came with the turn, and of the user's own text."""
    asked = (each.text for each in claim.messages if each.role is Role.USER)
    numbers = {each.number for text in asked for each in find_citations(text, ALL)}
    return numbers | set(range(1, len(claim.documents) + 1))
