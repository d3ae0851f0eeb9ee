"""What a chat completion body may say, and how it is told what is wrong."""

import json
from typing import Any

import pytest

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.openai import ChatCompletionRequest, parse_chat_request
from turnmill.schemas.turns import GenerationParams, Message, Role

PROMPT = "my private prompt"


def parse(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "bot", "messages": [{"role": "user", "content": PROMPT}], **fields}
    return parse_chat_request(json.dumps(body).encode())


def refusal(raw: bytes | None = None, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse_chat_request(raw) if raw is not None else parse(**fields)
    assert PROMPT not in caught.value.message
    return caught.value


def test_a_plain_body_becomes_messages_and_parameters() -> None:
    body = parse(
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        ],
        temperature=0,
        top_p=0.5,
        max_tokens=7,
        stop="END",
        seed=3,
    )
    assert body.turn_messages() == (
        Message(role=Role.SYSTEM, content="Be short."),
        Message(role=Role.USER, content="a\nb"),
    )
    assert body.params() == GenerationParams(
        temperature=0, top_p=0.5, max_tokens=7, stop=("END",), seed=3
    )


def test_what_is_left_out_is_left_to_the_bot() -> None:
    assert parse().params() == GenerationParams()
    assert parse(temperature=None, stop=None, seed=None).params() == GenerationParams()


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).params().max_tokens == 7


def test_a_reply_can_be_sent_back_as_history() -> None:
    reply = {"role": "assistant", "content": "hi", "refusal": None, "annotations": []}
    assert parse(messages=[reply | {"tool_calls": None, "audio": None, "function_call": None}])


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tool_choice": "none"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)
def test_fields_that_change_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields).params() == GenerationParams()


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 2),
        ("n", True),
        ("tools", [{"type": "function"}]),
        ("functions", [{}]),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("logit_bias", {"1": 1}),
        ("presence_penalty", 0.5),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("web_search_options", {}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(param: str, value: Any) -> None:
    error = refusal(**{param: value})
    assert error.param == param
    assert "not supported" in error.message


def test_an_unknown_field_is_refused_as_openai_does() -> None:
    error = refusal(temprature=1)
    assert error.message == "Unrecognized request argument supplied: temprature"
    assert len(refusal(**{"x" * 1000: 1}).message) < 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": PROMPT}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [PROMPT]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y"),
        ({"messages": [{"role": "user", "content": "x" * 400_001}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}] * 513}, "messages"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"seed": 2**70}, "seed"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_only_text_parts_are_supported(kind: str) -> None:
    parts = [{"type": "text", "text": PROMPT}, {"type": kind, kind: {"url": PROMPT}}]
    error = refusal(messages=[{"role": "user", "content": parts}])
    assert error.param == "messages[0].content"
    assert "supported" in error.message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    assert "The body" in refusal(raw).message
