"""Markdown as Slack's mrkdwn: https://docs.slack.dev/messaging/formatting-message-text

What a model writes can mention nobody: every `<` of its own is escaped.
"""

from turnmill.workers.delivery.slack.blocks import MAX_SECTION
from turnmill.workers.delivery.texts.dialects import Dialect, translate
from turnmill.workers.delivery.texts.markdown import split


def to_mrkdwn(text: str) -> str:
    """Translate a whole message."""
    return translate(text, _MRKDWN)


def rendered_length(text: str) -> int:
    """The length of a text as Slack counts it."""
    return len(to_mrkdwn(text))


def pieces_of(text: str) -> list[str]:
    """A text as sections of a message."""
    return [to_mrkdwn(piece) for piece in split(text, MAX_SECTION, rendered_length)]


def escape(text: str) -> str:
    """Escape the three characters that Slack reads, in code too."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _link(label: str, url: str) -> str:
    url = url.replace("|", "%7C")
    return f"<{url}|{label.replace('|', '¦')}>" if label else f"<{url}>"


_MRKDWN = Dialect(
    escape=escape,
    bold=("*", "*"),
    italic=("_", "_"),
    struck=("~", "~"),
    code=("`", "`"),
    quote=(">", ""),
    link=_link,
    # Slack would show the language as the first line of the code.
    fence=lambda language: "```",
    fence_end="```",
)
