"""What engines declare, and what turns need."""

import json

import pytest
from pydantic import ValidationError

from turnmill.schemas.capabilities import PLAIN, Capabilities, Need, needs_of
from turnmill.schemas.content import (
    MAX_MESSAGE_CHARS,
    MediaPart,
    TextPart,
    TokenLogprob,
    ToolCall,
)
from turnmill.schemas.turns import GenerationParams, Message, Reply, ResponseFormat, Role, Usage
from turnmill.workers.engines.base import Chunk, Prompt, ToolCallPiece
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.clean import clean
from turnmill.workers.turn.reply import ReplyDraft

PICTURE = MediaPart(type="image", file_id="file_0")


def test_a_later_release_s_declaration_can_be_read() -> None:
    declared = {"continues": True, "formats": ["text", "regex"], "speaks": ["zh"]}
    assert Capabilities.model_validate(declared).formats == {"text", "regex"}
    assert Capabilities.model_validate_json(PLAIN.model_dump_json()) == PLAIN


def test_plain_text_needs_nothing_and_everything_else_is_named_by_its_field() -> None:
    plain = (Message(role=Role.USER, content="hello"), Message(role=Role.ASSISTANT, content=""))
    assert needs_of(plain, GenerationParams(temperature=0, presence_penalty=0)) == ()
    parts = (TextPart(text="what is this?"), PICTURE, PICTURE)
    params = GenerationParams(response_format=ResponseFormat(type="json_object"))
    needs = needs_of((*plain, Message(role=Role.USER, content=parts)), params)
    assert needs == (
        Need("messages[2].content", "accepts", "image"),
        Need("response_format", "formats", "json_object"),
    )
    assert PLAIN.lacks(needs) == needs[0]
    assert Capabilities(accepts=frozenset({"text", "image"})).lacks(needs) == needs[1]


def test_a_plain_message_is_written_as_releases_before_parts_read_it() -> None:
    message = Message(role=Role.USER, content="hello")
    assert message.model_dump_json() == '{"role":"user","content":"hello"}'


def test_a_message_with_parts_survives_the_way_through_json() -> None:
    message = Message(
        role=Role.ASSISTANT,
        content=(TextPart(text="a"), PICTURE),
        tool_calls=(ToolCall(id="1", name="f", arguments="{"),),
    )
    assert Message.model_validate(json.loads(message.model_dump_json())) == message
    assert message.text == "a\n[image]"


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        [],
        [{"type": "text"}],
        [{"type": "image"}],
        [{"type": "image", "url": "data:image/png;base64,AAAA"}],
        [{"type": "image", "url": "https://a.example/", "file_id": "file_1"}],
        [{"type": "text", "text": "x" * MAX_MESSAGE_CHARS}, {"type": "text", "text": "x"}],
        "x" * (MAX_MESSAGE_CHARS + 1),
        "a\0b",
    ],
)
def test_what_is_no_content_is_refused_at_its_field_without_being_repeated(content: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Message.model_validate({"role": "user", "content": content})
    (mistake,) = caught.value.errors()
    assert mistake["loc"] == ("content",)
    assert "AAAA" not in mistake["msg"]


def test_what_is_no_part_is_told_what_a_part_looks_like() -> None:
    with pytest.raises(ValidationError) as caught:
        Message.model_validate({"role": "user", "content": [{"type": "image"}]})
    assert caught.value.errors()[0]["msg"] == (
        "A part looks like {'type': 'text', 'text': '…'} or {'type': 'image', 'url': 'https://…'}"
    )


def test_a_reply_joins_text_calls_and_probabilities_of_its_chunks() -> None:
    tokens = (TokenLogprob(text="b", logprob=-0.5, top=(("b", -0.5),)),)
    last = Chunk("", 1, "tool_calls", prompt_tokens=3, cached_tokens=1)
    draft = ReplyDraft("a", 1)
    for chunk in (
        Chunk("b", 1, logprobs=tokens),
        Chunk(
            "", 1, tool_calls=(ToolCallPiece(0, "id0", "f", '{"x'), ToolCallPiece(1, "id1", "g"))
        ),
        Chunk("", 1, tool_calls=(ToolCallPiece(0, arguments='": 1}'),)),
        last,
    ):
        draft.add(chunk)
    assert draft.reply(last, "tool_calls", 3) == Reply(
        content="ab",
        finish_reason="tool_calls",
        usage=Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=1),
        tool_calls=(
            ToolCall(id="id0", name="f", arguments='{"x": 1}'),
            ToolCall(id="id1", name="g", arguments="{}"),
        ),
        logprobs=tokens,
    )


def test_calls_and_probabilities_are_made_storable_too() -> None:
    piece = ToolCallPiece(0, "\0", "f\ud800", "\0")
    token = TokenLogprob(text="\0", logprob=-1.0, top=(("\0", -1.0),))
    (cleaned,) = clean([Chunk("x", 1, "stop", tool_calls=(piece,), logprobs=(token,))])
    assert "\0" not in repr(cleaned) and "ud800" not in repr(cleaned)
    assert cleaned.tool_calls[0].name == "f\ufffd"


def test_what_an_engine_cannot_read_is_named_in_the_text_that_it_gets() -> None:
    prompt = Prompt((Message(role=Role.USER, content=(TextPart(text="see"), PICTURE)),))
    assert EchoEngine.count_tokens(None, prompt) == 2  # type: ignore[arg-type]
