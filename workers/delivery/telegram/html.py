"""Markdown as the HTML that Telegram reads: https://core.telegram.org/bots/api#html-style

HTML rather than MarkdownV2: three characters are escaped instead of eighteen.
"""

import re

from turnmill.workers.delivery.texts.dialects import Dialect, translate

_QUOTES = re.compile("</blockquote>\n<blockquote>")
_FROM = re.compile(r"(<pre><code[^>]*>)\n")
_LINKED = ("http://", "https://", "mailto:", "tel:", "tg://")


def to_html(text: str) -> str:
    """Translate a whole message. Telegram may refuse it where a model nests marks wrongly."""
    shown = _QUOTES.sub("\n", translate(text, _HTML))
    return _FROM.sub(r"\1", shown).replace("\n</code></pre>", "</code></pre>")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _link(label: str, url: str) -> str:
    if not url.startswith(_LINKED):
        return f"{label} ({url})" if label else url
    return f'<a href="{url.replace(chr(34), "%22")}">{label or url}</a>'


def _fence(language: str) -> str:
    known = re.fullmatch(r"[\w+#.-]{1,40}", language)
    return f'<pre><code class="language-{language}">' if known else "<pre><code>"


_HTML = Dialect(
    escape=_escape,
    bold=("<b>", "</b>"),
    italic=("<i>", "</i>"),
    struck=("<s>", "</s>"),
    code=("<code>", "</code>"),
    quote=("<blockquote>", "</blockquote>"),
    link=_link,
    fence=_fence,
    fence_end="</code></pre>",
)
