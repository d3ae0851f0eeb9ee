"""Regular expressions of JSON Schemas: read once, for engines, validation and examples alike.

The part of ECMA 262 that is regular: no look-around, back-references or word boundaries. Matching
takes time linear in the text (https://swtch.com/~rsc/regexp/regexp1.html), so that no pattern of a
tenant can hold a worker up.
"""

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

#: Steps of a pattern for one character of a text, its bounded repetitions written out.
MAX_SIZE = 2500

#: Groups within groups.
MAX_NESTED = 50

LAST = 0x10FFFF
#: Code points that no text has.
_SURROGATES = (0xD800, 0xDFFF)


class BadPattern(ValueError):
    """The expression is wrong, or not regular."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of these ranges, both ends included, in their order."""

    ranges: tuple[tuple[int, int], ...]

    def has(self, point: int) -> bool:
        before = bisect(self.ranges, (point, LAST))
        return before > 0 and point <= self.ranges[before - 1][1]


@dataclass(frozen=True, slots=True)
class Sequence_:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Options:
    options: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: "Node"
    least: int
    #: None: any number.
    most: int | None


Node = Chars | Sequence_ | Options | Repeat

ANY = Chars(((0, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, LAST)))
ANYTHING = Repeat(ANY, 0, None)


def chars(*ranges: tuple[int, int]) -> Chars:
    """Characters of these ranges, which may overlap."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return Chars(tuple(merged))


def all_but(excluded: Chars) -> Chars:
    """Every character that these are not."""
    ranges, start = [], 0
    for low, high in chars(*excluded.ranges, _SURROGATES).ranges:
        if low > start:
            ranges.append((start, low - 1))
        start = high + 1
    return chars(*ranges, (start, LAST)) if start <= LAST else chars(*ranges)


def _is_one(found: Chars) -> bool:
    return len(found.ranges) == 1 and found.ranges[0][0] == found.ranges[0][1]


def _of(text: str) -> Chars:
    return chars(*((ord(each), ord(each)) for each in text))


_DIGIT = chars((48, 57))
_WORD = chars((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = _of("\t\n\v\f\r \u00a0\ufeff\u2028\u2029\u1680\u202f\u205f\u3000" + "\u2000\u2001\u2002"
             "\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a")  # fmt: skip
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CLASSES |= {name.upper(): all_but(found) for name, found in _CLASSES.items()}
_DOT = all_but(_of("\n\r\u2028\u2029"))
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_COUNTS = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")


@lru_cache(maxsize=256)
def parse_pattern(pattern: str) -> Node:
    """Read an expression as what a whole text must be.

    JSON Schema's patterns are found anywhere in a text unless they are anchored.

    Raises:
        BadPattern: it is wrong, not regular, or too large.
    """
    node = _Parser(pattern).read()
    if size_of(node) > MAX_SIZE:
        raise BadPattern(f"is larger than {MAX_SIZE} characters with its repetitions written out")
    return node


def size_of(node: Node) -> int:
    """How many steps one character of a text takes at most.

    A class of many ranges takes as many as a bisection looks at.
    """
    match node:
        case Chars(ranges):
            return len(ranges).bit_length()
        case Sequence_(parts) | Options(parts):
            return 1 + sum(map(size_of, parts))
        case Repeat(part, least, most):
            return 1 + size_of(part) * max(1, least if most is None else most)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._nested = 0

    def read(self) -> Node:
        options = [self._anchored()]
        while self._take("|"):
            options.append(self._anchored())
        if self._at < len(self._text):
            raise BadPattern("has a ')' too many")
        return options[0] if len(options) == 1 else Options(tuple(options))

    def _anchored(self) -> Node:
        begins = self._take("^")
        body = self._sequence()
        ends = self._take("$")
        if ends and self._at < len(self._text) and self._text[self._at] not in "|":
            raise BadPattern("has a '$' that is not at its end")
        before, after = () if begins else (ANYTHING,), () if ends else (ANYTHING,)
        return Sequence_((*before, body, *after))

    def _sequence(self) -> Node:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            parts.append(self._repeated(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence_(tuple(parts))

    def _options(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Options(tuple(options))

    def _atom(self) -> Node:
        character = self._next()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return _DOT
            case "\\":
                return self._escape()
            case "^":
                raise BadPattern("has a '^' that is not at its beginning")
            case "*" | "+" | "?":
                raise BadPattern(f"has a '{character}' after nothing")
        return _of(character)

    def _group(self) -> Node:
        if self._take("?") and not self._take(":"):
            raise BadPattern("has a group that is not '(…)' or '(?:…)', such as a look-ahead")
        self._nested += 1
        if self._nested > MAX_NESTED:
            raise BadPattern(f"has more than {MAX_NESTED} groups within each other")
        body = self._options()
        self._nested -= 1
        if not self._take(")"):
            if self._at < len(self._text):
                raise BadPattern("has a '$' that is not at its end")
            raise BadPattern("has a '(' that is not closed")
        return body

    def _repeated(self, part: Node) -> Node:
        counts: tuple[int, int | None]
        if self._take("*"):
            counts = (0, None)
        elif self._take("+"):
            counts = (1, None)
        elif self._take("?"):
            counts = (0, 1)
        elif found := _COUNTS.match(self._text, self._at):
            self._at = found.end()
            least = int(found[1])
            counts = (least, (int(found[3]) if found[3] else None) if found[2] else least)
        else:
            return part
        if counts[1] is not None and counts[1] < counts[0]:
            raise BadPattern("has a repetition whose end is below its beginning")
        self._take("?")  # lazily: the texts are the same
        return Repeat(part, *counts)

    def _class(self) -> Chars:
        is_negated = self._take("^")
        found: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 :][:1] != "]":
                self._at += 1
                high = self._member()
                if not (_is_one(low) and _is_one(high)):
                    raise BadPattern("has a range between classes of characters")
                if high.ranges[0][1] < low.ranges[0][0]:
                    raise BadPattern("has a range whose end is below its beginning")
                found.append((low.ranges[0][0], high.ranges[0][1]))
            else:
                found += low.ranges
        kept = all_but(chars(*found)) if is_negated else chars(*found)
        if not kept.ranges:
            raise BadPattern("has a class without a character")
        return kept

    def _member(self) -> Chars:
        character = self._next()
        return self._escape(in_class=True) if character == "\\" else _of(character)

    def _escape(self, *, in_class: bool = False) -> Chars:
        if found := _HEX.match(self._text, self._at):
            self._at = found.end()
            point = int(found[1] or found[2], 16)
            if _SURROGATES[0] <= point <= _SURROGATES[1]:
                raise BadPattern("has half of a surrogate pair: write the character itself")
            return _of(chr(point))
        character = self._next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character in _CONTROLS:
            return _of(_CONTROLS[character])
        if in_class and character == "b":
            return _of("\b")
        if character.isalnum():
            raise BadPattern(f"has '\\{character}', which is not supported")
        return _of(character)

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise BadPattern("ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False


# Matching


@dataclass(slots=True)
class _State:
    """Waits for one of the characters, and goes to `after`; without characters, to all `after` at
    once.
    """

    chars: Chars | None
    after: list[int]


@lru_cache(maxsize=256)
def _states(node: Node) -> tuple[list[_State], int]:
    """The automaton of an expression, and where it begins; state 0 is its end."""
    states = [_State(None, [])]

    def add(found: Chars | None, *after: int) -> int:
        states.append(_State(found, list(after)))
        return len(states) - 1

    def build(node: Node, after: int) -> int:
        match node:
            case Chars():
                return add(node, after)
            case Sequence_(parts):
                for part in reversed(parts):
                    after = build(part, after)
                return after
            case Options(options):
                return add(None, *(build(option, after) for option in options))
            case Repeat(part, least, most):
                if most is None:
                    loop = add(None, after)
                    states[loop].after.append(build(part, loop))
                    after = loop
                else:
                    end = after
                    for _ in range(most - least):
                        after = add(None, end, build(part, after))
                for _ in range(least):
                    after = build(part, after)
                return after

    return states, build(node, 0)


def matches(node: Node, text: str) -> bool:
    """Whether the whole text is what the expression describes."""
    states, start = _states(node)
    current = _closure(states, [start])
    for character in map(ord, text):
        reached = [
            state.after[0]
            for state in (states[number] for number in current)
            if state.chars and state.chars.has(character)
        ]
        current = _closure(states, reached)
        if not current:
            return False
    return 0 in current


def _closure(states: Sequence[_State], reached: list[int]) -> set[int]:
    found: set[int] = set()
    while reached:
        number = reached.pop()
        if number not in found:
            found.add(number)
            if states[number].chars is None:
                reached += states[number].after
    return found


# Examples


def shortest(node: Node) -> str:
    """A short text that an expression describes."""
    match node:
        case Chars():
            return chr(min(_candidates(node), key=_oddness))
        case Sequence_(parts):
            return "".join(map(shortest, parts))
        case Options(options):
            return min(map(shortest, options), key=len)
        case Repeat(part, least):
            return shortest(part) * least


def _candidates(node: Chars) -> Iterator[int]:
    for low, high in node.ranges:
        yield from (point for point in (low, ord("a"), ord("0"), ord(" ")) if low <= point <= high)


def _oddness(point: int) -> tuple[bool, bool, int]:
    return not chr(point).isprintable(), not chr(point).isalnum(), point
