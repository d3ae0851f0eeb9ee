"""Formats as engines that do not hold the reply themselves ask others for them."""

import json
from typing import Any

import pytest

from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.openai_http.dialects import DIALECTS, PLAIN, format_fields
from turnmill.workers.engines.vllm.formats import structured_fields

SCHEMA = {"type": "object", "properties": {"b": {"const": 1}, "a": {"title": "A"}}}
AS_SCHEMA = ResponseFormat(type="json_schema", schema_text=json.dumps(SCHEMA), name="x")
OBJECT = ResponseFormat(type="json_object")
CHOICE = ResponseFormat(type="choice", choices=("yes", "no"))


def test_vllm_gets_a_plain_schema() -> None:
    fields = structured_fields(AS_SCHEMA)
    assert [*fields["json"]["properties"]] == ["b", "a"]
    assert fields["json"]["additionalProperties"] is False
    assert structured_fields(OBJECT)["json"]["type"] == "object"
    assert structured_fields(CHOICE) == {"choice": ["yes", "no"]}


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        (
            AS_SCHEMA,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": False},
                }
            },
        ),
        (OBJECT, {"response_format": {"type": "json_object"}}),
        (CHOICE, {"structured_outputs": {"choice": ["yes", "no"]}}),
    ],
)
def test_servers_get_the_schema_as_the_client_sent_it(
    asked: ResponseFormat, fields: dict[str, Any]
) -> None:
    assert format_fields(asked) == fields


def test_only_vllm_among_servers_is_asked_for_a_choice() -> None:
    assert [name for name, dialect in DIALECTS.items() if "choice" in dialect.formats] == ["vllm"]
    assert "choice" not in PLAIN.formats
