"""Regular expressions of schemas: what they match, what is refused, and how long it takes."""

import re
import time

import pytest

from turnmill.schemas.formats.kinds import FORMATS
from turnmill.schemas.formats.patterns import BadPattern, Chars, matches, parse_pattern, shortest

PATTERNS = {
    "^[A-Z]{3}-\\d{4}$": (["ABC-1234"], ["ABC-123", "xABC-1234", "ABC-1234x"]),
    "b+": (["abba", "b"], ["", "ac"]),
    "^(?:cat|dogs?)$": (["cat", "dog", "dogs"], ["cats", "do"]),
    "^a|b$": (["ax", "xb"], ["xa", "bx"]),
    '^[^\\s"]*$': (["x", ""], ["a b", '"']),
    "^\\w+@\\w+\\.(com|org)$": (["me_1@x.org"], ["me@x.net", "@x.com"]),
    "^.{2,3}$": (["ab", "摘要"], ["a", "abcd", "a\nb"]),
    "^[\\u4e00-\\u9fff]+$": (["摘要"], ["a", ""]),
    "^[a\\-z\\]]+?$": (["a-z]"], ["b"]),
    "^x{0}$": ([""], ["x"]),
    "": (["", "anything\n"], []),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_python_s_own_engine_matches(pattern: str) -> None:
    good, bad = PATTERNS[pattern]
    node = parse_pattern(pattern)
    assert [text for text in good if not matches(node, text)] == []
    assert [text for text in bad if matches(node, text)] == []
    assert all(re.search(pattern, text) for text in good)
    assert matches(node, shortest(node))


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_format_is_of_the_format(name: str) -> None:
    node = parse_pattern(FORMATS[name])
    assert matches(node, shortest(node))


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)b", "(?<!a)b", "(a)\\1", "\\bword\\b", "\\p{L}", "a^b", "a$b", "(a", "a)", "[a", "[]",
        "*a", "a{3,1}", "[z-a]", "[\\d-x]", "(a{99}){99}", "\\", "(^a$)",
    ],
)  # fmt: skip
def test_what_is_not_regular_or_wrong_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        parse_pattern(pattern)


def test_no_pattern_takes_more_than_linear_time() -> None:
    began = time.process_time()
    for pattern in ("^(a+)+$", "^(a|aa)+$", "^(a*)*$", "(.*)*(.*)*x$"):
        assert not matches(parse_pattern(pattern), "a" * 2000 + "b")
    assert time.process_time() - began < 20


def test_a_character_is_looked_up_in_few_steps_however_many_ranges_a_class_has() -> None:
    ranges = [(point, point) for point in range(0x4E00, 0x4E00 + 18_000, 2)]
    looks = 0

    class Counted(int):
        def __lt__(self, other: int) -> bool:
            nonlocal looks
            looks += 1
            return int(self) < other

        __hash__ = int.__hash__

    found = Chars(tuple((Counted(low), high) for low, high in ranges))
    assert found.has(ranges[0][0])
    assert found.has(ranges[-1][1])
    assert not found.has(ranges[0][0] + 1)
    assert not found.has(0)
    assert looks < 100


def test_ranges_and_repetitions_count_as_the_size_of_a_pattern() -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 18_000, 2)))
    parse_pattern(f"^[{many}]{{0,100}}$")
    parse_pattern("^.{0,600}$")
    for large in (f"^[{many}]{{0,1990}}$", "^a{0,2500}$"):
        with pytest.raises(BadPattern, match="larger"):
            parse_pattern(large)
    parse_pattern("(" * 50 + "a" + ")" * 50)
    with pytest.raises(BadPattern, match="groups"):
        parse_pattern("(" * 51 + "a" + ")" * 51)
    parse_pattern("(a)" * 100)
