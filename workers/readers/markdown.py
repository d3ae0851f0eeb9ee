"""Markdown: https://spec.commonmark.org, with tables."""

from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from turnmill.workers.readers.base import Document, Outline
from turnmill.workers.readers.text import text_of


def read(path: Path) -> Document:
    outline = Outline()
    row: list[list[str]] | None = None
    tokens = MarkdownIt("commonmark").enable("table").parse(text_of(path))
    for token, before in zip(tokens, [None, *tokens], strict=False):
        if token.type == "inline" and before is not None and before.type == "heading_open":
            outline.head(int(before.tag[1:]), _plain(token))
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            outline.add_row(row or [])
            row = None
        elif token.type == "inline" and row is not None:
            row.append([_plain(token)])
        elif token.type == "inline":
            outline.add(_plain(token))
        elif token.type in ("fence", "code_block"):
            outline.add(token.content.strip())
    return outline.document(path.stem)


def _plain(token: Token) -> str:
    """The text of a line of Markdown, without its marks."""
    pieces = {"softbreak": "\n", "hardbreak": "\n"}
    children = token.children or ()
    return "".join(pieces.get(each.type, each.content) for each in children).strip()
