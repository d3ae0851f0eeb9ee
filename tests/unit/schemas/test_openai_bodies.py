"""What a chat completion body may say, and how it is told what is wrong."""

import json
from typing import Any

import pytest

from turnmill.schemas.capabilities import needs_of
from turnmill.schemas.content import Document, MediaPart, TextPart, ToolCall
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.json_size import has_more_values
from turnmill.schemas.openai import ChatCompletionRequest, parse_chat_request
from turnmill.schemas.openai.history import read_message
from turnmill.schemas.turns import GenerationParams, Message, Role

PROMPT = "my private prompt"
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


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


def test_a_byte_order_mark_before_the_body_is_passed_over() -> None:
    body = {"model": "bot", "messages": [{"role": "user", "content": "x"}]}
    assert parse_chat_request(b"\xef\xbb\xbf" + json.dumps(body).encode()).model == "bot"


def test_what_is_left_out_is_left_to_the_bot() -> None:
    assert parse().params() == GenerationParams()
    assert parse(temperature=None, stop=None, seed=None).params() == GenerationParams()


def test_sampling_parameters_that_are_not_openai_s_are_honoured() -> None:
    params = parse(top_k=40.0, min_p=0.1, repetition_penalty=1.2).params()
    assert (params.top_k, params.min_p, params.repetition_penalty) == (40, 0.1, 1.2)
    neutral = parse(top_k=-1, min_p=0, repetition_penalty=1).params()
    assert neutral.sampling == {}
    # Said and not left out: the bot's own value gives way.
    assert neutral.over(GenerationParams(top_k=5, min_p=0.5)).sampling == {}


@pytest.mark.parametrize(("given", "taken"), [(16.0, 16), (1e3, 1000), (16, 16)])
def test_a_whole_number_may_be_written_with_a_point(given: float, taken: int) -> None:
    body = parse(max_tokens=given, seed=given)
    assert (body.params().max_tokens, body.params().seed) == (taken, taken)
    assert parse(max_completion_tokens=given).params().max_tokens == taken


@pytest.mark.parametrize("seed", [-1, -(2**63), -42.0])
def test_a_negative_seed_is_a_seed_of_its_own(seed: float) -> None:
    first, again, other = (parse(seed=given).params().seed for given in (seed, seed, 1))
    assert first == again != other
    assert first is not None and 0 <= first < 2**63


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, None),
        ({"tools": [], "functions": [{}]}, "functions"),
        ({"functions": [{}], "function_call": "none"}, None),
        ({"tools": None}, None),
    ],
)
def test_tools_that_the_model_must_not_call_are_not_offered(
    fields: dict[str, Any], offered: str | None
) -> None:
    assert parse(**fields).offered_tools == offered


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).params().max_tokens == 7


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REPLY = {"role": "assistant", "content": "hi", "refusal": None, "annotations": []}


def said(**fields: Any) -> tuple[str, tuple[ToolCall, ...]]:
    """What the model is told of an assistant's message with these fields."""
    body = parse(messages=[{"role": "user", "content": "?"}, {"role": "assistant", **fields}])
    message = body.turn_messages()[1]
    assert isinstance(message.content, str)
    return message.content, message.tool_calls


@pytest.mark.parametrize(
    "appended",
    [
        {"tool_calls": None, "audio": None, "function_call": None},  # openai
        {"id": "msg_1", "parsed": {"a": 1}, "tool_calls": []},  # openai's parse()
        {"reasoning_content": "…", "thinking_blocks": [{"type": "thinking"}], "images": []},
        {"provider_specific_fields": {"refusal": None}, "cache_control": {"type": "ephemeral"}},
        {"reasoning": None, "reasoning_details": [{"type": "reasoning.text"}]},  # OpenRouter
        {"prefix": False, "what_comes_next_year": [1]},
        {"audio": {"id": "audio_1"}},
        {"audio": {"id": "audio_1", "transcript": "hi", "data": "AA==", "expires_at": 1}},
    ],
)
def test_a_reply_can_be_sent_back_as_history(appended: dict[str, Any]) -> None:
    assert said(**REPLY | appended) == ("hi", ())
    call = CALL | {
        "index": 0,
        "extra_content": {"google": {"thought_signature": "…"}},  # the AI SDK
        "provider_specific_fields": None,  # LiteLLM
        "function": CALL["function"] | {"parsed_arguments": {}, "strict": None},  # type: ignore[operator]
    }
    calls = (ToolCall(id="call_1", name="f", arguments="{}"),)
    assert said(**REPLY | appended | {"tool_calls": [call]}) == ("hi", calls)
    assert said(**REPLY | {"content": None, "tool_calls": [call | {"type": None}]}) == ("", calls)


def test_what_a_reply_said_otherwise_than_in_its_text_is_told_to_the_model() -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "…"}
    refused = {"type": "refusal", "refusal": "I cannot."}
    text = {"type": "text", "text": "hi", "annotations": []}
    heard = {"id": "audio_1", "transcript": "hi", "data": "AA=="}
    for fields, told in (
        ({}, ""),
        ({"content": None}, ""),
        ({"content": [thought]}, ""),
        ({"content": [thought, text]}, "hi"),
        ({"content": [thought | {"thinking": [text]}, text]}, "hi"),  # Mistral
        ({"content": [{"type": "redacted_thinking", "data": "…"}, text, refused]}, "hi\nI cannot."),
        ({"refusal": "I cannot."}, "I cannot."),
        ({"content": "hi", "refusal": "I cannot."}, "hi\nI cannot."),
        ({"content": None, "audio": heard}, "hi"),
        ({"content": "hi", "audio": heard | {"transcript": "ho"}}, "hi"),
    ):
        assert said(**fields) == (told, ())  # type: ignore[arg-type]
    for wrong in (5, ["hi"], [{"type": "thinking_of_you"}], [{"type": "refusal"}]):
        error = refusal(messages=[{"role": "assistant", "content": wrong}])
        assert error.param == "messages[0].content"


def test_the_text_of_a_reply_is_not_taken_into_parts() -> None:
    """Each call brings the whole history: parts would be made and joined for every message."""
    assert read_message(REPLY)["content"] == REPLY["content"]
    assert read_message(REPLY | {"audio": {"transcript": "ho"}})["content"] == REPLY["content"]


def test_a_call_by_the_older_name_is_a_call_and_its_result_is_one() -> None:
    called = {"name": "f", "arguments": '{"x": 1}'}
    body = parse(
        messages=[
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "function_call": called},
            {"role": "function", "name": "f", "content": "42"},
        ]
    )
    _, asked, told = body.turn_messages()
    [call] = asked.tool_calls
    assert (call.name, call.arguments) == ("f", '{"x": 1}')
    assert (told.role, told.content, told.tool_call_id) == (Role.TOOL, "42", call.id)
    assert said(function_call=called, tool_calls=[CALL])[1][0].id == "call_1"
    for wrong in ("f", {"name": "f"}, {"name": 1, "arguments": "{}"}):
        error = refusal(messages=[{"role": "assistant", "function_call": wrong}])
        assert error.param == "messages[0]"
        assert error.message == (
            "Invalid 'messages[0]': 'function_call' looks like {'name': '…', 'arguments': '…'}."
        )
    assert "name" in refusal(messages=[{"role": "function", "content": "42"}]).message


@pytest.mark.parametrize("name", ["refusal", "audio", "function_call", "parsed"])
def test_what_only_a_model_says_is_refused_of_others(name: str) -> None:
    for role in ("user", "system"):
        error = refusal(messages=[{"role": role, "content": "x", name: "y"}])
        assert error.param == f"messages[0].{name}"
    assert parse(messages=[{"role": "user", "content": "x", "refusal": None, "audio": None}])


def test_a_wrong_call_in_the_history_is_named_by_its_path() -> None:
    for call, path in (
        (CALL | {"id": 1}, ".id"),
        (CALL | {"type": "custom", "custom": {}}, ".type"),
        (CALL | {"function": {"arguments": "{}"}}, ".function.name"),
        (CALL | {"function": {"name": "f", "arguments": {}}}, ".function.arguments"),
    ):
        error = refusal(messages=[REPLY | {"tool_calls": [call]}])
        assert error.param == f"messages[0].tool_calls[0]{path}"


def test_a_user_s_message_may_have_what_clients_add_and_nothing_else() -> None:
    message = {"role": "user", "content": "x"}
    assert parse(messages=[message | {"id": "1", "name": "Ann", "cache_control": {}}])
    assert refusal(messages=[message | {"contnet": "y"}]).param == "messages[0].contnet"


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"n": 1, "logprobs": False, "tools": []},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tool_choice": "none"},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"n": 1.0, "frequency_penalty": 0.0, "logprobs": None, "best_of": 1, "echo": False},
        {"ignore_eos": False, "min_tokens": 0, "length_penalty": 1.0, "skip_special_tokens": True},
        {"chat_template_kwargs": {}, "stop_token_ids": [], "typical_p": 1, "mirostat": 0},
    ],
)
def test_fields_that_change_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields).params() == GenerationParams()


def test_a_format_of_text_takes_back_the_bot_s() -> None:
    bot = GenerationParams(response_format=ResponseFormat(type="json_object"))
    asked = parse(response_format={"type": "text"}).params()
    assert asked.over(bot) == asked.over(GenerationParams()) == GenerationParams()
    assert parse().params().over(bot) == bot
    both = parse(response_format={"type": "text"}, guided_json={}).params().response_format
    assert both is not None and both.type == "json_schema"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 2),
        ("n", True),
        ("tool_choice", {"type": "function"}),
        ("ignore_eos", True),
        ("min_tokens", 5),
        ("stop_token_ids", [2]),
        ("guided_regex", "a+"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("web_search_options", {}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(param: str, value: Any) -> None:
    error = refusal(**{param: value})
    assert error.param == param
    assert "not supported" in error.message


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
@pytest.mark.parametrize("tools", [{}, {"tools": []}, {"tools": None}, {"functions": [SEARCH]}])
def test_no_tool_must_be_called_where_there_is_none(choice: Any, tools: dict[str, Any]) -> None:
    body = parse(tool_choice=choice, **tools)
    with pytest.raises(InvalidInput, match="only allowed when 'tools'") as caught:
        body.params()
    assert caught.value.param == "tool_choice"
    assert parse(tool_choice="auto").params() == GenerationParams()


def test_what_a_turn_says_to_the_chat_template_is_taken_as_it_is() -> None:
    kwargs = {"enable_thinking": False, "budget": 7, "effort": "low", "share": 0.5}
    params = parse(chat_template_kwargs=kwargs).params()
    assert params.template_kwargs == kwargs
    assert params.template_kwargs["enable_thinking"] is False
    stored = json.loads(json.dumps(params.model_dump(mode="json", exclude_none=True)))
    assert GenerationParams.model_validate(stored) == params


@pytest.mark.parametrize(
    "kwargs",
    [
        "enable_thinking",
        {"messages": "x"},
        {"tools": True},
        {"chat_template": "{{ 1 }}"},
        {"add_generation_prompt": False},
        {"a b": 1},
        {"a" * 65: 1},
        {"nested": {"a": 1}},
        {"listed": [1]},
        {"absent": None},
        {"text": "x" * 1001},
        {"text": "a\0b"},
        {"large": 2**63},
        {"large": -1e300},
        {f"name_{number}": 1 for number in range(17)},
    ],
)
def test_what_no_chat_template_is_given_is_refused_by_name(kwargs: Any) -> None:
    error = refusal(chat_template_kwargs=kwargs)
    assert (error.param or "").startswith("chat_template_kwargs")
    assert error.message.count("Invalid") == 1


def test_an_unknown_field_is_refused_as_openai_does() -> None:
    error = refusal(temprature=1)
    assert error.message == "Unrecognized request argument supplied: temprature."
    assert len(refusal(**{"x" * 1000: 1}).message) < 200


def test_the_first_mistakes_are_told_and_the_others_counted() -> None:
    error = refusal(model=3, temperature=9, n=2, seed="x", max_tokens=0)
    assert error.param == "model"
    assert all(f"'{name}'" in error.message for name in ("model", "temperature"))
    assert "There are 2 more mistakes." in error.message
    unknown = refusal(**{f"field_{number}": 1 for number in range(1000)})
    assert "field_0, field_1, field_2 and 997 more" in unknown.message


def _repeated(item: str, size: int = 4 * 1024 * 1024) -> str:
    return ",".join([item] * (size // (len(item) + 1)))


HOSTILE = {
    "unknown fields": ",".join(f'"k{number}":1' for number in range(340_000)),
    "a list of lists": f'"user":[{_repeated("[]")}]',
    "a list of objects": f'"metadata":[{_repeated("{}")}]',
    "a list of numbers": f'"tools":[{_repeated("1")}]',
    "a list of texts": f'"user":[{_repeated(chr(34) * 2)}]',
    "messages": f'"messages":[{_repeated("{}")}]',
    "fields of a message": '"messages":[{"role":"user",'
    + ",".join(f'"k{number}":1' for number in range(340_000))
    + "}]",
    "parts": '"messages":[{"role":"user","content":[' + _repeated('{"type":"text"}') + "]}]",
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_a_body_with_too_many_values_is_refused_before_it_is_parsed(
    fields: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatCompletionRequest, "model_validate_json", None)
    error = refusal(f'{{"model":"bot",{fields}}}'.encode())
    assert "JSON values" in error.message


@pytest.mark.parametrize("text", ["a, [b], {c} " * 30_000, '"' * 300_000, "\\" * 100_001 + '"'])
def test_a_text_counts_as_one_value_whatever_it_says(text: str) -> None:
    assert parse(messages=[{"role": "user", "content": text}]).turn_messages()[0].content == text


def test_values_are_counted_with_their_keys() -> None:
    body = b'{"a": [1, "\\\\", {"b": "\\"[,"}], "c": null}'
    assert not has_more_values(body, 11)
    assert has_more_values(body, 10)


@pytest.mark.parametrize("bad", [b'{"a', b'"', b"\\", b"", b'{"a\\"', b"]]]"])
def test_what_is_not_json_can_be_counted(bad: bytes) -> None:
    assert not has_more_values(bad, 100)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "bot", "content": PROMPT}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": PROMPT}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [PROMPT]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y"),
        ({"messages": [{"role": "user", "content": "x" * 400_001}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}] * 513}, "messages"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": "a\0b"}, "model"),
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


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_parts_are_text_or_what_a_url_or_an_id_names(kind: str) -> None:
    parts = [{"type": "text", "text": PROMPT}, {"type": kind, kind: {"url": PROMPT}}]
    error = refusal(messages=[{"role": "user", "content": parts}])
    assert error.param == "messages[0].content"
    assert "supported" in error.message
    assert PROMPT not in error.message


@pytest.mark.parametrize("part", [PROMPT, {"type": "text"}, {"text": PROMPT}])
def test_what_is_no_part_is_told_what_a_part_looks_like(part: object) -> None:
    error = refusal(messages=[{"role": "user", "content": [part]}])
    assert error.message == (
        "Invalid 'messages[0].content': A part looks like {'type': 'text', 'text': '…'}."
    )


def test_parts_keep_their_order_and_plain_text_stays_plain() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "file_0", "detail": "low"}},
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "text", "text": "this?"},
    ]
    (message,) = parse(messages=[{"role": "user", "content": parts}]).turn_messages()
    assert message.content == (
        TextPart(text="What is"),
        MediaPart(type="image", file_id="file_0"),
        MediaPart(type="file", file_id="file_1"),
        TextPart(text="this?"),
    )
    assert message.text == "What is\n[image]\n[file]\nthis?"
    texts = [parts[0], parts[3]]
    (plain,) = parse(messages=[{"role": "user", "content": texts}]).turn_messages()
    assert plain.model_dump(mode="json") == {"role": "user", "content": "What is\nthis?"}


@pytest.mark.parametrize(
    ("fields", "need"),
    [
        ({"logprobs": True, "top_logprobs": 3}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"logit_bias": {"50": -100}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format",
        ),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "response_format"),
        ({"guided_choice": ["yes", "no"]}, "response_format"),
        ({"guided_json": {}}, "response_format"),
        ({"tools": [SEARCH]}, "tools"),
        ({"tools": [SEARCH], "tool_choice": "required"}, "tools, tool_choice"),
    ],
)
def test_what_not_every_engine_can_do_is_a_need_with_the_field_s_name(
    fields: dict[str, Any], need: str
) -> None:
    body = parse(**fields)
    needs = needs_of(body.turn_messages(), body.params())
    assert ", ".join(each.field for each in needs) == need


@pytest.mark.parametrize(
    "bias", [{"x": 1}, {"5": 101}, {"-1": 1}, {str(n): 1 for n in range(2000)}]
)
def test_a_bias_is_for_a_token_and_within_its_bounds(bias: dict[str, float]) -> None:
    assert (refusal(logit_bias=bias).param or "").startswith("logit_bias")


def test_a_tool_s_call_and_result_are_fields_of_their_messages() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = parse(
        messages=[
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ]
    )
    _, asked, told = body.turn_messages()
    assert asked.tool_calls == (ToolCall(id="call_1", name="f", arguments="{}"),)
    assert (told.role, told.tool_call_id, told.content) == (Role.TOOL, "call_1", "42")
    fields = [need.field for need in needs_of(body.turn_messages(), body.params())]
    assert fields == ["messages[1].tool_calls", "messages[2].role"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ],
)
def test_wrong_values_of_rare_fields_are_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_wrong_tools_are_named_by_their_path_when_they_are_read() -> None:
    body = parse(tools=[{"type": "function", "function": {"name": ""}}])
    with pytest.raises(InvalidInput) as caught:
        body.params()
    assert caught.value.param == "tools[0].function.name"
    assert body.params(offers_tools=False) == GenerationParams()


def test_documents_are_passages_with_a_title_or_without() -> None:
    body = parse(documents=[{"title": "Rates", "text": "4 euros"}, {"text": "5 euros"}])
    assert body.params().documents == (
        Document(title="Rates", text="4 euros"),
        Document(text="5 euros"),
    )
    assert [need.field for need in needs_of(body.turn_messages(), body.params())] == ["documents"]
    assert parse(documents=[]).params() == GenerationParams()
    assert refusal(documents=[{"title": "x"}]).param == "documents[0].text"
    assert refusal(documents=[{"text": "x"}] * 65).param == "documents"


def test_an_empty_list_takes_back_the_bot_s_stop_strings() -> None:
    bot = GenerationParams(stop=("END",), temperature=0.1)
    assert parse().params().over(bot) == bot
    assert parse(stop=None).params().over(bot) == bot
    assert parse(stop=[]).params().over(bot).stop == ()
    assert parse(stop="X").params().over(bot).stop == ("X",)


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
