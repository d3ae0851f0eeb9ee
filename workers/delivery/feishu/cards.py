"""Messages as Feishu's cards: https://open.feishu.cn/document/feishu-cards/card-json-v2-structure

A card shows Markdown and can be changed later. What a model writes can mention nobody, and
pictures, which Feishu takes only after they were uploaded to it, become links.
"""

import json
import re

from turnmill.schemas.channels.buttons import Button
from turnmill.workers.delivery.texts.markdown import open_fence

#: Bytes of a request with a card; Feishu takes 30 KB.
MAX_CARD = 28_000

_IMAGE = re.compile(r"!\[([^\[\]\n]*)\](?=\()")
_TAG = re.compile(r"<(?=[A-Za-z/])")
_MENTION = re.compile(r"<(?=/?at\b)", re.IGNORECASE)

#: Labels for people who read Chinese or English.
_LABELS = {"hand_off": "转人工 · Human", "resume": "交还机器人 · Bot"}


def card(
    text: str, buttons: tuple[Button, ...] = (), thread: str = "", *, is_plain: bool = False
) -> str:
    """Build the content of a message. The buttons name the thread that they stand in."""
    elements: list[dict[str, object]] = [_plain(text) if is_plain else _markdown(text)]
    if buttons:
        columns = [_column(_button(each, thread)) for each in buttons]
        elements.append({"tag": "column_set", "flex_mode": "flow", "columns": columns})
    body = {"schema": "2.0", "config": {"update_multi": True}, "body": {"elements": elements}}
    return json.dumps(body, ensure_ascii=False)


def size(text: str) -> int:
    """Count the bytes of a text in the request that sends it: JSON in a string of JSON."""
    return len(json.dumps(card(text)).encode())


def to_markdown(text: str) -> str:
    """Translate Markdown into what Feishu shows of it."""
    lines: list[str] = []
    opened: str | None = None
    for line in text.split("\n"):
        was_open, opened = opened, open_fence(line if opened is None else f"{opened}\n{line}")
        if was_open or opened:
            # In code nothing is escaped. Nothing mentions anybody there either.
            lines.append(_MENTION.sub("<\u200b", line))
        else:
            lines.append(_TAG.sub("&#60;", _IMAGE.sub(r"[\1]", line)))
    return "\n".join(lines)


def _markdown(text: str) -> dict[str, object]:
    return {"tag": "markdown", "content": to_markdown(text)}


def _plain(text: str) -> dict[str, object]:
    return {"tag": "div", "text": {"tag": "plain_text", "content": text}}


def _button(button: Button, thread: str) -> dict[str, object]:
    label = _LABELS.get(button.value, button.label)
    value = {"turnmill": button.value, "thread": thread}
    return {
        "tag": "button",
        "text": {"tag": "plain_text", "content": label},
        "behaviors": [{"type": "callback", "value": value}],
    }


def _column(element: dict[str, object]) -> dict[str, object]:
    return {"tag": "column", "width": "auto", "elements": [element]}
