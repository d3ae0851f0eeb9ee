"""Markdown as a text for clients that format nothing: WeCom's and WeChat's."""

import re

from turnmill.workers.delivery.texts.dialects import Dialect, translate

_NOTHING = ("", "")
_DIALECT = Dialect(
    escape=lambda text: text,
    bold=_NOTHING,
    italic=_NOTHING,
    struck=_NOTHING,
    code=_NOTHING,
    quote=("> ", ""),
    link=lambda label, url: f"{label} ({url})" if label and label != url else url,
    fence=lambda _: "",
    fence_end="",
)

#: The one tag that both clients read. `weixin://bizmsgmenu` would write in the reader's name.
_ANCHOR = re.compile(r"<(?=/?a\b)", re.IGNORECASE)


def to_plain(markdown: str) -> str:
    """Take Markdown's marks away. What looks like the tag of a link stays text: an invisible
    character (U+2060) stands in it."""
    return _ANCHOR.sub("<\u2060", translate(markdown, _DIALECT))
