"""The columns that replies of a schema become: `reply.language`, `reply.urgency`, …"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from turnmill.schemas.batches import BatchResult, ResultError
from turnmill.schemas.content import storable
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.files import read_schema
from turnmill.schemas.formats.plain import Schema, read_json
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import TurnState

#: `json`: lists, objects, and values of several kinds.
Kind = Literal["text", "integer", "number", "boolean", "json"]

_KINDS: dict[str, Kind] = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}

PREFIX = "reply."


@dataclass(frozen=True)
class Shape:
    """A schema whose objects are rows."""

    schema_text: str

    @cached_property
    def columns(self) -> Mapping[str, Kind]:
        """The kind of each property, in the order of the schema."""
        whole = plain_schema(self.schema_text)
        root = _followed(whole, whole)
        return {name: _kind(each, whole) for name, each in root["properties"].items()}

    @property
    def format(self) -> ResponseFormat:
        return ResponseFormat(type="json_schema", schema_text=self.schema_text)

    @property
    def titles(self) -> list[str]:
        return [PREFIX + name for name in self.columns]

    def describe(self) -> str:
        """`reply.language (text), reply.urgency (integer)`."""
        return ", ".join(f"{PREFIX}{name} ({kind})" for name, kind in self.columns.items())

    def read(self, result: BatchResult) -> tuple[BatchResult, dict[str, object]]:
        """The result, and the values of its reply by title; none, with the reason, if it is cut."""
        nothing: dict[str, object] = dict.fromkeys(self.titles)
        if result.reply is None or result.state is not TurnState.COMPLETED:
            return result, nothing
        try:
            value = read_json(result.reply)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            message = "The reply was cut by its limit. Allow more tokens: --max-tokens."
            error = ResultError(code="format_error", message=message)
            return result.model_copy(update={"error": error}), nothing
        if "\\u" in result.reply:
            # JSON can escape halves of characters, which no file can hold.
            value = read_json(storable(json.dumps(value, ensure_ascii=False)))
        values = {
            PREFIX + name: _typed(value.get(name), kind) for name, kind in self.columns.items()
        }
        if large := [title for title, each in values.items() if each is _TOO_LARGE]:
            message = f"A number is larger than a column can hold: {', '.join(large)}."
            error = ResultError(code="format_error", message=message)
            result = result.model_copy(update={"error": error})
            values |= dict.fromkeys(large)
        return result, values


def read_shape(path: Path) -> Shape:
    """Read a schema's file.

    Raises:
        InvalidInput: there is none, it is no schema that is accepted, or its values are no objects
            with named properties.
    """
    text = read_schema(path)
    whole = plain_schema(text)
    if not _followed(whole, whole).get("properties"):
        raise InvalidInput(
            f"'{path.name}' describes no object with 'properties', which become columns."
        )
    return Shape(text)


def _followed(plain: Schema, whole: Schema) -> Schema:
    """What a reference leads to."""
    while "$ref" in plain:
        plain = whole["$defs"][plain["$ref"].rpartition("/")[2]]
    return plain


def _kind(plain: Schema, whole: Schema) -> Kind:
    """What all values of a property are, `null` aside."""
    plain = _followed(plain, whole)
    if "anyOf" in plain:
        kinds = {_kind(each, whole) for each in plain["anyOf"] if each != {"type": "null"}}
    elif "enum" in plain:
        kinds = {_kind_of(value) for value in plain["enum"] if value is not None}
    else:
        kinds = {_KINDS.get(plain.get("type", ""), "json")}
    if kinds == {"integer", "number"}:
        return "number"
    return kinds.pop() if len(kinds) == 1 else "json"


def _kind_of(value: object) -> Kind:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "text"
    return "json"


_TOO_LARGE = object()


def _typed(value: object, kind: Kind) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if kind == "integer":
        whole = int(value)  # JSON Schema's 2.0 is an integer
        return whole if -(2**63) <= whole < 2**63 else _TOO_LARGE
    if kind == "number":
        try:
            return float(value)
        except OverflowError:
            return _TOO_LARGE
    return value
