"""A reply that must call a tool: engines that declare it write arguments of the tool's schema."""

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
from turnmill.workers.turn.abort import Abort

#: Of each schema; `make test-formats` asks for more.
REPLIES = int(os.environ.get("FORMAT_REPLIES", "1"))

HOLDING = ("openvino", "transformers", "vllm")

#: Arguments are an object, and those of the other schemas are lists, or may nest without end.
TOOLS = tuple(
    Tool(name=name, description=f"Notes the {name}.", parameters=SCHEMAS[name])
    for name in ("triage", "numbers", "chinese", "union")
)
TIME = Tool(name="time")
RECURSIVE = Tool(name="recursion", parameters=SCHEMAS["recursion"])
TEXT = "Mein Paket ist seit drei Wochen nicht da, Bestellung ORD-1234. Note it with your tools."


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


def ask(engine: Engine, *tools: Tool, seed: int = 0, **more: Any) -> tuple[list[Chunk], Any]:
    """The chunks, and the parameters that they were asked with."""
    params = GenerationParams(
        **{"temperature": 1.0, "max_tokens": 100, "seed": seed, "tools": tools, **more}
    )
    check_tools(params)
    prompt = Prompt((Message(role=Role.USER, content=TEXT),), tools=tools)
    return list(engine.generate(prompt, params.over(DEFAULT_PARAMS), Abort())), params


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
