"""The text of Teams' messages, without the bot's mention."""

import re
from collections.abc import Iterable

from turnmill.producer.channels.teams.payloads import Entity

#: Fences and spans of code, in which nothing is a mention.
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_ENDS = re.compile(r"^(?:\s|&nbsp;)+|(?:\s|&nbsp;)+$")


def text_of(text: str, entities: Iterable[Entity], bot: str) -> str:
    """Return what was typed: the bot's mentions are cut out, others become names.

    A mention is one piece of the text for each entity, and not in code.
    """
    for entity in entities:
        if entity.is_mention and entity.text and entity.mentioned:
            is_bots = entity.mentioned.id == bot
            shown = "" if is_bots else f"@{entity.mentioned.name or entity.mentioned.id}"
            text = _replace(text, entity.text, shown)
    return _ENDS.sub("", text)


def _replace(text: str, mark: str, shown: str) -> str:
    """Replace the first occurrence that is not in code."""
    code = [match.span() for match in _CODE.finditer(text)]
    start = text.find(mark)
    while start >= 0:
        if not any(begin <= start < end for begin, end in code):
            return f"{text[:start]}{shown}{text[start + len(mark) :]}"
        start = text.find(mark, start + len(mark))
    return text
