"""Cleaning: text from an engine, made storable where it enters the worker."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from turnmill.schemas.content import TokenLogprob, storable
from turnmill.workers.engines.base import Chunk, ToolCallPiece

_FIRST_HALF_AT_END = re.compile("[\ud800-\udbff]$")


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
