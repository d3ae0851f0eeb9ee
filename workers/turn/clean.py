"""Cleaning: text from an engine, made storable where it enters the worker."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from turnmill.schemas.content import TokenLogprob
from turnmill.workers.engines.base import Chunk, ToolCallPiece

#: PostgreSQL stores no U+0000, and UTF-8 encodes no surrogate.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

_FIRST_HALF_AT_END = re.compile("[\ud800-\udbff]$")


def storable(text: str) -> str:
    """Replace U+0000 and lone surrogates by U+FFFD; join the halves of a surrogate pair.

    JSON can escape all of them (RFC 8259, section 8.2), so any server may send them.
    """
    if not _UNSTORABLE.search(text):
        return text
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return paired.replace("\0", "\ufffd")


def clean(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks with storable text.

    The first half of a surrogate pair waits for the chunk that may bring the second one.
    """
    held = ""
    for chunk in chunks:
        text = held + chunk.text
        held = ""
        if chunk.finish_reason is None and _FIRST_HALF_AT_END.search(text):
            text, held = text[:-1], text[-1]
        text = storable(text)
        if text != chunk.text or chunk.tool_calls or chunk.logprobs:
            chunk = replace(
                chunk,
                text=text,
                tool_calls=tuple(map(_clean_piece, chunk.tool_calls)),
                logprobs=tuple(map(_clean_token, chunk.logprobs)),
            )
        yield chunk


def _clean_piece(piece: ToolCallPiece) -> ToolCallPiece:
    return ToolCallPiece(
        piece.index, storable(piece.id), storable(piece.name), storable(piece.arguments)
    )


def _clean_token(token: TokenLogprob) -> TokenLogprob:
    top = tuple((storable(text), logprob) for text, logprob in token.top)
    return TokenLogprob(text=storable(token.text), logprob=token.logprob, top=top)
