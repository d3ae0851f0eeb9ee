"""Formats as engines that do not hold the reply themselves ask others for them."""

import json
from typing import Any

import pytest

from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import GenerationParams, Tool
from turnmill.workers.engines.openai_http.dialects import DIALECTS, PLAIN, format_fields
from turnmill.workers.engines.text.tools import HERMES, OfferedTools
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


def test_vllm_gets_calls_with_the_marks_that_are_tokens_of_its_vocabulary() -> None:
    offered = OfferedTools.of(HERMES, GenerationParams(tools=(Tool(name="time"),)))
    assert offered is not None and offered.held is not None
    spelled = structured_fields(offered.held)["grammar"]
    assert 'trigger[lazy]: TEXT "<tool_call>"' in spelled
    special = {"<tool_call>": 7, "</tool_call>": 8, "<think>": 9}
    named = structured_fields(offered.held, special)["grammar"]
    assert "called: text <[7]> calls" in named
    assert 'calls: first "\\n" <[8]>' in named
    assert "<[8,9]>" in named  # in text


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
