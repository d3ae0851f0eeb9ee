"""How wide a schema is, and that a turn with a wide one needs an engine for it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from turnmill.schemas.capabilities import Capabilities, needs_of
from turnmill.schemas.formats import width as width_module
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.width import MOST_NEXT, width_of
from turnmill.schemas.turns import GenerationParams, Tool

#: All that is more than an engine takes counts the same.
MORE = MOST_NEXT + 1


def optional(count: int, name: str = "p", **more: Any) -> dict[str, Any]:
    properties = {f"{name}{number}": {"type": "integer"} for number in range(count)}
    return {"type": "object", "properties": properties, **more}


def within(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


#: As a chain of objects, each with a few optional properties and the next one.
DEEP = {
    "type": "object",
    "properties": {f"o{number}": optional(100) for number in range(5)},
    "required": [f"o{number}" for number in range(5)],
}
RECURSIVE = {
    "$defs": {"a": {"anyOf": [optional(200), optional(150, "q"), {"$ref": "#/$defs/b"}]},
              "b": {"type": "array", "items": {"$ref": "#/$defs/a"}}},
    "$ref": "#/$defs/a",
}  # fmt: skip
#: Many options, and each of them the same few.
SHARED = {
    "$defs": {"a": optional(40)},
    "type": "array",
    "items": {"anyOf": [{"$ref": "#/$defs/a"}] * 8},
}


@pytest.mark.parametrize(
    ("schema", "width"),
    [
        (optional(300), 300),
        (optional(400), MORE),
        (within(optional(400)), MORE),
        (optional(400, required=[f"p{number}" for number in range(390)]), 10),
        (DEEP, 100),
        (within({"anyOf": [optional(200), optional(150, "q"), {"type": "string"}]}), MORE),
        (within({"anyOf": [optional(200), optional(50, "q"), {"type": "string"}]}), 251),
        (RECURSIVE, MORE),
        (optional(20), 20),
        ({"type": "object", "properties": {chr(0x4E00 + each): {} for each in range(320)}}, MORE),
        (SHARED, MORE),
        ({"enum": [optional(400)]}, 1),
        ({"type": "object", "not": {"enum": ["x" * 4000]}}, 0),
    ],
)
def test_what_may_come_next_at_once_is_counted(schema: dict[str, Any], width: int) -> None:
    assert width_of(json.dumps(schema)) == width


def doubling(levels: int) -> dict[str, Any]:
    """Each definition has the next one twice, and is also a short value."""
    defs: dict[str, Any] = {
        f"a{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2 + [{"type": "null"}]}
        for level in range(levels)
    }
    return {"$defs": defs | {f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(("levels", "width"), [(7, 255), (40, MORE), (190, MORE)])
def test_what_is_referred_to_often_is_counted_once(
    levels: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, count = [0], width_module._next_count

    def counting(plain: object, known: Mapping[str, int]) -> int:
        counted[0] += 1
        assert counted[0] < 20 * levels, "more work than the schema is large"
        return count(plain, known)

    monkeypatch.setattr(width_module, "_next_count", counting)
    width_of.cache_clear()
    assert width_of(json.dumps(doubling(levels))) == width


def test_a_wide_schema_needs_an_engine_for_it_and_the_tool_is_named() -> None:
    narrow = Tool(name="narrow", parameters=optional(MOST_NEXT))
    wide = Tool(name="wide", parameters=optional(MOST_NEXT + 1))
    vllm = Capabilities(
        tools=True, tool_choice=True, formats=frozenset({"json_schema"}), wide_formats=False
    )
    text = json.dumps(wide.parameters)
    schema = GenerationParams(response_format=ResponseFormat(type="json_schema", schema_text=text))
    demanded = GenerationParams(tools=(narrow, wide), tool_choice="required")
    for params, place in ((schema, "response_format"), (demanded, "tools[1].function.parameters")):
        lacking = vllm.lacks(needs_of((), params))
        assert lacking is not None and lacking.field == place
        assert f"more than {MOST_NEXT}" in lacking.title
        assert Capabilities.model_validate(vllm.model_dump(exclude={"wide_formats"})).lacks(
            needs_of((), params)
        ) is None  # fmt: skip
    assert "'wide'" in lacking.title
    for choice in (None, "narrow"):
        params = GenerationParams(tools=(narrow, wide), tool_choice=choice)
        assert vllm.lacks(needs_of((), params)) is None
