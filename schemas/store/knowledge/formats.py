"""The formats of documents that there are readers for, by the suffix of a file's name."""

from enum import StrEnum
from pathlib import PurePath

#: Bytes of a document. A book has about a million characters; its pictures make it larger.
MAX_BYTES = 50 * 1024 * 1024


class Format(StrEnum):
    MARKDOWN = "markdown"
    TEXT = "text"
    HTML = "html"
    PDF = "pdf"
    WORD = "word"
    #: Questions and answers.
    TABLE = "table"


SUFFIXES = {
    ".md": Format.MARKDOWN,
    ".txt": Format.TEXT,
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".pdf": Format.PDF,
    ".docx": Format.WORD,
    ".csv": Format.TABLE,
    ".xlsx": Format.TABLE,
    ".jsonl": Format.TABLE,
}


def format_of(name: str) -> Format | None:
    """The format that a file's name tells. None: there is no reader for it."""
    return SUFFIXES.get(PurePath(name).suffix.lower())
