"""Schemas at random: what accept takes has a value, and llguidance compiles it."""

import json
from contextlib import suppress
from typing import Any

import pytest

from tests.formats import schemas_at_random
from tests.requirements import require_installed
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.checking import check_format, find_fault
from turnmill.schemas.formats.reading import plain_schema
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.values import shortest_reply

pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
for package in ("hypothesis", "jsonschema", "llguidance"):
    require_installed(package, "dev")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

slowly = settings(
    deadline=None, max_examples=120, derandomize=True, suppress_health_check=[*HealthCheck]
)


def format_of(schema: Any) -> ResponseFormat:
    return ResponseFormat(type="json_schema", schema_text=json.dumps(schema))


@slowly
@given(schemas_at_random())
def test_what_accept_takes_has_a_valid_value_and_compiles(schema: Any) -> None:
    from llguidance import LLMatcher, LLTokenizer

    from turnmill.workers.engines.openvino.grammars import grammar_of as ebnf_of
    from turnmill.workers.engines.torch.grammars import grammar_of

    wanted = format_of(schema)
    try:
        check_format(wanted)
    except InvalidInput as error:
        assert error.param is not None and error.param.startswith("response_format")
        return
    reply = shortest_reply(wanted)
    fault = find_fault(wanted, reply)
    # No value is looked for that only one option of `oneOf`, or a length beside a pattern, allows.
    is_hard = "oneOf" in json.dumps(schema) or '"minLength"' in json.dumps(schema)
    assert fault is None or is_hard or "maxLength" in json.dumps(schema), (schema, reply)
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar_of(wanted), log_level=0)
    assert matcher.get_error() == "", schema
    if fault is None:
        assert matcher.consume_tokens(tokenizer.tokenize_str(reply)), (schema, reply)
        assert matcher.is_accepting()
    assert ebnf_of(wanted).startswith("root ::= ")


#: What schemas never are, beside words that they have.
_WORDS = ["type", "properties", "$ref", "items", "pattern", "anyOf", "required", "enum", "$defs"]
_NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(_WORDS), inner),
)


@slowly
@given(_NONSENSE)
def test_nonsense_is_refused_as_input(schema: Any) -> None:
    with suppress(InvalidInput):
        plain_schema(json.dumps(schema))
