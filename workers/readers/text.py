"""Plain text: paragraphs between empty lines."""

import codecs
import re
from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.workers.readers.base import Document, Section

_BETWEEN_PARAGRAPHS = re.compile(r"\n\s*\n")


def read(path: Path) -> Document:
    blocks = _BETWEEN_PARAGRAPHS.split(text_of(path))
    return Document(path.stem, (Section((), tuple(filter(None, map(str.strip, blocks)))),))


def text_of(path: Path, encoding: str = "utf-8-sig") -> str:
    """Return what a file says.

    Raises:
        InvalidInput: it is not written in this encoding.
    """
    try:
        return path.read_text(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else codecs.lookup(encoding).name
        raise InvalidInput(f"It is not {name} (byte {error.start}): save it as UTF-8.") from None
