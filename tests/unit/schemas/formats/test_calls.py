"""Arguments of calls: which schemas are promised to be kept, and which calls keep to them."""

from typing import Any

import pytest

from turnmill.schemas.content import ToolCall
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.calls import check_tools, find_call_fault, kept_formats
from turnmill.schemas.turns import GenerationParams, Tool

NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
ODD = {"type": "object", "properties": {"number": {"not": {"const": 1}}}}


def params(*tools: Tool, **more: Any) -> GenerationParams:
    return GenerationParams(tools=tools, **more)


def fault(called: GenerationParams, arguments: str) -> str | None:
    return find_call_fault([ToolCall(id="a", name="track", arguments=arguments)], called)


@pytest.mark.parametrize(
    ("schema", "more", "place"),
    [
        (ODD, {"tool_choice": "required"}, "tools[0].function.parameters.properties.number.not"),
        (ODD, {"tool_choice": "track"}, "tools[0].function.parameters.properties.number.not"),
        ({"type": "string"}, {"tool_choice": "track"}, "tools[0].function.parameters"),
        ({"anyOf": [NUMBER]}, {"tool_choice": "track"}, None),
        ({"$ref": "#/$defs/N", "$defs": {"N": NUMBER}}, {"tool_choice": "track"}, None),
        ({"$ref": "#/$defs/N", "$defs": {"N": {"enum": [{}]}}}, {"tool_choice": "track"},
         "tools[0].function.parameters"),
        (ODD, {}, None),
        (ODD, {"tool_choice": "other"}, None),
        (None, {"tool_choice": "track"}, None),
    ],
)  # fmt: skip
def test_a_schema_that_calls_cannot_be_held_to_is_refused_where_they_are_to_be(
    schema: Any, more: dict[str, Any], place: str | None
) -> None:
    wanted = params(Tool(name="track", parameters=schema), Tool(name="other"), **more)
    if place is None:
        check_tools(wanted)
        return
    with pytest.raises(InvalidInput) as caught:
        check_tools(wanted)
    assert caught.value.param == place


def test_a_strict_tool_has_a_strict_schema() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_tools(params(Tool(name="track", parameters=NUMBER, strict=True)))
    assert caught.value.param == "tools[0].function.parameters.additionalProperties"
    check_tools(params(Tool(name="track", parameters=NUMBER | {"additionalProperties": False})))


def test_the_schemas_of_a_demanded_call_have_a_size() -> None:
    large = {"type": "object", "properties": {"a": {"enum": ["x" * 9000]}}}
    tools = [Tool(name=f"t{number}", parameters=large) for number in range(8)]
    check_tools(params(*tools))
    with pytest.raises(InvalidInput, match="64 KiB") as caught:
        check_tools(params(*tools, tool_choice="required"))
    assert caught.value.param == "tools"
    check_tools(params(*tools, tool_choice="t3"))


def test_a_call_is_held_to_its_schema_where_the_tool_is_strict_or_demanded() -> None:
    tool = Tool(name="track", parameters=NUMBER)
    assert fault(params(tool, tool_choice="track"), '{"number": 7}') is None
    found = fault(params(tool, tool_choice="required"), '{"number": "SECRET"}')
    assert found is not None and "'number'" in found and "SECRET" not in found
    assert fault(params(tool), '{"number": "seven"}') is None
    strict = tool.model_copy(update={"strict": True})
    assert fault(params(strict), '{"number": "seven"}') is not None


@pytest.mark.parametrize("schema", [None, {}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters_has_no_arguments(schema: Any) -> None:
    wanted = params(Tool(name="track", parameters=schema), tool_choice="required")
    check_tools(wanted)
    assert fault(wanted, "{}") is None
    assert fault(wanted, '{"a": 1}') is not None


def test_calls_that_nobody_demands_are_held_to_what_can_be_kept_of_their_schemas() -> None:
    large = {"type": "object", "properties": {"a": {"enum": ["x" * 40_000]}}}
    schemas = [NUMBER, ODD, {"type": "array"}, large, large, NUMBER]
    formats = kept_formats([Tool(name=f"t{n}", parameters=each) for n, each in enumerate(schemas)])
    # Both large ones together are too much, and the last one still fits.
    assert [format is not None for format in formats] == [True, False, False, True, False, True]


def test_strict_tools_are_held_to_their_schemas_wherever_they_stand() -> None:
    large = {
        "type": "object",
        "properties": {"a": {"enum": ["x" * 40_000]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [
        Tool(name=f"t{number}", parameters=large, strict=is_strict)
        for number, is_strict in enumerate((None, True, False))
    ]
    check_tools(params(*tools))
    assert [format is not None for format in kept_formats(tools)] == [False, True, False]


def test_a_tool_with_hundreds_of_optional_properties_is_held_to_none_of_them() -> None:
    def optional(count: int, **more: Any) -> dict[str, Any]:
        properties = {f"p{number}": {"type": "integer"} for number in range(count)}
        return {"type": "object", "properties": properties, **more}

    nested = {"type": "object", "properties": {"a": optional(200)}, "required": ["a"]}
    options = {"anyOf": [optional(100), optional(100), optional(150)]}
    schemas = [
        optional(300),
        optional(301),
        optional(400, required=[f"p{number}" for number in range(400)]),
        nested,
        {"type": "object", "properties": {"a": options}},
    ]
    tools = [Tool(name=f"t{number}", parameters=each) for number, each in enumerate(schemas)]
    assert [format is not None for format in kept_formats(tools)] == [
        True,
        False,
        True,
        True,
        False,
    ]
