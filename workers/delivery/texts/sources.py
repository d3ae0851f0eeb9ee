"""The sources that a reply cites, as Markdown below it; each channel translates it as the reply.

A title is data: it mentions nobody, is no link, command or markup, and links to its own document
alone, wherever it is shown.
"""

import re
import unicodedata
from collections.abc import Iterable

from turnmill.schemas.citations.sources import ReplySource
from turnmill.workers.delivery.texts.markdown import closing, open_fence

MAX_TITLE_CHARS = 80

#: What marks something up in one channel or another, and what people read instead.
_LOOKS_LIKE = str.maketrans("[]<>`|\\*~{}", "()‹›'¦/∗∼()")
#: Here an invisible character (U+2060) keeps clients from seeing a link, a mention, a command or a
#: smiley.
_ACTIVE = re.compile(r"(?<=[@#:./_])(?=\S)|(?<=[^\s@#:./_])(?=:)")
#: What would end a link in Markdown or HTML.
_ENDS_LINK = re.compile(r"[\s()<>\[\]{}\"'`|\\*^]")


def sources_below(text: str, sources: Iterable[ReplySource], heading: str) -> str:
    """What stands below a reply: its heading and a line for each cited source; empty for none."""
    lines = [f"- [{each.index}] {_linked(each)}" for each in sources if each.cited]
    if not lines:
        return ""
    fence = open_fence(text)
    end = f"\n{closing(fence)}" if fence else ""
    return "\n".join((f"{end}\n\n{heading}", *lines))


def plain_title(title: str) -> str:
    """A title that is nothing but words in every channel."""
    visible = "".join(c for c in title if unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
    words = " ".join((visible if visible.strip() else "…").translate(_LOOKS_LIKE).split())
    if len(words) > MAX_TITLE_CHARS:
        words = f"{words[: MAX_TITLE_CHARS - 1].rstrip()}…"
    return _ACTIVE.sub("\u2060", words)


def _linked(source: ReplySource) -> str:
    title = plain_title(source.title or source.uri)
    if source.url is None:
        return title
    return f"[{title}]({_ENDS_LINK.sub(lambda found: _encoded(found[0]), source.url)})"


def _encoded(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
