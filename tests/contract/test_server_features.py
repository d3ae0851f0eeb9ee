"""Tools and log-probabilities, as servers that speak OpenAI's chat completions know them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turnmill.schemas.content import ToolCall
from turnmill.schemas.errors import EngineFailure, EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role, Tool
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.reply import ReplyDraft

from .odd_server import DONE, OddServer, chunk, event

pytest.importorskip("httpx")

WEATHER = Tool(name="weather", description="<|im_end|>", parameters={"type": "object"})
USER = Message(role=Role.USER, content="Rain?")

Ask = Callable[..., list[Chunk]]


@pytest.fixture
def ask(odd: OddServer) -> Iterator[Ask]:
    from turnmill.workers.engines.openai_http.engine import OpenAIEngine

    settings = EngineSettings(
        name="openai_http", endpoints=(odd.url,), remote_model="m", context_window=512, silence_s=5
    )
    engine = OpenAIEngine(settings)
    engine.start()
    assert engine.capabilities.tools

    def ask(*messages: Message, **params: Any) -> list[Chunk]:
        tools = (WEATHER, Tool(name="time"))
        wanted = GenerationParams(max_tokens=20, tools=tools, **params).over(DEFAULT_PARAMS)
        prompt = Prompt(messages or (USER,), tools=tools)
        return list(engine.generate(prompt, wanted, Abort()))

    yield ask
    engine.close()


def called(*pieces: Any, reason: str | None = None) -> bytes:
    delta = {"tool_calls": list(pieces)}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def piece(index: int | None = 0, id: str | None = None, **function: Any) -> dict[str, Any]:
    found = {"index": index, "id": id, "type": "function", "function": function}
    return {name: value for name, value in found.items() if value is not None}


#: What servers send to call `weather` for Köln and then `time`.
TWICE = {
    "as OpenAI does": called(piece(0, "a", name="weather", arguments=""))
    + called(piece(0, arguments='{"town": '))
    + called(piece(0, arguments='"Köln"}'))
    + called(piece(1, "b", name="time", arguments="{}"))
    + event(chunk(None, "tool_calls")),
    "each with the index 0": called(
        piece(0, "a", name="weather", arguments='{"town": "Köln"}'),
        piece(0, "b", name="time", arguments="{}"),
        reason="stop",
    ),
    "without an index": called(piece(None, "a", name="weather", arguments='{"town": "Kö'))
    + called(piece(None, arguments='ln"}'))
    + called(piece(None, "b", name="time", arguments="{}"), reason="tool_use"),
    "arguments as objects": called(
        piece(0, "a", name="weather", arguments={"town": "Köln"}),
        piece(1, "b", name="time", arguments={}),
    )
    + event(chunk(None, "stop")),
    "the name and the id every time": called(piece(0, "a", name="weather", arguments='{"town": '))
    + called(piece(0, "a", name="weather", arguments='"Köln"}'))
    + called(piece(1, "b", name="time", arguments="{}"), reason="function_call"),
    "without ids": called(piece(0, name="weather", arguments='{"town": "Köln"}'))
    + called(piece(1, "", name="time", arguments="{}"), reason="tool_calls"),
    "whole, without a stream": event(
        {
            "choices": [
                {
                    "message": {
                        "content": None,
                        "tool_calls": [
                            piece(None, "a", name="weather", arguments='{"town": "Köln"}'),
                            piece(None, "b", name="time", arguments="{}"),
                        ],
                    },
                    "finish_reason": "tool_calls",
                }
            ]
        }
    ),
}


@pytest.mark.parametrize("way", TWICE)
def test_calls_are_read_however_their_server_sends_them(ask: Ask, odd: OddServer, way: str) -> None:
    odd.says = TWICE[way] + DONE
    chunks = ask()
    assert chunks[-1].finish_reason == "tool_calls"
    draft = ReplyDraft("", 0)
    for each in chunks:
        draft.add(each)
    reply = draft.reply(chunks[-1], "tool_calls", 1)
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
        ("weather", {"town": "Köln"}),
        ("time", {}),
    ]
    first, second = (call.id for call in reply.tool_calls)
    assert first and second and first != second
    assert reply.content == ""
    assert reply.usage.completion_tokens > 0


def test_a_reply_that_calls_no_tool_ends_as_it_does_without_any(ask: Ask, odd: OddServer) -> None:
    odd.says = event(chunk("Dry.", "tool_calls")) + DONE
    [*_, last] = ask()
    assert (last.finish_reason, last.tool_calls) == ("stop", ())


def test_a_server_that_never_stops_calling_is_stopped(ask: Ask, odd: OddServer) -> None:
    odd.says = b"".join(called(piece(n, f"c{n}", name="time")) for n in range(200)) + DONE
    with pytest.raises(EngineFailure, match="more than 128"):
        ask()


@pytest.mark.parametrize("pieces", [[5], [{"function": 5}], "x", [{"index": "one", "id": "a"}]])
def test_what_is_no_call_breaks_the_turn_off(ask: Ask, odd: OddServer, pieces: Any) -> None:
    odd.says = event({"choices": [{"index": 0, "delta": {"tool_calls": pieces}}]}) + DONE
    with pytest.raises(EngineUnavailable, match="not a chunk of a reply"):
        ask()


def test_tools_their_calls_and_results_are_sent_as_openai_has_them(
    ask: Ask, odd: OddServer
) -> None:
    call = ToolCall(id="a", name="weather", arguments='{"town": "<|im_start|>"}')
    ask(
        USER,
        Message(role=Role.ASSISTANT, content="", tool_calls=(call,)),
        Message(role=Role.TOOL, content="dry", tool_call_id="a"),
    )
    body = odd.bodies[-1]
    assert [each["function"]["name"] for each in body["tools"]] == ["weather", "time"]
    assert body["tools"][0]["function"]["parameters"] == {"type": "object"}
    _, asked, told = body["messages"]
    assert asked["tool_calls"][0]["id"] == "a"
    assert asked["tool_calls"][0]["type"] == "function"
    assert asked["content"] is None
    assert told == {"role": "tool", "content": "dry", "tool_call_id": "a"}
    assert "<|im_" not in json.dumps(body)
    assert not {"tool_choice", "parallel_tool_calls"} & body.keys()
    ask(tool_choice="required", parallel_tool_calls=False)
    assert odd.bodies[-1]["tool_choice"] == "required"
    assert odd.bodies[-1]["parallel_tool_calls"] is False
    ask(tool_choice="time")
    assert odd.bodies[-1]["tool_choice"] == {"type": "function", "function": {"name": "time"}}


def test_an_operator_whose_server_takes_no_tools_can_say_so(odd: OddServer) -> None:
    from turnmill.workers.engines.openai_http.engine import OpenAIEngine

    settings = EngineSettings(name="openai_http", endpoints=(odd.url,), remote_tools=False)
    assert not OpenAIEngine(settings).capabilities.tools


def told(text: str, *logprobs: Any, reason: str | None = None) -> bytes:
    content = [
        {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}
        for token, logprob, top in logprobs
    ]
    choice = {"delta": {"content": text}, "logprobs": {"content": content}, "finish_reason": reason}
    return event({"choices": [choice]})


def test_log_probabilities_are_asked_for_and_told(ask: Ask, odd: OddServer) -> None:
    likely = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.5}]
    odd.says = told("Yes", ("Yes", -0.1, likely)) + told(".", (".", -0.2, []), reason="stop") + DONE
    chunks = ask(logprobs=2)
    tokens = [token for each in chunks for token in each.logprobs]
    assert [(token.text, token.logprob) for token in tokens] == [("Yes", -0.1), (".", -0.2)]
    assert tokens[0].top == (("Yes", -0.1), ("No", -2.5))
    assert {"logprobs": True, "top_logprobs": 2}.items() <= odd.bodies[-1].items()
    assert not any(each.logprobs for each in ask())
    assert "logprobs" not in odd.bodies[-1]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ([0xE5, 0xA5], "bytes:\\xe5\\xa5"),
        ([], "\ufffd"),
        ([-27, -91], "\ufffd"),
        ([229, None], "\ufffd"),
        ([True], "\ufffd"),
        ("5aU=", "\ufffd"),
        (2, "\ufffd"),
    ],
)
def test_bytes_that_are_none_leave_a_token_its_text(
    ask: Ask, odd: OddServer, raw: object, text: str
) -> None:
    token = {"token": "\ufffd", "logprob": -0.1, "bytes": raw}
    content = [token | {"top_logprobs": [token]}]
    choice = {"delta": {"content": "Yes"}, "logprobs": {"content": content}}
    odd.says = event({"choices": [choice | {"finish_reason": "stop"}]}) + DONE
    [told] = [each for chunk in ask(logprobs=1) for each in chunk.logprobs]
    assert (told.text, told.top) == (text, ((text, -0.1),))


def test_a_server_that_tells_no_log_probabilities_fails_the_turn_that_asks_for_them(
    ask: Ask, odd: OddServer
) -> None:
    odd.says = event(chunk("Yes", "stop")) + DONE
    with pytest.raises(EngineFailure, match="no log-probabilities"):
        ask(logprobs=0)


def test_penalties_are_passed_on_where_they_change_something(ask: Ask, odd: OddServer) -> None:
    odd.says = event(chunk("Yes", "stop")) + DONE
    ask(frequency_penalty=0.5, presence_penalty=-1.0)
    assert {"frequency_penalty": 0.5, "presence_penalty": -1.0}.items() <= odd.bodies[-1].items()
    ask()
    assert not {"frequency_penalty", "presence_penalty"} & odd.bodies[-1].keys()
