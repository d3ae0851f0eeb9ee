"""Replies as Teams shows them: https://learn.microsoft.com/microsoftteams/platform/bots/how-to/format-your-bot-messages

On every client Teams shows bold, italic, links, quotes and code; lists on the desktop alone, and
neither headings nor tables nor pictures.
"""

import json
import re

from turnmill.workers.delivery.texts.dialects import Dialect, translate
from turnmill.workers.delivery.texts.markdown import open_fence

#: Of a line outside code blocks: spans of code, which stay as they are, and what stands between.
_PIECES = re.compile(r"(`+[^`\n]+`+)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_LINKED = ("http://", "https://", "mailto:")


def to_teams(text: str) -> str:
    """Translate a whole message. What a model writes is no HTML, and mentions nobody."""
    lines: list[str] = []
    opened: str | None = None
    for line in translate(text, _DIALECT).split("\n"):
        was_open, opened = opened, open_fence(line if opened is None else f"{opened}\n{line}")
        lines.append(line if was_open or opened else _shown(line))
    return "\n".join(lines)


def most_bytes(text: str) -> int:
    """Say how many bytes a text may have at most when it is translated: in UTF-16, as JSON.

    A line grows by four characters (a heading), a table by eight and has two lines at least.
    """
    more = 4 * (text.count("\n") + 2) + 3 * text.count("<")
    return len(json.dumps(text, ensure_ascii=False).encode("utf-16-le")) + 2 * more


def _shown(line: str) -> str:
    """A line without tags, which ends where it ends: Markdown would join it to the next."""
    pieces = _PIECES.split(line)
    pieces[::2] = [_TAG.sub("&lt;", piece) for piece in pieces[::2]]
    shown = "".join(pieces)
    return f"{shown}  " if shown.strip() else shown


def _link(label: str, url: str) -> str:
    if not label:
        return url
    return f"[{label}]({url})" if url.startswith(_LINKED) else f"{label} ({url})"


_DIALECT = Dialect(
    escape=lambda text: text,
    bold=("**", "**"),
    italic=("*", "*"),
    struck=("~~", "~~"),
    code=("`", "`"),
    quote=("> ", ""),
    link=_link,
    fence=lambda language: f"```{language}",
    fence_end="```",
)
