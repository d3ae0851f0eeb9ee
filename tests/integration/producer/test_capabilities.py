"""Turns that need more than text: what is refused, who answers, and what is kept."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.media.making import photographed
from turnmill.producer.accept import accept
from turnmill.producer.tenants import save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.content import Document, MediaPart, TextPart, TokenLogprob, ToolCall
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.files.opening import open_parts
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Message, Role, Tool, TurnState
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.engines.base import Chunk, Prompt, ToolCallPiece
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.answer import answer_turn

SEARCH = GenerationParams(tools=(Tool(name="search"),), logprobs=1)


class Able(EchoEngine):
    """Calls the tool that it is offered, and sees pictures."""

    declared = Capabilities(
        continues=True, accepts=frozenset({"text", "image"}), tools=True, logprobs=True
    )

    def __init__(self) -> None:
        super().__init__(EngineSettings())
        self.prompts: list[Prompt] = []

    @property
    def capabilities(self) -> Capabilities:
        return self.declared

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.prompts.append(prompt)
        if not params.tools:
            yield from super().generate(prompt, params, abort)
            return
        token = TokenLogprob(text="x", logprob=-0.5, top=(("y", -1.0),))
        yield Chunk("", 1, tool_calls=(ToolCallPiece(0, "call_1", params.tools[0].name, "{"),))
        last = ToolCallPiece(0, arguments="}")
        yield Chunk("", 1, "tool_calls", 3, tool_calls=(last,), logprobs=(token,))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> Able:
    engine = Able()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine


def picture(system: Any) -> MediaPart:
    """A part with an image of the tenant."""
    parts = open_parts(system.database, system.settings)
    kept = parts.keep(system.tenant_id, "image", photographed("Order 4711"))
    assert isinstance(kept, MediaPart)
    return kept


def seen(system: Any) -> Any:
    request = system.request("what is this?")
    message = Message(role=Role.USER, content=(TextPart(text="what is this?"), picture(system)))
    return request.model_copy(update={"messages": (message,)})


def test_what_no_live_worker_can_do_is_refused_by_its_field_and_plain_text_is_not(
    system: Any,
) -> None:
    with InlineWorker(system.settings):
        for request, field in (
            (seen(system), "messages[0].content"),
            (system.request("x", params=GenerationParams(presence_penalty=1)), "presence_penalty"),
            (system.request("x", params=GenerationParams(logprobs=1)), "logprobs"),
        ):
            with pytest.raises(InvalidInput, match="no live worker of the model") as caught:
                accept(system.database, request)
            assert caught.value.param == field
        accept(system.database, system.request("hello"))
        system.wait_until_settled()
    assert system.count("true") == 1


def test_a_tool_that_is_too_wide_for_all_live_workers_is_refused_by_its_name(
    system: Any, able: Able, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = {f"p{number}": {"type": "integer"} for number in range(301)}
    tool = Tool(name="book", parameters={"type": "object", "properties": properties})
    request = system.request("x", params=GenerationParams(tools=(tool,), tool_choice="book"))
    can = Capabilities(tools=True, tool_choice=True)
    monkeypatch.setattr(Able, "declared", can.model_copy(update={"wide_formats": False}))
    with running_worker(system.settings):
        with pytest.raises(InvalidInput, match=r"'book' more than 300 .* the most that") as caught:
            accept(system.database, request)
        assert caught.value.param == "tools[0].function.parameters"
    monkeypatch.setattr(Able, "declared", can)
    with running_worker(system.settings):
        assert accept(system.database, request)


def test_a_worker_publishes_what_its_engine_declares_and_others_know_it_after_it_died(
    system: Any, able: Able
) -> None:
    with pytest.raises(InvalidInput):
        accept(system.database, seen(system))
    with running_worker(system.settings):
        (row,) = system.database.run("SELECT capabilities FROM worker_liveness")
        declared = Capabilities.model_validate(row.capabilities)
        assert declared == able.declared.model_copy(update={"documents": True})
        assert accept(system.database, seen(system))
    # Being restarted is no reason to refuse.
    assert accept(system.database, seen(system))


def test_a_worker_of_a_release_that_declares_nothing_answers_text(system: Any) -> None:
    with running_worker(system.settings):
        system.database.run("UPDATE worker_liveness SET capabilities = NULL")
        assert accept(system.database, system.request("hello"))
        with pytest.raises(InvalidInput):
            accept(system.database, seen(system))


def test_a_call_of_a_tool_is_kept_with_the_reply_and_told_in_the_next_prompt(
    system: Any, able: Able
) -> None:
    with InlineWorker(system.settings):
        first = accept(system.database, system.request("where is it?", params=SEARCH))
        system.wait_until_settled()
        result = Message(role=Role.TOOL, content="in Bremen", tool_call_id="call_1")
        request = system.request("", conversation_id=first.conversation_id)
        accept(system.database, request.model_copy(update={"messages": (result,)}))
        system.wait_until_settled()
    reply = read_turn(system.database, system.tenant_id, first.turn_id).reply
    assert reply is not None
    assert (reply.content, reply.finish_reason) == ("", "tool_calls")
    assert reply.tool_calls == (ToolCall(id="call_1", name="search", arguments="{}"),)
    assert reply.logprobs[0].top == (("y", -1.0),)
    _, asked, told = able.prompts[-1].messages
    assert asked.tool_calls == reply.tool_calls
    assert told == result


def test_parts_reach_the_engine_in_their_order(system: Any, able: Able) -> None:
    with InlineWorker(system.settings):
        turn = accept(system.database, seen(system))
        system.wait_until_settled()
    text, image = able.prompts[-1].messages[-1].content
    assert text == TextPart(text="what is this?")
    assert isinstance(image, MediaPart) and str(image.url).startswith("data:image/png;base64,")
    kept = read_turn(system.database, system.tenant_id, turn.turn_id)
    assert kept.messages[-1].content == (TextPart(text="what is this?"), picture(system))
    assert kept.state is TurnState.COMPLETED


def test_a_worker_that_cannot_hands_the_turn_back_unharmed(
    system: Any, able: Able, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_worker(system.settings):
        turn = accept(system.database, seen(system))
    monkeypatch.setattr(
        "turnmill.workers.consumer.process.create_engine", lambda _: EchoEngine(EngineSettings())
    )
    with running_worker(system.settings) as (worker, _):
        assert answer_turn(worker, turn.turn_id)
        assert system.count("state = 'queued' AND failures = 0") == 1
        (attempt,) = system.database.run("SELECT outcome, error FROM attempts")
        assert (attempt.outcome, "accepts: image" in attempt.error) == ("handed_back", True)


def test_a_bot_s_stop_strings_are_taken_back_by_an_empty_list(system: Any) -> None:
    bot = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(stop=("b",)))
    with InlineWorker(system.settings):
        turns = [
            accept(system.database, system.request("a b c", params=params))
            for params in (GenerationParams(), GenerationParams(stop=()))
        ]
        system.wait_until_settled()
    replies = [read_turn(system.database, system.tenant_id, turn.turn_id).reply for turn in turns]
    assert [reply.content for reply in replies if reply] == ["a ", "a b c"]


def test_a_plain_turn_is_stored_as_older_workers_read_it(system: Any) -> None:
    accept(system.database, system.request("hello"))
    (row,) = system.database.run("SELECT input, params FROM turns")
    assert row.input == [{"role": "user", "content": "hello"}]
    assert not {"tools", "logprobs", "response_format"} & row.params.keys(), json.dumps(row.params)


def test_documents_are_read_with_their_turn_and_are_no_history(system: Any, able: Able) -> None:
    passage = GenerationParams(documents=(Document(title="Rates", text="A parcel costs 4 euros."),))
    with InlineWorker(system.settings):
        first = accept(system.database, system.request("How much?", params=passage))
        system.wait_until_settled()
        accept(system.database, system.request("Thanks.", conversation_id=first.conversation_id))
        system.wait_until_settled()
    before, after = able.prompts
    assert "A parcel costs 4 euros." in before.messages[-1].text
    assert before.messages[-1].text.endswith("How much?")
    assert after.messages[0].text == "How much?"
    assert "euros" not in str([m.text for m in after.messages if m.role is not Role.ASSISTANT])
    kept = read_turn(system.database, system.tenant_id, first.turn_id)
    assert kept.messages[0].text == "How much?"


def test_documents_are_refused_while_only_workers_live_that_would_ignore_them(system: Any) -> None:
    passage = GenerationParams(documents=(Document(text="x"),))
    with running_worker(system.settings):
        assert accept(system.database, system.request("a", params=passage))
        system.database.run("UPDATE worker_liveness SET capabilities = NULL")
        with pytest.raises(InvalidInput) as caught:
            accept(system.database, system.request("a", params=passage))
    assert caught.value.param == "documents"
