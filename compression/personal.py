"""Masks personal data in texts that are to train a model.

What has a form is found: addresses of e-mail, of the web and of machines, bank accounts, cards,
telephone and identity numbers, and other long numbers. Names and streets have none and stay: read
what you train on.
"""

import re

#: In this order: what an earlier pattern masked, a later one does not see.
_PATTERNS = (
    ("<email>", r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+"),
    ("<url>", r"\b(?:https?://|www\.)[^\s<>\"']+"),
    # ISO 13616: country, two check digits, 11 to 30 letters and digits, perhaps in groups of four.
    ("<account>", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    ("<address>", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"),
    ("<address>", r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}(?::|[0-9A-Fa-f]{1,4})+(?![\w:])"),
    # A telephone number in its usual spellings: seven digits or more, perhaps apart.
    ("<number>", r"(?<!\w)\+?\(?\d(?:[ ().\-/]{0,2}\d){6,}[Xx]?(?!\d)"),
)
_COMPILED = tuple((mask, re.compile(pattern, re.ASCII)) for mask, pattern in _PATTERNS)


def mask_personal(text: str) -> str:
    """Replace personal data of a known form by a word in angle brackets, such as `<email>`."""
    for mask, pattern in _COMPILED:
        text = pattern.sub(mask, text)
    return text
