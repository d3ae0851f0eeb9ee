"""Write a model's Markdown so that Chatwoot shows it as it was written.

Chatwoot takes Markdown and translates it for each inbox. It takes outgoing messages for Liquid
templates too, but for what stands in code (`app/models/concerns/liquidable.rb`).
"""

import re
from collections.abc import Iterator

#: What Chatwoot takes for code.
_CODE = re.compile(r"`.*?`", re.DOTALL)
_TAG = re.compile(r"\{\{|\{%")
#: Would end what keeps code from Liquid.
_END = re.compile(r"\{%(?=-?\s*endraw)")
_IMAGE = re.compile(r"!\[([^\[\]\n]*)\](?=\()")


def to_content(text: str) -> str:
    """Translate a message. A picture becomes a link, for whoever reads the message fetches it."""
    return "".join(_pieces(text))


def _pieces(text: str) -> Iterator[str]:
    end = 0
    for code in _CODE.finditer(text):
        yield _prose(text[end : code.start()])
        yield _END.sub("{\u200b%", code[0])
        end = code.end()
    yield _prose(text[end:])


def _prose(text: str) -> str:
    return _TAG.sub(lambda tag: f"{{{{ '{tag[0]}' }}}}", _IMAGE.sub(r"[\1]", text))
