"""JSON Schemas whose members keep their order.

The order of a schema's properties tells a model what to write first. PostgreSQL's `jsonb` sorts the
keys of an object (https://www.postgresql.org/docs/current/datatype-json.html), so a schema within
one is kept as text.
"""

import json
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer


def _read(value: object) -> object:
    """An object, or the text of one."""
    return json.loads(value) if isinstance(value, str) else value


def _write(value: dict[str, object] | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


#: A JSON Schema. As JSON it is a text; both the text and the object are read.
OrderedSchema = Annotated[
    dict[str, object],
    BeforeValidator(_read, json_schema_input_type=dict[str, object]),
    PlainSerializer(_write, return_type=str, when_used="json"),
]
