"""Calls of tools: the schemas of their arguments, and whether a call meets its tool's."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.checking import find_fault
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import MAX_FORMAT_BYTES, ResponseFormat

if TYPE_CHECKING:
    from turnmill.schemas.content import ToolCall
    from turnmill.schemas.turns import GenerationParams, Tool

#: Of one tool, with options of `anyOf`: vLLM's llguidance breaks off at some 330 to 500 of them, in
#: the middle of a call, and compiling thousands takes seconds.
MOST_OPTIONAL = 300

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def arguments_format(tool: "Tool") -> ResponseFormat:
    """The format of a tool's arguments, whose schema need not be one that engines keep to."""
    schema = tool.parameters or _NOTHING
    if schema.get("properties") == {} and "additionalProperties" not in schema:
        # To JSON Schema this is any object; whoever writes it means a tool without arguments.
        schema = _NOTHING
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return ResponseFormat(type="json_schema", schema_text=text)


def demanded_tools(params: "GenerationParams") -> tuple["Tool", ...]:
    """The tools of which the reply must call one; none where it need not."""
    match params.tool_choice:
        case None | "auto":
            return ()
        case "required":
            return params.tools
        case name:
            return tuple(tool for tool in params.tools if tool.name == name)


def is_held_to(name: str, params: "GenerationParams") -> bool:
    """Whether a call of this tool is to meet its schema: it is `strict`, or demanded.

    Other tools' schemas are the model's to read, and the client's to check.
    """
    called = {tool.name for tool in demanded_tools(params)}
    return name in called or any(tool.strict for tool in params.tools if tool.name == name)


def check_tools(params: "GenerationParams") -> None:
    """Raise `InvalidInput`, whose `param` is the place, for arguments that cannot be kept to."""
    size = 0
    for number, tool in enumerate(params.tools):
        if is_held_to(tool.name, params):
            size += _check(tool, f"tools[{number}].function.parameters")
    if size > MAX_FORMAT_BYTES:
        raise InvalidInput(
            f"The schemas of 'tools' are larger than {MAX_FORMAT_BYTES // 1024} KiB, more than "
            'calls can be held to. Offer fewer tools, or leave "strict" and "tool_choice" out.',
            param="tools",
        )


def kept_formats(tools: "Sequence[Tool]") -> list[ResponseFormat | None]:
    """The formats of the tools' arguments where no call is demanded; None for a schema that
    replies cannot be held to, that has more than `MOST_OPTIONAL` optional properties, or that is
    too large beside the others: `strict` ones go first, then those that come first.
    """
    formats: list[ResponseFormat | None] = [None] * len(tools)
    size = 0
    for number, tool in sorted(enumerate(tools), key=lambda each: not each[1].strict):
        try:
            added = _check(tool, "parameters")
        except InvalidInput:
            continue
        format = arguments_format(tool)
        plain = plain_schema(format.schema_text or "{}", "parameters", is_strict=bool(tool.strict))
        is_small = _optional_count(plain) <= MOST_OPTIONAL
        if is_small and size + added <= MAX_FORMAT_BYTES:
            size += added
            formats[number] = format
    return formats


def _optional_count(plain: object) -> int:
    """How many properties of a schema, at any depth, may be left out, and how many options it
    has.
    """
    if isinstance(plain, list):
        return sum(map(_optional_count, plain))
    if not isinstance(plain, dict):
        return 0
    properties, options = plain.get("properties"), plain.get("anyOf")
    count = len(options) if isinstance(options, list) else 0
    if isinstance(properties, dict):
        count += len(properties.keys() - set(plain.get("required", ())))
    return count + sum(map(_optional_count, plain.values()))


def _check(tool: "Tool", place: str) -> int:
    """The bytes of the tool's schema."""
    text = arguments_format(tool).schema_text or "{}"
    plain = plain_schema(text, place, is_strict=bool(tool.strict))
    if "$ref" in plain:
        plain = plain["$defs"][plain["$ref"].rpartition("/")[2]]
    if plain.get("type") != "object":
        raise InvalidInput(
            f"'{place}' is not supported: arguments are an object, so its 'type' must be 'object'.",
            param=place,
        )
    return len(text.encode())


def find_call_fault(calls: "Sequence[ToolCall]", params: "GenerationParams") -> str | None:
    """Say why a call does not meet its tool's schema, without repeating it; None: all that are
    held to one do.
    """
    tools = {tool.name: tool for tool in params.tools}
    for call in calls:
        if is_held_to(call.name, params):
            fault = find_fault(arguments_format(tools[call.name]), call.arguments)
            if fault:
                return f"in the arguments of a call of '{call.name}', {fault}"
    return None
