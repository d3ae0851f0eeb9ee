"""Calls of tools that a reply must make, from the client's call to the arguments that it reads."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.formats import QWEN
from tests.requirements import require_installed
from turnmill.producer.accept import accept
from turnmill.producer.turns import read_turn
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Tool, Turn
from turnmill.workers.engines.base import Chunk, Prompt, ToolCallPiece
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.testing import InlineWorker

Eventually = Callable[..., None]

require_installed("jsonschema", "dev")


class Note(BaseModel):
    """Notes what a customer wants."""

    topic: Literal["delivery", "payment"]
    #: Long, so that there is a middle.
    digits: list[Literal[1, 2, 3]] = Field(min_length=150, max_length=150)


NOTE = openai.pydantic_function_tool(Note)
TOOL = Tool(
    name="note",
    parameters={
        "type": "object",
        "properties": {"urgency": {"type": "integer", "multipleOf": 5}},
        "required": ["urgency"],
    },
)


class Scripted(EchoEngine):
    """Calls a tool, `note`, with these arguments, one after the other; None: it does not."""

    def __init__(
        self, *arguments: str | None, can: Capabilities | None = None, tool: str = "note"
    ) -> None:
        super().__init__(EngineSettings())
        self._arguments = iter(arguments)
        self._tool = tool
        self._can = can or super().capabilities
        self.prompts: list[Prompt] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._can

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.prompts.append(prompt)
        arguments = next(self._arguments)
        if arguments is None:
            yield Chunk("Certainly!", 1)
            yield Chunk("", 0, "stop", 3)
        else:
            call = ToolCallPiece(0, f"call_{len(self.prompts)}", self._tool, arguments)
            yield Chunk("", 1, "tool_calls", 3, tool_calls=(call,))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    return make_system(database_url, valkey_url)


@pytest.fixture
def client(system: Any) -> openai.OpenAI:
    system.start("relay")
    return system.start_api()


@pytest.fixture
def calling_tokenizer(tmp_path: Path, tiny_llama_maker: Any, tiny_tokenizer: Any) -> Any:
    """Of a real model in this folder, whose chat template knows tools, and which has the marks of
    calls as tokens.
    """
    pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    model = tiny_llama_maker()
    model.resize_token_embeddings(len(tokenizer))
    model.config.max_position_embeddings = 4096  # its tokens are bytes
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(QWEN)
    return tokenizer


@pytest.fixture
def start_calling(
    system: Any, tmp_path: Path, calling_tokenizer: Any, eventually: Eventually
) -> Callable[[], Any]:
    """Starts workers with that model."""

    def start() -> Any:
        worker = system.start(
            "worker",
            TURNMILL_ENGINE__NAME="transformers",
            TURNMILL_ENGINE__MODEL=str(tmp_path),
            TURNMILL_ENGINE__SERVED_NAME=system.settings.engine.model_name,
            TURNMILL_ENGINE__DEVICE="cpu",
        )
        eventually(lambda: worker.says("worker.consuming") or not worker.is_running, 120)
        assert worker.is_running, worker.log.read_text()
        return worker

    return start


def answered(system: Any, params: GenerationParams) -> Turn:
    with InlineWorker(system.settings):
        turn = accept(system.database, system.request("My parcel is late.", params=params))
        system.wait_until_settled()
    return read_turn(system.database, system.tenant_id, turn.turn_id)


def test_a_kill_inside_arguments_leaves_one_valid_call(
    system: Any, client: openai.OpenAI, eventually: Eventually, start_calling: Callable[[], Any]
) -> None:
    doomed = start_calling()
    kinds: list[str] = []

    def watch() -> Any:
        with client.chat.completions.stream(
            model=system.settings.engine.model_name,
            messages=[{"role": "user", "content": "Note it."}],
            tools=[NOTE],
            tool_choice={"type": "function", "function": {"name": "Note"}},
            max_tokens=1000,
        ) as stream:
            kinds.extend(event.type for event in stream)
            return stream.get_final_completion()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        # While a call is written, its engine gives signs of life.
        eventually(lambda: watching.done() or system.database.run("SELECT 1 FROM chunks"), 60)
        assert not watching.done(), watching.exception()
        doomed.kill()
        start_calling()
        completion = watching.result(240)
    assert kinds.count("tool_calls.function.arguments.done") == 1
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    [call] = choice.message.tool_calls
    assert len(call.function.parsed_arguments.digits) == 150
    assert Note.model_validate_json(call.function.arguments)
    assert system.count("attempt = 2 AND crashes = 1") == 1


def test_a_call_that_a_model_makes_of_its_own_accord_meets_its_schema(
    system: Any, client: openai.OpenAI, start_calling: Callable[[], Any], calling_tokenizer: Any
) -> None:
    start_calling()
    function: Any = {name: value for name, value in NOTE["function"].items() if name != "strict"}
    mark = calling_tokenizer.convert_tokens_to_ids("<tool_call>")
    with client.chat.completions.stream(
        model=system.settings.engine.model_name,
        messages=[{"role": "user", "content": "Note it."}],
        tools=[{"type": "function", "function": function}],
        parallel_tool_calls=False,
        # A random model writes anything: made likely, the mark is its first token.
        logit_bias={str(mark): 100},
        max_tokens=1000,
    ) as stream:
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    [call] = choice.message.tool_calls or []
    assert call.function.name == "Note"
    assert len(Note.model_validate_json(call.function.arguments).digits) == 150
    # Nobody validated it, or asked for it again.
    assert system.count("attempt = 1") == 1


def test_what_calls_cannot_be_held_to_is_refused_by_its_place(
    system: Any, client: openai.OpenAI
) -> None:
    system.start_worker()
    odd = {"type": "object", "properties": {"a": {"not": {}}}}
    offered: Any = {"type": "function", "function": {"name": "note", "parameters": odd}}
    for more in ({"tool_choice": "required"}, {"strict": True}):
        function = offered["function"] | {k: v for k, v in more.items() if k == "strict"}
        choice = {k: v for k, v in more.items() if k == "tool_choice"}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=system.settings.engine.model_name,
                messages=[{"role": "user", "content": "?"}],
                tools=[offered | {"function": function}],
                **choice,  # type: ignore[arg-type]
            )
        assert (caught.value.param or "").startswith("tools[0].function.parameters")


def test_a_call_that_does_not_meet_its_schema_is_asked_for_once_more(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    engine = use(Scripted('{"urgency": 7}', '{"urgency": 10}'))
    reply = answered(system, GenerationParams(tools=(TOOL,), tool_choice="note")).reply
    assert reply is not None
    assert [call.arguments for call in reply.tool_calls] == ['{"urgency": 10}']
    _, again = engine.prompts
    assert [message.role for message in again.messages] == ["user", "assistant", "tool"]
    assert again.messages[-1].tool_call_id == "call_1"
    assert "at 'urgency' it does not meet 'multipleOf'" in again.messages[-1].text
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (6, 2)


def test_a_call_that_is_demanded_and_not_made_fails_by_its_name(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    use(Scripted(None, '{"urgency": "SECRET"}'))
    turn = answered(system, GenerationParams(tools=(TOOL,), tool_choice="required"))
    assert (turn.state, turn.error_code) == ("failed", "format_not_met")
    assert "SECRET" not in (turn.error_message or "")
    use(Scripted('{"urgency": "seven"}'))
    reply = answered(system, GenerationParams(tools=(TOOL,))).reply
    assert reply is not None, "whose calls nobody demanded"
    assert json.loads(reply.tool_calls[0].arguments) == {"urgency": "seven"}


def test_a_call_of_another_tool_is_not_the_one_that_is_demanded(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    offered = (TOOL, Tool(name="other"))
    engine = use(Scripted("{}", "{}", tool="other"))
    turn = answered(system, GenerationParams(tools=offered, tool_choice="note"))
    assert (turn.state, turn.error_code) == ("failed", "format_not_met")
    assert "'tool_choice'" in (turn.error_message or "")
    assert len(engine.prompts) == 2
    use(Scripted("{}", tool="other"))
    reply = answered(system, GenerationParams(tools=offered, tool_choice="required")).reply
    assert reply is not None, "any tool will do"
    assert [call.name for call in reply.tool_calls] == ["other"]


def test_a_choice_that_no_live_worker_can_make_is_refused_by_its_field(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    use(Scripted('{"urgency": 5}', can=Capabilities(tools=True)))
    with InlineWorker(system.settings):
        with pytest.raises(InvalidInput, match="tool_choice") as caught:
            accept(
                system.database,
                system.request("x", params=GenerationParams(tools=(TOOL,), tool_choice="note")),
            )
        assert caught.value.param == "tool_choice"
        accept(system.database, system.request("x", params=GenerationParams(tools=(TOOL,))))
        system.wait_until_settled()
    assert system.count("state = 'completed'") == 1
