"""Replies that are JSON: their strings go through the filters when the whole is there.

JSON can escape each character of an address, so that its text shows none.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from turnmill.workers.engines.base import Chunk
from turnmill.workers.engines.text.markers import change_texts
from turnmill.workers.safety.guard import Filter


def guard_json(chunks: Iterable[Chunk], filters: Sequence[Filter]) -> Iterator[Chunk]:
    """Yield chunks without text, as signs of life, and the filtered reply with the last one."""
    text, token_count = "", 0
    for chunk in chunks:
        text, token_count = text + chunk.text, token_count + chunk.token_count
        if chunk.finish_reason is None:
            yield replace(chunk, text="", token_count=0, logprobs=())
        else:
            shown = _filtered(text, filters)
            yield replace(chunk, text=shown, token_count=token_count, logprobs=())


def _filtered(text: str, filters: Sequence[Filter]) -> str:
    """JSON that is cut, or none, is filtered as the text that it is."""

    def change(value: str) -> str:
        for each in filters:
            value = each.rewrite(value)
        return value

    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return change(text.replace("\\/", "/"))
    changed = change_texts(value, change)
    return text if changed == value else json.dumps(changed, ensure_ascii=False)
