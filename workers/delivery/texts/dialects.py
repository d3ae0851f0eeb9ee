"""Translate a model's Markdown into what a platform shows as formatted.

Code stays as it is, but for what the platform's `escape` escapes everywhere.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from turnmill.workers.delivery.texts.markdown import open_fence

#: What stands before and after a piece of text.
Marks = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One platform's markup."""

    escape: Callable[[str], str]
    bold: Marks
    italic: Marks
    struck: Marks
    code: Marks
    quote: Marks
    #: Takes the label and the address.
    link: Callable[[str, str], str]
    #: Takes the language of a code block, which may be empty.
    fence: Callable[[str], str]
    fence_end: str


_LINK = re.compile(
    r"(!?)\[([^\[\]\n]*)\]\((?:&lt;|<)?([^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:&gt;|>)?"
    r"(?:\s+(?:\"[^\"]*\"|'[^']*'))?\)"
)
_AUTOLINK = re.compile(r"(?:&lt;|<)((?:https?|mailto):[^\s<>]+?)(?:&gt;|>)")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_BULLET = re.compile(r"^(\s*)[-*+]\s+(?:\[([ xX])\]\s+)?")
_QUOTE = re.compile(r"^ {0,3}((?:(?:&gt;|>) ?)+)")
_RULE = re.compile(r"^ {0,3}([-*_])(?: *\1){2,} *$")
_ROW = re.compile(r"^\s*\|.*\|\s*$")
_FENCE = re.compile(r"^ {0,3}(?:`{3,}|~{3,})\s*(\S*)")
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_BOTH = re.compile(r"\*\*\*(?=\S)(.+?)(?<=\S)\*\*\*")
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])")
_UNDERSCORED = re.compile(r"(?<![\w_])_(?=[^\s_])([^_\n]+?)(?<=[^\s_])_(?![\w_])")
_STRUCK = re.compile(r"~~(?=\S)(.+?)(?<=\S)~~")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!~|])")

#: Stand for the marks of bold while italics are looked for; no reply has control characters
#: (`storable`).
_BOLD_FROM, _BOLD_TO = "\x01", "\x04"
#: Stands for a piece that is not to be translated.
_KEPT = re.compile("\x02(\\d+)\x03")


def translate(text: str, dialect: Dialect) -> str:
    """Translate a whole message; a code block that is still open is closed."""
    lines: list[str] = []
    opened: str | None = None
    table: list[str] = []
    for line in dialect.escape(text).split("\n"):
        was_open, opened = opened, open_fence(line if opened is None else f"{opened}\n{line}")
        if table and (was_open or not _ROW.match(line)):
            lines += _table(table, dialect)
            table = []
        if was_open and opened:
            lines.append(line)
        elif was_open or opened:
            lines.append(dialect.fence_end if was_open else dialect.fence(_language(line)))
        elif _ROW.match(line):
            table.append(line)
        else:
            lines.append(_line(line, dialect))
    closing = [dialect.fence_end] if opened else []
    return "\n".join(lines + _table(table, dialect) + closing)


def _language(line: str) -> str:
    match = _FENCE.match(line)
    return match[1] if match else ""


def _table(rows: list[str], dialect: Dialect) -> list[str]:
    """Chats have no tables; as code a table's columns stay columns."""
    if len(rows) > 1:
        return [dialect.fence(""), *rows, dialect.fence_end]
    return [_inline(row, dialect) for row in rows]


def _line(line: str, dialect: Dialect) -> str:
    if _RULE.match(line):
        return "———"
    if heading := _HEADING.match(line):
        plain = heading[1].replace("**", "").replace("__", "")
        return _marked(_inline(plain, dialect), dialect.bold) if plain else ""
    marks, mark = ("", ""), ""
    if quote := _QUOTE.match(line):
        marks, line = dialect.quote, line[quote.end() :]
    if bullet := _BULLET.match(line):
        box = {None: "•", " ": "☐"}.get(bullet[2], "☑")
        mark, line = f"{bullet[1]}{box} ", line[bullet.end() :]
    return _marked(mark + _inline(line, dialect), marks)


def _inline(text: str, dialect: Dialect) -> str:
    """Translate what stands between spans of code."""
    shown: list[str] = []
    start = 0
    for code in _CODE.finditer(text):
        shown.append(_styled(text[start : code.start()], dialect))
        shown.append(_marked(code[2].strip() or code[2], dialect.code))
        start = code.end()
    return "".join(shown) + _styled(text[start:], dialect)


def _styled(text: str, dialect: Dialect) -> str:
    kept: list[str] = []

    def keep(piece: str) -> str:
        kept.append(piece)
        return f"\x02{len(kept) - 1}\x03"

    def link(match: re.Match[str]) -> str:
        label, url = match[2] or match[3], match[3]
        return keep(dialect.link(label, url) if url else label)

    text = _LINK.sub(link, _ESCAPED.sub(lambda match: keep(match[1]), text))
    text = _AUTOLINK.sub(lambda match: keep(dialect.link("", match[1])), text)
    text = _BOTH.sub(rf"{_BOLD_FROM}*\1*{_BOLD_TO}", text)
    text = _BOLD.sub(rf"{_BOLD_FROM}\2{_BOLD_TO}", text)
    for pattern, marks in (
        (_ITALIC, dialect.italic),
        (_UNDERSCORED, dialect.italic),
        (_STRUCK, dialect.struck),
    ):
        text = pattern.sub(lambda match, marks=marks: _nested(match, marks), text)  # type: ignore[misc]
    text = text.replace(_BOLD_FROM, dialect.bold[0]).replace(_BOLD_TO, dialect.bold[1])
    while _KEPT.search(text):
        # A link's label may have kept pieces of its own.
        text = _KEPT.sub(lambda match: kept[int(match[1])], text)
    return text


def _nested(match: re.Match[str], marks: Marks) -> str:
    """Mark a piece, unless bold begins or ends in the midst of it."""
    inner = match[1]
    if inner.count(_BOLD_FROM) != inner.count(_BOLD_TO):
        return match[0]
    return _marked(inner, marks)


def _marked(text: str, marks: Marks) -> str:
    return f"{marks[0]}{text}{marks[1]}"
