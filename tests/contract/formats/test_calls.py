"""Calls of tools, demanded or not: engines that declare it write arguments of the tool's schema."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.formats import QWEN, SCHEMAS
from turnmill.schemas.content import ToolCall
from turnmill.schemas.formats.calls import check_tools, find_call_fault
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role, Tool
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.local.batching import BatchingEngine
from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.engines.text.tools import ToolFormat
from turnmill.workers.turn.abort import Abort

#: Of each schema; `make test-formats` asks for more.
REPLIES = int(os.environ.get("FORMAT_REPLIES", "1"))

HOLDING = ("openvino", "transformers", "vllm")

#: Arguments are an object, and those of the other schemas are lists, or may nest without end.
TOOLS = tuple(
    Tool(name=name, description=f"Notes the {name}.", parameters=SCHEMAS[name])
    for name in ("triage", "numbers", "chinese", "union")
)
TRACK = Tool(
    name="track",
    description="Tracks an order.",
    parameters={
        "type": "object",
        "properties": {
            "order": {"type": "integer", "maximum": 99999},
            "unit": {"enum": ["days", "hours"]},
        },
        "required": ["order", "unit"],
        "additionalProperties": False,
    },
)
TIME = Tool(name="time")
RECURSIVE = Tool(name="recursion", parameters=SCHEMAS["recursion"])
TEXT = "Mein Paket ist seit drei Wochen nicht da, Bestellung ORD-1234. Note it with your tools."


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


@pytest.fixture
def calling(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine with the chat template of a model that calls tools."""
    assert isinstance(engine, BatchingEngine)
    model = engine._loaded()
    template = ChatTemplate(QWEN, control_tokens=model.text.template.control_tokens)
    text = replace(model.text, template=template)
    monkeypatch.setattr(engine, "_model", replace(model, text=text))
    return engine


pytestmark = pytest.mark.parametrize(
    "make_engine",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in HOLDING],
    indirect=True,
    scope="session",
)


def ask(
    engine: Engine, *tools: Tool, seed: int = 0, said: Any = (user(TEXT),), **more: Any
) -> tuple[list[Chunk], Any]:
    """The chunks, and the parameters that they were asked with."""
    params = GenerationParams(
        **{"temperature": 1.0, "max_tokens": 100, "seed": seed, "tools": tools, **more}
    )
    check_tools(params)
    prompt = Prompt(tuple(said), tools=tools)
    return list(engine.generate(prompt, params.over(DEFAULT_PARAMS), Abort())), params


def called_before(*orders: int, count: int = 1) -> list[Message]:
    """Questions that were answered by so many calls, and one that is open: even a small model
    writes calls like those before, which do not meet the schema of `TRACK`.
    """
    said = []
    for order in orders:
        numbers = [order + number for number in range(count)]
        said.append(user(f"Where is order {' and '.join(map(str, numbers))}?"))
        calls = tuple(
            ToolCall(id=f"{n:09}", name="track", arguments=f'{{"order": "{n}", "when": "days"}}')
            for n in numbers
        )
        said.append(Message(role=Role.ASSISTANT, content="", tool_calls=calls))
    return said[:-1]


def calls_of(chunks: list[Chunk]) -> list[ToolCall]:
    return [
        ToolCall(id=each.id, name=each.name, arguments=each.arguments)
        for each in chunks[-1].tool_calls
    ]


def test_it_is_declared(calling: Engine) -> None:
    assert calling.capabilities.tools
    assert calling.capabilities.tool_choice


def test_a_demanded_call_meets_its_schema_every_time(calling: Engine) -> None:
    wanted = [(tool, seed) for tool in TOOLS for seed in range(REPLIES)]

    def one(each: tuple[Tool, int]) -> tuple[list[Chunk], Any]:
        return ask(calling, each[0], TIME, seed=each[1], tool_choice=each[0].name)

    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(one, wanted)]
    whole = 0
    for (tool, _), (chunks, params) in zip(wanted, replies, strict=True):
        assert all(not chunk.text for chunk in chunks)
        if chunks[-1].finish_reason == "length":  # a small model may write a long word
            assert chunks[-1].tool_calls == ()
            continue
        whole += 1
        assert chunks[-1].finish_reason == "tool_calls"
        [call] = calls_of(chunks)
        assert call.name == tool.name
        assert find_call_fault([call], params) is None, call
    assert whole >= 0.7 * len(wanted)


def test_a_call_of_any_tool_is_of_one_that_is_offered(calling: Engine) -> None:
    def one(seed: int) -> tuple[list[Chunk], Any]:
        more = {"parallel_tool_calls": False} if seed % 2 else {}
        return ask(calling, TOOLS[0], TIME, seed=seed, tool_choice="required", **more)

    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(one, range(4 * REPLIES))]
    assert sum(bool(chunks[-1].tool_calls) for chunks, _ in replies) >= len(replies) // 2
    for seed, (chunks, params) in enumerate(replies):
        calls = calls_of(chunks)
        assert {call.name for call in calls} <= {"triage", "time"}
        assert find_call_fault(calls, params) is None
        assert "".join(chunk.text for chunk in chunks) == ""
        if seed % 2:
            assert len(calls) <= 1


def test_definitions_of_several_tools_do_not_get_mixed_up(calling: Engine) -> None:
    names = ("x", "y")
    tools = [
        Tool(
            name=name,
            parameters={
                "$defs": {"Kind": {"enum": [f"{name}1", f"{name}2"]}},
                "type": "object",
                "properties": {"kind": {"$ref": "#/$defs/Kind"}},
                "required": ["kind"],
            },
        )
        for name in names
    ]
    for name in names:
        chunks, _ = ask(calling, *tools, RECURSIVE, tool_choice=name)
        [call] = calls_of(chunks)
        assert json.loads(call.arguments)["kind"].startswith(name)
    chunks, params = ask(calling, *tools, RECURSIVE, tool_choice="required", max_tokens=60)
    assert find_call_fault(calls_of(chunks), params) is None


def test_neighbours_of_a_call_are_not_held_to_it(calling: Engine) -> None:
    prompt = Prompt((Message(role=Role.USER, content="What is the capital of France?"),))
    greedy = GenerationParams(temperature=0, max_tokens=12).over(DEFAULT_PARAMS)

    def plain(_: int) -> str:
        return "".join(chunk.text for chunk in calling.generate(prompt, greedy, Abort()))

    alone = plain(0)
    with ThreadPoolExecutor(6) as pool:
        called = [pool.submit(ask, calling, TOOLS[0], tool_choice="triage") for _ in range(2)]
        beside = [*pool.map(plain, range(3))]
        for each in called:
            each.result()
    assert beside == [alone] * 3


def test_the_beginning_that_is_given_is_not_generated(calling: Engine) -> None:
    chunks, _ = ask(calling, TIME, tool_choice="time")
    assert [(call.name, call.arguments) for call in calls_of(chunks)] == [("time", "{}")]
    assert sum(chunk.token_count for chunk in chunks) <= 8


def meets(tool: Tool, call: ToolCall) -> bool:
    strictly = GenerationParams(tools=(tool,), tool_choice=tool.name)
    return call.name == tool.name and find_call_fault([call], strictly) is None


def test_a_call_that_the_model_makes_of_its_own_accord_meets_its_schema(
    calling: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = called_before(4711, 4722, 4733, 4799)
    chunks, _ = ask(calling, TRACK, said=said, temperature=0)
    assert chunks[-1].finish_reason == "tool_calls"
    [call] = calls_of(chunks)
    assert meets(TRACK, call), call
    assert json.loads(call.arguments)["order"] == 4799

    # As it was trained it would have written something else.
    monkeypatch.setattr(ToolFormat, "triggered", lambda *_, **__: None)
    [parsed] = calls_of(ask(calling, TRACK, said=said, temperature=0)[0])
    assert not meets(TRACK, parsed)


@pytest.mark.parametrize("is_parallel", [True, False])
def test_a_reply_of_its_own_accord_has_several_calls_where_it_may(
    calling: Engine, is_parallel: bool
) -> None:
    said = called_before(4711, 4799, count=2)
    more = {} if is_parallel else {"parallel_tool_calls": False}
    chunks, _ = ask(calling, TRACK, said=said, temperature=0, **more)
    calls = calls_of(chunks)
    assert len(calls) == (2 if is_parallel else 1)
    assert all(meets(TRACK, call) for call in calls)
    # Nothing is written behind the one call that may be made.
    assert is_parallel or sum(chunk.token_count for chunk in chunks) < 50


def test_text_is_what_it_would_be_without_a_grammar(
    calling: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts() -> list[str]:
        wanted: list[dict[str, Any]] = [{"temperature": 0}, {"seed": 5}]
        said = [user("What is the capital of France?")]
        return [
            "".join(
                chunk.text for chunk in ask(calling, TRACK, said=said, max_tokens=16, **more)[0]
            )
            for more in wanted
        ]

    with_grammar = texts()
    assert all(text.strip() for text in with_grammar)
    monkeypatch.setattr(ToolFormat, "triggered", lambda *_, **__: None)
    assert texts() == with_grammar


def test_arguments_whose_schema_nobody_enforces_are_what_the_model_writes(calling: Engine) -> None:
    odd = TRACK.model_copy(update={"parameters": {"type": "object", "minProperties": 1}})
    said = called_before(4711, 4722, 4733, 4799)
    [call] = calls_of(ask(calling, odd, TIME, said=said, temperature=0)[0])
    assert (call.name, json.loads(call.arguments)["order"]) == ("track", "4799")
