"""Texts of users and models on a terminal: shown as they are, and unable to steer it."""

from rich.text import Text

#: C0 and C1 but line breaks and tabs: with the others a text could clear or retitle the screen.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def plain(text: str) -> Text:
    """Brackets are no markup, colons no emoji, control characters are left out."""
    return Text(text.translate(_CONTROLS))
