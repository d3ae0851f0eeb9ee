"""Slack's markup of a message, as the plain text that its author typed.

https://docs.slack.dev/messaging/formatting-message-text: in the text of an event `&`, `<` and `>`
are escaped, so every bare `<…>` is Slack's own: a mention, a channel, a link.
"""

import re

_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_ENTITY = re.compile(r"<([^<>]*)>")


def plain_text(text: str, bot_user: str | None = None) -> str:
    """Return the text without markup.

    The bot's own mention is left out where the text begins with it. In code a mention stays as it
    is, and a link becomes what was typed.
    """
    if bot_user:
        text = re.sub(rf"^\s*(<@{re.escape(bot_user)}(\|[^<>]*)?>[\s,:]*)+", "", text)
    pieces = _CODE.split(text)
    shown = [
        _ENTITY.sub(_in_code if index % 2 else _in_prose, piece)
        for index, piece in enumerate(pieces)
    ]
    return _unescape("".join(shown)).strip()


def _unescape(text: str) -> str:
    """Resolve the three entities that Slack writes; others were typed."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _in_prose(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    match target[:1]:
        case "@" | "#":
            return target[0] + (label or target[1:])
        case "!":
            # <!here>, <!subteam^S12|@team>, <!date^1392734382^{date}|February 18th>
            return label or "@" + target[1:].partition("^")[0]
    address = target.removeprefix("mailto:").removeprefix("tel:")
    if not label or label in (address, target) or re.sub("^https?://", "", target) == label:
        return label or address
    return f"{label} ({address})"


def _in_code(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    if target[:1] in ("@", "#", "!"):
        return match[0]
    return label or target
