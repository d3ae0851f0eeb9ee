"""Markdown as Slack's mrkdwn: https://docs.slack.dev/messaging/formatting-message-text

What a model writes can mention nobody: every `<` of its own is escaped.
"""

from turnmill.workers.delivery.texts.dialects import Dialect, translate


def to_mrkdwn(text: str) -> str:
    """Translate a whole message."""
    return translate(text, _MRKDWN)


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
