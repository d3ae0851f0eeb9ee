"""The plain text of Feishu's messages, and what came with them.

https://open.feishu.cn/document/uAjLw4CM/ukTMukTMukTM/reference/im-v1/message/events/message_content
"""

import json
import re
from collections.abc import Collection, Iterable

from turnmill.producer.channels.base import remote_files, type_of_name
from turnmill.producer.channels.feishu.payloads import Mention, Message
from turnmill.schemas.channels.events import RemoteFile
from turnmill.schemas.content import storable_json


def text_of(message: Message, of_bot: Collection[Mention]) -> str:
    """Return the text as it was typed, without the bot's mention at its beginning.

    Messages of other types than text and rich text have none.
    """
    content = _content(message)
    match message.message_type:
        case "text":
            text = str(content.get("text", ""))
        case "post":
            text = _post(content)
        case _:
            return ""
    return _name(text, message.mentions, of_bot).strip()


def files_of(message: Message) -> tuple[RemoteFile, ...]:
    """The images and sounds of a message. Files tell their type by their name alone."""
    content = _content(message)
    found: list[tuple[str, str, str]] = []
    match message.message_type:
        case "image":
            found = [("image/", _ref(message, content.get("image_key"), "image"), "")]
        case "audio":
            found = [("audio/", _ref(message, content.get("file_key"), "file"), "")]
        case "file":
            name = str(content.get("file_name", ""))
            found = [(type_of_name(name), _ref(message, content.get("file_key"), "file"), name)]
        case "post":
            lines = content.get("content")
            pieces = [
                piece
                for line in (lines if isinstance(lines, list) else ())
                for piece in (line if isinstance(line, list) else ())
                if isinstance(piece, dict) and piece.get("tag") == "img"
            ]
            found = [
                ("image/", _ref(message, each.get("image_key"), "image"), "") for each in pieces
            ]
    return remote_files(found)


def _ref(message: Message, key: object, kind: str) -> str:
    """What the delivery process fetches a resource by; empty where it has no key."""
    is_key = isinstance(key, str) and key and "/" not in key
    return f"{message.message_id}/{key}/{kind}" if is_key else ""


def _content(message: Message) -> dict[str, object]:
    try:
        content = storable_json(json.loads(message.content))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(text: str, mentions: Iterable[Mention], of_bot: Collection[Mention]) -> str:
    """Put names for the placeholders of mentions. `@_user_1` is not to match in `@_user_12`."""
    for mention in mentions:
        key = re.escape(mention.key)
        if mention in of_bot:
            text = re.sub(rf"^\s*{key}(?!\d)[\s,:]*", "", text)
        shown = f"@{mention.name}"
        text = re.sub(rf"{key}(?!\d)", lambda _, shown=shown: shown, text)  # type: ignore[misc]
    return text


def _post(content: dict[str, object]) -> str:
    """Rich text: a title, and lines of pieces; which language it is in does not matter here."""
    lines = content.get("content")
    if not isinstance(lines, list):
        return ""
    shown = ["".join(map(_piece, line)) for line in lines if isinstance(line, list)]
    title = str(content.get("title") or "")
    return "\n".join([title, *shown] if title else shown)


def _piece(piece: object) -> str:
    if not isinstance(piece, dict):
        return ""
    match piece.get("tag"):
        case "text" | "md":
            return str(piece.get("text", ""))
        case "a":
            text, href = str(piece.get("text", "")), str(piece.get("href", ""))
            return text if text == href else f"{text} ({href})"
        case "at":
            # A placeholder, as in a text.
            return str(piece.get("user_id", ""))
        case "code_block":
            language = str(piece.get("language", "")).lower()
            return f"\n```{language}\n{piece.get('text', '')}\n```\n"
        case _:
            return ""
