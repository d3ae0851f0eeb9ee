"""Split Markdown into messages: on the ends of sentences, and with code blocks kept whole.

A code block longer than a message is closed at the end of one and opened again in the next.
"""

import re
from collections.abc import Callable, Iterator

Measure = Callable[[str], int]

#: https://spec.commonmark.org/0.31.2/#fenced-code-blocks
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")

#: Where a text is cut, the best place first: after a paragraph, a line, a sentence (of Latin, CJK
#: or Arabic script), a word.
_ENDS = (
    re.compile(r"\n[ \t]*\n"),
    re.compile(r"\n"),
    re.compile(r"[.!?…؟۔][\"')\]»”’]*\s|[。！？][」』”’）]*"),
    re.compile(r"\s"),
)


def split(text: str, limit: int, measure: Measure = len) -> list[str]:
    """Split into parts of which `measure` says at most `limit`, as few as that takes."""
    parts: list[str] = []
    current = ""
    for block in _pieces(text, limit, measure):
        if current and measure(_trim(current + block)) > limit:
            parts.append(current)
            current = ""
        current += block
    parts.append(current)
    return [trimmed for part in parts if (trimmed := _trim(part))]


def _trim(part: str) -> str:
    """Without what Slack and others take away at the ends of a message."""
    return part.strip("\n").rstrip()


def cut(text: str, limit: int, at_least: int = 0) -> int:
    """Find where to end a message of at most `limit` characters, not before `at_least`."""
    if len(text) <= limit:
        return len(text)
    lowest = max(at_least, limit // 2)
    for pattern in _ENDS:
        # What is shown may already end at such a place.
        matches = pattern.finditer(text, max(lowest - 8, 0), limit)
        if ends := [match.end() for match in matches if match.end() >= lowest]:
            return ends[-1]
    return max(at_least, limit)


def open_fence(text: str) -> str | None:
    """The line that opened the code block in which a text ends, if it ends in one."""
    opened: str | None = None
    for line in text.split("\n"):
        opened = _after(line, opened)
    return opened


def closing(fence: str) -> str:
    """The line that closes a code block."""
    match = _FENCE.match(fence)
    assert match is not None
    return match[1]


def _after(line: str, opened: str | None) -> str | None:
    """The open fence after a line."""
    match = _FENCE.match(line)
    if match is None:
        return opened
    if opened is None:
        return line if match[1][0] == "~" or "`" not in match[2] else None
    mark = closing(opened)
    is_end = match[1][0] == mark[0] and len(match[1]) >= len(mark) and not match[2].strip()
    return None if is_end else opened


def _pieces(text: str, limit: int, measure: Measure) -> Iterator[str]:
    """Blocks, and what too long ones are cut into; together they are the text."""
    for block in _blocks(text):
        if measure(_trim(block)) <= limit:
            yield block
        elif _FENCE.match(block.partition("\n")[0]):
            yield from _code(block, limit, measure)
        else:
            yield from _prose(block, limit, measure, _ENDS)


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs with the empty lines after them, and whole code blocks."""
    current: list[str] = []
    opened: str | None = None
    for line in text.splitlines(keepends=True):
        was_open, opened = opened, _after(line.rstrip("\r\n"), opened)
        if opened and not was_open and current:
            yield "".join(current)
            current = []
        current.append(line)
        if (was_open and not opened) or (not opened and not line.strip()):
            yield "".join(current)
            current = []
    yield "".join(current)


def _code(block: str, limit: int, measure: Measure) -> Iterator[str]:
    """A code block as several, each closed."""
    first, *lines = block.splitlines(keepends=True)
    opened = first.rstrip("\r\n")
    if lines and _after(lines[-1].rstrip("\r\n"), opened) is None:
        lines.pop()
    end = f"{closing(opened)}\n"
    current = ""
    for line in lines:
        for piece in _hard(line, limit - measure(f"{opened}\n\n{end}"), measure):
            if current and measure(f"{opened}\n{current}{piece}{end}") > limit:
                yield f"{opened}\n{current}{end}"
                current = ""
            current += piece if piece.endswith("\n") else f"{piece}\n"
    if current:
        yield f"{opened}\n{current}{end}"


def _prose(
    text: str, limit: int, measure: Measure, ends: tuple[re.Pattern[str], ...]
) -> Iterator[str]:
    """Text cut at the best kind of place that makes its pieces short enough."""
    if measure(_trim(text)) <= limit:
        yield text
        return
    if not ends:
        yield from _hard(text, limit, measure)
        return
    start = 0
    for match in ends[0].finditer(text):
        yield from _prose(text[start : match.end()], limit, measure, ends[1:])
        start = match.end()
    if rest := text[start:]:
        yield from _prose(rest, limit, measure, ends[1:])


def _hard(text: str, limit: int, measure: Measure) -> Iterator[str]:
    """Text without any place to cut at."""
    limit = max(limit, 8)
    while measure(text.rstrip("\n")) > limit:
        size = limit
        while measure(text[:size]) > limit:
            size = max(1, size // 2)
        yield text[:size]
        text = text[size:]
    yield text
