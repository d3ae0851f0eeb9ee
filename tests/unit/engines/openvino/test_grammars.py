"""The grammars that OpenVINO gets: ranges of numbers, and texts as JSON writes them."""

import json
import random
import re
from typing import Any

import pytest

from turnmill.schemas.formats.patterns import parse_pattern
from turnmill.schemas.formats.plain import bounds
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import GenerationParams, Tool
from turnmill.workers.engines.openvino.grammars import (
    MOST_REPEATED,
    _escaped_class,
    grammar_of,
)
from turnmill.workers.engines.openvino.numbers import decimals, integers
from turnmill.workers.engines.text.tools import HERMES, OfferedTools


def grammar(schema: Any) -> str:
    return grammar_of(ResponseFormat(type="json_schema", schema_text=json.dumps(schema)))


def test_calls_that_may_be_made_are_dispatched_by_their_trigger() -> None:
    number = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    tools = (Tool(name="track", parameters=number), Tool(name="odd", parameters={"not": {}}))

    def root(**more: Any) -> str:
        offered = OfferedTools.of(HERMES, GenerationParams(tools=tools, **more))
        assert offered is not None and offered.held is not None
        return grammar_of(offered.held)

    text = root()
    assert text.startswith('root ::= TagDispatch(("<tool_call>", r')
    assert "loop_after_dispatch=true)" in text
    assert '"\\u000a{\\"name\\": \\"track\\", \\"arguments\\": "' in text
    assert "looseobject ::= " in text  # of the tool whose schema cannot be kept to
    assert "loop_after_dispatch=false)" in root(parallel_tool_calls=False)
    assert "TagDispatch" not in root(tool_choice="track")


def as_expression(options: list[str]) -> re.Pattern[str]:
    """Literals, classes and repetitions of the grammar as one of Python's expressions."""
    parts = [
        re.sub(r'"([^"]*)"', lambda found: re.escape(found[1]), option).replace(" ", "")
        for option in options
    ]
    return re.compile("|".join(f"(?:{part})" for part in parts))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (1, 5), (0, 100), (7, 7), (147, 3999), (-12, 7), (-5, -5), (-120, -9), (1990, 2030)],
)
def test_a_range_of_integers_has_these_and_no_others(low: int, high: int) -> None:
    numbers = as_expression([*integers(low, high)])
    found = {n for n in range(-5000, 5001) if numbers.fullmatch(str(n))}
    assert found == set(range(low, high + 1))
    assert not numbers.fullmatch("01") and not numbers.fullmatch("-0")


def test_open_ranges_of_integers_have_fifteen_digits_at_most() -> None:
    numbers = as_expression([*integers(18, float("inf"))])
    assert numbers.fullmatch("18") and numbers.fullmatch("9" * 15)
    assert not numbers.fullmatch("17") and not numbers.fullmatch("9" * 16)


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"minimum": 0, "maximum": 1}, ["0", "0.5", "0.123456", "1"], ["-0.1", "1.1", "2", "1.01"]),
        ({"exclusiveMinimum": 0}, ["0.01", "3", "12.5"], ["0", "-1"]),
        ({"minimum": -12.5, "maximum": 3.25}, ["-12.5", "-0.5", "0", "3.25"], ["-12.51", "3.26"]),
        ({"minimum": 0.2, "maximum": 0.3}, ["0.2", "0.25", "0.3"], ["0.19", "0.31", "0"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.001}, ["0.0005"], ["0", "0.001"]),
        ({"maximum": -3}, ["-3", "-3.5", "-100.1"], ["-2.99", "0"]),
        ({"minimum": -1, "maximum": 1}, ["-1", "-0.5", "0.5", "1"], ["-1.5", "1.5"]),
    ],
)  # fmt: skip
def test_a_range_of_numbers_has_only_these(
    schema: dict[str, Any], inside: list[str], outside: list[str]
) -> None:
    plain = {"type": "number", **schema}
    numbers = as_expression([*decimals(plain, *bounds(plain))])
    assert [text for text in inside if not numbers.fullmatch(text)] == []
    assert [text for text in outside if numbers.fullmatch(text)] == []
    chance = random.Random(0)
    low, high = bounds(plain)
    for _ in range(2000):
        text = f"{chance.uniform(-20, 20):.{chance.randrange(4)}f}"
        if numbers.fullmatch(text):
            assert low <= float(text) <= high


def test_what_a_pattern_allows_is_written_as_json_escapes_it() -> None:
    allowed = parse_pattern('^["\\\\a\\n]$').parts[0]  # type: ignore[union-attr]
    assert _escaped_class(allowed) == '([a] | "\\\\\\"" | "\\\\\\\\" | "\\\\n")'  # type: ignore[arg-type]
    assert "\\u0022" not in grammar({"type": "string", "pattern": "^[^x]+$"}).split("\ntext ::=")[0]


def test_very_long_bounds_are_left_to_validation() -> None:
    text = grammar({"type": "string", "maxLength": MOST_REPEATED + 1})
    assert text.startswith("root ::= text\n")


def test_a_property_that_may_be_missing_takes_its_comma_along() -> None:
    text = grammar({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}})
    assert 'r1 ::= "," "\\"b\\":" r0 "}" | "}"\n' in text
    assert "root ::= r6\n" in text


def all_rules(text: str) -> re.Pattern[str]:
    """A grammar of an array of `true`, whose rules do not recur, as one expression."""
    rules = dict(line.split(" ::= ") for line in text.splitlines())
    body = rules["root"]
    while names := re.findall(r"\br\d+\b", body):
        body = body.replace(names[0], f"({rules[names[0]]})")
    return as_expression([body])


@pytest.mark.parametrize(
    ("least", "most"),
    [(0, 1), (0, 31), (0, 33), (1, 80), (33, 33), (17, 48), (0, 200), (40, 300), (0, 600)],
)
def test_a_repetition_in_blocks_has_these_lengths_and_no_others(least: int, most: int) -> None:
    text = grammar({"type": "array", "items": {"const": 1}, "minItems": least, "maxItems": most})
    written = all_rules(text)
    found = {n for n in range(most + 40) if written.fullmatch(f"[{','.join('1' * n)}]")}
    assert found == set(range(least, most + 1))


def test_long_bounds_share_their_places() -> None:
    properties = {f"line{n}": {"type": "string", "maxLength": 200 + n} for n in range(8)}
    text = grammar({"type": "object", "properties": properties, "required": []})
    assert text.count("char{16}") == 1
    places = sum(int(most) for most in re.findall(r"\{(?:0,)?(\d+)\}", text))
    assert places < 8 * 60


def places(text: str) -> int:
    """How many places all repetitions of a grammar have."""
    bounds = re.findall(r"\{(\d+)(?:,(\d+))?\}", text)
    return sum(int(most or least) for least, most in bounds)


@pytest.mark.parametrize("pattern", ["^[a-z{}]{{0,500}}[0-9]{{0,500}}$", "^[a-z{}]{{3,4}}$"])
def test_many_repetitions_share_a_budget_of_places(pattern: str) -> None:
    def of(count: int) -> str:
        texts = {f"p{n}": pattern.format(chr(0x4E00 + n)) for n in range(count)}
        properties = {name: {"type": "string", "pattern": text} for name, text in texts.items()}
        return grammar({"type": "object", "properties": properties})

    unbounded = places(of(0))
    assert unbounded < places(of(1)) < places(of(3))
    assert places(of(300)) <= unbounded + 500


def test_short_bounds_come_before_long_ones_wherever_they_stand() -> None:
    lengths = [50, 100, 255, 500, 1000, 64, 200, 2000, *range(300, 320)]
    properties = {f"p{n}": {"type": "string", "maxLength": each} for n, each in enumerate(lengths)}
    text = grammar({"type": "object", "properties": properties})
    rules = dict(line.split(" ::= ") for line in text.splitlines())
    bounded = [
        "char*" not in rules[rules[name].split()[1]]
        for name in rules
        if re.fullmatch(r'"\\"" r\d+ "\\""', rules[name])
    ]
    assert bounded.count(True) >= 5
    by_length = dict(zip(reversed(lengths), bounded, strict=True))
    assert by_length[50] and by_length[64] and by_length[100]
    assert not all(bounded)
