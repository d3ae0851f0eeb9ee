"""Citation markers in a reply: find those of passages that were shown, and remove all others.

A reply cites the passages of its prompt by number: `[1]`, `[1, 2]`, `[1-3]`, `[Source 1]`, `【1】`.
What only looks like a marker is left alone: code, links (`[1](…)`), indices (`a[1]`), intervals
(`[0, 1]`), footnotes (`[^1]`), numbers of more than three digits.

The text comes in pieces, and what was given out is never taken back: a piece that may yet become
a marker is held until it is one or cannot be one. How a text is cut into pieces changes nothing.
"""

import re
from collections.abc import Container
from dataclasses import dataclass, field
from enum import Enum

#: Characters of one marker, of nested brackets that may become one, of a span of code.
_MAX_MARKER, _MAX_NESTED, _MAX_CODE = 64, 64, 512
#: How often a text is read to take its markers out.
_MAX_PASSES = 8

_OPEN, _CLOSE = "[【［", "]】］"
_SPACES = " \t\u00a0\u3000"
_NUMBER = "[0-9０-９]{1,3}"
_ITEM = rf"{_NUMBER}(?:[{_SPACES}]*[-–—~～][{_SPACES}]*{_NUMBER})?"
_COMMA = ",，、;；"
_LABEL = rf"(?:(?:passages?|sources?|来源|资料|文档)[{_SPACES}]*[:：#]?)"

_MARKER = re.compile(
    rf"[{re.escape(_OPEN)}][{_SPACES}]*{_LABEL}?[{_SPACES}]*"
    rf"({_ITEM}(?:[{_SPACES}{_COMMA}]+{_ITEM})*)[{_SPACES}]*[{re.escape(_CLOSE)}]",
    re.IGNORECASE,
)
#: What a marker may begin with.
_BEGUN = re.compile(
    rf"[{re.escape(_OPEN)}][{_SPACES}]{{0,4}}(?:[A-Za-z]{{1,8}}|[来源资料文档]{{1,2}})?"
    rf"[0-9０-９{_COMMA}{_SPACES}:：#\-–—~～]{{0,{_MAX_MARKER - 16}}}"
)
_ITEMS = re.compile(rf"({_NUMBER})(?:[{_SPACES}]*[-–—~～][{_SPACES}]*({_NUMBER}))?")

_BRACKETS = re.compile(f"[{re.escape(_OPEN)}]+")
_WORD = rf"[^{re.escape(_OPEN)}`\n{_SPACES}]+"
_PLAIN = re.compile(rf"{_WORD}(?:[{_SPACES}]+{_WORD})*")
_SPACE = re.compile(f"[{_SPACES}]+")
_TICKS = re.compile("`+")
#: https://spec.commonmark.org/0.31.2/#fenced-code-blocks, below a list's bullet too.
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^\n]*)")
_FENCE_BEGUN = re.compile(r"[ \t]*(?:`{1,2}|~{1,2})?\Z")
#: A name that only programs have, before what is then an index.
_INDEXED = re.compile(r"(?:(?:^|[\s(=+\-*/,<>{\u3000-\u9fff])[a-z]|[A-Za-z0-9]*_\w*)\Z", re.ASCII)
_WORD_END = re.compile(r"[A-Za-z_]\Z")
#: Before these (and at an end) no space is left where a marker was.
_NO_SPACE_BEFORE = re.compile(r"[\s.,;:!?)\]}。，、；：！？）】］…]")


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a reply cites a passage, in Unicode code points of its text; `end` is exclusive."""

    number: int
    start: int
    end: int


class _All(Container[int]):
    def __contains__(self, number: object) -> bool:
        return True


ALL: Container[int] = _All()


class _Verdict(Enum):
    WAIT = "wait"  # what follows decides
    TEXT = "text"  # no marker begins here


@dataclass(slots=True)
class CitationReader:
    """Reads one reply, piece by piece."""

    #: The numbers of passages that were shown.
    shown: Container[int]
    #: Other numbers that may stand: those that the user's own text has.
    spared: Container[int] = ()
    #: In the text that was given out.
    citations: list[Citation] = field(default_factory=list)
    #: What is held, and how far it has been given out.
    _text: str = ""
    _at: int = 0
    _length: int = 0
    #: The line as far as it was given out, and the line that opened the code block around it.
    _line: str = ""
    _fence: str | None = None
    #: The last thing given out was an index: `a[1]`, which may be followed by another.
    _is_after_index: bool = False

    @property
    def held(self) -> str:
        """What may yet become a marker, and is not given out."""
        return self._text[self._at :]

    def resume(self, text: str) -> None:
        """Begin after a text that was given out before."""
        spared, self.spared = self.spared, ALL
        self.feed(text)
        self.end()
        self.spared = spared

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be given out."""
        return self._read(text, is_end=False)

    def end(self) -> str:
        """Return what is still held: nothing follows."""
        return self._read("", is_end=True)

    def _read(self, text: str, *, is_end: bool) -> str:
        self._text, self._at = self._text[self._at :] + text, 0
        given: list[str] = []
        while self._at < len(self._text):
            piece = self._next(is_end)
            if piece is None:
                break
            self._note(piece)
            given.append(piece)
        return "".join(given)

    def _note(self, piece: str) -> None:
        """Remember what was given out."""
        self._length += len(piece)
        *lines, rest = piece.split("\n")
        for line in lines:
            self._fence = _fence_after(self._line + line, self._fence)
            self._line = ""
        self._line += rest

    def _next(self, is_end: bool) -> str | None:
        """The next piece to give out; None: what follows decides."""
        text, at = self._text, self._at
        if self._fence is not None or text[at] == "\n":
            self._is_after_index = False
            end = text.find("\n", at) + 1 or len(text)
            return self._take(end)
        if not self._line and (line_end := self._fence_end(is_end)) != at:
            return None if line_end is None else self._take(line_end)
        if plain := _PLAIN.match(text, at):
            self._is_after_index = False
            return self._take(plain.end())
        if text[at] == "`":
            self._is_after_index = False
            code_end = self._code_end(is_end)
            return None if code_end is None else self._take(code_end)
        space = _SPACE.match(text, at)
        return self._bracket(space.end() if space else at, is_end)

    def _take(self, end: int) -> str:
        piece = self._text[self._at : end]
        self._at = end
        return piece

    # Code.

    def _fence_end(self, is_end: bool) -> int | None:
        """Where the line ends if it opens a code block, else where it begins; None: unknown."""
        text, at = self._text, self._at
        if not is_end and _FENCE_BEGUN.match(text, at):
            return None
        line = _FENCE.match(text, at)
        if line is None:
            return at
        if line.end() == len(text) and not is_end and line.end() - at < _MAX_CODE:
            return None
        return line.end() if _fence_after(line[0], None) else at

    def _code_end(self, is_end: bool) -> int | None:
        """Where a span of code ends, or the backticks that begin none; None: unknown."""
        text, at = self._text, self._at
        ticks = _TICKS.match(text, at)
        assert ticks is not None
        if ticks.end() == len(text) and not is_end:
            return None
        limit = at + _MAX_CODE
        line_end = text.find("\n", at, limit)
        for other in _TICKS.finditer(text, ticks.end(), limit if line_end < 0 else line_end):
            if other.end() == len(text) and not is_end:
                return None
            if len(other[0]) == len(ticks[0]):
                return other.end()
        is_open = line_end < 0 and len(text) < limit and not is_end
        return None if is_open else ticks.end()

    # Brackets.

    def _bracket(self, at: int, is_end: bool) -> str | None:
        """What stands at a bracket, with the spaces before it."""
        if at == len(self._text) and not is_end:
            return None
        is_after_index = self._is_after_index and at == self._at
        self._is_after_index = False
        if at == len(self._text) or self._text[at] not in _OPEN:
            return self._take(at)
        found = self._marker(at, is_end)
        if found is _Verdict.WAIT:
            self._is_after_index = is_after_index
            return None
        if found is _Verdict.TEXT:
            brackets = _BRACKETS.match(self._text, at)
            assert brackets is not None
            # Of a long row of brackets only the last ones can be part of a marker.
            return self._take(max(at + 1, brackets.end() - _MAX_NESTED))
        assert not isinstance(found, _Verdict)
        if found.start() > at:
            return self._nested(at, found)
        if at == self._at and (is_after_index or _is_index(found, self._line[-32:])):
            self._is_after_index = True
            return self._take(found.end())
        return self._judge(found)

    def _marker(self, at: int, is_end: bool) -> re.Match[str] | _Verdict:
        """The marker that begins at a bracket, or after others that may become one with it."""
        text, first = self._text, at
        while at - first < _MAX_NESTED:
            begun = _BEGUN.match(text, at)
            assert begun is not None
            end = begun.end()
            if end == len(text):
                return _Verdict.TEXT if is_end else _Verdict.WAIT
            if text[end] in _CLOSE:
                found = _MARKER.fullmatch(text, at, end + 1)
                # What follows tells whether it is a link.
                is_undecided = end + 1 == len(text) and not is_end
                return _Verdict.WAIT if is_undecided else found or _Verdict.TEXT
            if text[end] not in _OPEN:
                return _Verdict.TEXT
            at = end
        return _Verdict.TEXT

    def _nested(self, at: int, inner: re.Match[str]) -> str:
        """Take a marker out that stands within another bracket: what is around it may be one."""
        if self._kept(inner) == []:
            self._text = self._text[: inner.start()] + self._text[inner.end() :]
            return ""
        return self._take(at + 1)

    def _judge(self, marker: re.Match[str]) -> str:
        kept = self._kept(marker)
        if kept is None:
            return self._take(marker.end())
        if kept:
            return self._cite(marker, kept)
        spaces, rest = self._text[self._at : marker.start()], self._text[marker.end() :]
        self._at = marker.end()
        if rest[:1] in _OPEN and rest:
            # The next marker decides about the spaces before both.
            self._text, self._at = spaces + rest, 0
            return ""
        return "" if not rest or _NO_SPACE_BEFORE.match(rest) else spaces

    def _kept(self, marker: re.Match[str]) -> list[int] | None:
        """The numbers of a marker that may stand; None: it cites nothing, and is left alone."""
        numbers = _numbers(marker[1])
        is_interval = 0 in numbers and len(numbers) > 1
        is_link = self._text[marker.end() : marker.end() + 1] == "("
        if is_interval or is_link:
            return None
        return [each for each in numbers if each in self.shown or each in self.spared]

    def _cite(self, marker: re.Match[str], kept: list[int]) -> str:
        """Give a marker out, without the numbers that may not stand."""
        spaces = self._text[self._at : marker.start()]
        shown = marker[0]
        if kept != _numbers(marker[1]):
            shown = f"{shown[0]}{', '.join(map(str, kept))}{shown[-1]}"
        start = self._length + len(spaces)
        self.citations += [
            Citation(each, start, start + len(shown)) for each in kept if each in self.shown
        ]
        self._at = marker.end()
        return spaces + shown


def find_citations(text: str, shown: Container[int]) -> list[Citation]:
    """Where a text cites the passages that were shown."""
    if not _BRACKETS.search(text):
        return []
    reader = CitationReader(shown, ALL)
    reader.feed(text)
    reader.end()
    return reader.citations


def without_markers(text: str) -> str:
    """A text that cites nothing any more: the numbers are another prompt's."""
    if not _BRACKETS.search(text):
        return text
    # Backticks may stand together where a marker was, and then what was code is none any more.
    for _ in range(_MAX_PASSES):
        reader = CitationReader(())
        text = reader.feed(text) + reader.end()
        if not find_citations(text, ALL):
            break
    return text


def _is_index(marker: re.Match[str], before: str) -> bool:
    """Whether a marker right behind a text is an index of what the text ends with."""
    if _numbers(marker[1]) == [0]:  # passages are numbered from 1
        return _WORD_END.search(before) is not None
    return _INDEXED.search(before) is not None


def _numbers(items: str) -> list[int]:
    """The numbers that a marker names, each once, in its order."""
    found: dict[int, None] = {}
    for first, last in _ITEMS.findall(items):
        found |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return list(found)


def _fence_after(line: str, opened: str | None) -> str | None:
    """The line that opened the code block after a line, if that is in one."""
    match = _FENCE.match(line)
    if match is None:
        return opened
    if opened is None:
        return line if match[1][0] == "~" or "`" not in match[2] else None
    mark = _FENCE.match(opened)
    assert mark is not None
    is_end = match[1][0] == mark[1][0] and len(match[1]) >= len(mark[1]) and not match[2].strip()
    return None if is_end else opened
