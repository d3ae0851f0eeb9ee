"""Replies with a format, from the client's call to the reply that a program reads."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.requirements import require_installed
from turnmill.producer.accept import accept
from turnmill.producer.tenants import create_key, save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import ContextOverflow, InvalidInput
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.tenants import Scope
from turnmill.schemas.turns import GenerationParams, Turn
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.testing import InlineWorker

Eventually = Callable[..., None]

require_installed("jsonschema", "dev")

MODEL = "smollm2-135m-instruct"


class Triage(BaseModel):
    language: Literal["en", "zh"]
    urgency: int = Field(ge=1, le=5)
    words: list[str] = Field(min_length=12)
    note: str | None


TRIAGE = GenerationParams(
    response_format=ResponseFormat(
        type="json_schema", schema_text=json.dumps(Triage.model_json_schema())
    )
)


class Scripted(EchoEngine):
    """Answers with these texts, one after the other, or raises these errors."""

    def __init__(self, *texts: str | Exception, can: Capabilities | None = None) -> None:
        super().__init__(EngineSettings())
        self._texts = iter(texts)
        self._can = can or super().capabilities
        self.prompts: list[Prompt] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._can

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.prompts.append(prompt)
        text = next(self._texts)
        if isinstance(text, Exception):
            raise text
        yield Chunk(text, 1)
        yield Chunk("", 0, "stop", 3)


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    return make_system(database_url, valkey_url)


@pytest.fixture
def client(system: Any) -> openai.OpenAI:
    system.start("relay")
    return system.start_api()


def answered(system: Any, params: GenerationParams) -> Turn:
    with InlineWorker(system.settings):
        turn = accept(system.database, system.request("My parcel is late.", params=params))
        system.wait_until_settled()
    return read_turn(system.database, system.tenant_id, turn.turn_id)


def test_openai_s_own_client_parses_a_reply_into_its_model(
    system: Any, client: openai.OpenAI
) -> None:
    system.start_worker()
    messages: Any = [{"role": "user", "content": "My parcel is late."}]
    whole = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Triage)
    assert whole.choices[0].message.parsed == Triage(
        language="en", urgency=1, words=[""] * 12, note=""
    )
    with client.chat.completions.stream(
        model=MODEL, messages=messages, response_format=Triage
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed
    chosen = client.chat.completions.create(
        model=MODEL, messages=messages, extra_body={"structured_outputs": {"choice": ["no", "yes"]}}
    )
    assert chosen.choices[0].message.content == "no"
    free = client.chat.completions.create(
        model=MODEL, messages=messages, response_format={"type": "json_object"}
    )
    assert json.loads(free.choices[0].message.content or "") == {}
    wrong = {"type": "object", "properties": {"a": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=messages,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}},
        )
    assert caught.value.param == "response_format.json_schema.schema.properties.a.not"


@pytest.mark.parametrize("resumes", [True, False])
def test_a_kill_inside_an_object_leaves_one_valid_object(
    system: Any, client: openai.OpenAI, eventually: Eventually, resumes: bool
) -> None:
    speed = {"TURNMILL_ENGINE__ECHO_CAN_CONTINUE": str(resumes).lower()}
    doomed = system.start_worker(**speed | {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.5"})
    seen: list[Any] = []

    def watch() -> None:
        with client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "triage", "schema": Triage.model_json_schema()},
            },
        ) as stream:
            seen.extend(stream)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        kept = "SELECT 1 AS n FROM chunks HAVING count(*) > 2"
        eventually(lambda: watching.done() or system.database.run(kept), 30)
        assert not watching.done(), watching.exception()
        doomed.kill()
        system.start_worker(**speed)
        watching.result(60)
    marks = [n for n, chunk in enumerate(seen) if getattr(chunk, "turnmill", None)]
    assert len(marks) == (0 if resumes else 1)
    texts = [chunk.choices[0].delta.content or "" for chunk in seen[marks[0] if marks else 0 :]]
    assert Triage.model_validate_json("".join(texts)).urgency == 1
    assert system.count("attempt = 2 AND crashes = 1") == 1


def test_a_reply_that_is_not_in_its_format_is_asked_for_once_more(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    good = Triage(language="zh", urgency=2, words=["w"] * 12, note="x").model_dump_json()
    engine = use(Scripted("Certainly! It is urgent.", good))
    reply = answered(system, TRIAGE).reply
    assert reply is not None and reply.content == good
    _, again = engine.prompts
    assert [each.role for each in again.messages] == ["system", "user", "assistant", "user"]
    assert "it is not JSON" in again.messages[-1].text
    # Both were computed.
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (6, 2)


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (TRIAGE.response_format, ["JSON Schema", '"urgency":{"maximum":5,"minimum":1']),
        (ResponseFormat(type="choice", choices=("yes", "no")), ["\nyes\nno"]),
        (ResponseFormat(type="json_object"), []),
    ],
)
def test_a_model_is_told_the_format_below_its_instructions(
    system: Any, use: Callable[[Scripted], Scripted], wanted: ResponseFormat, shown: list[str]
) -> None:
    bot = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, bot, bot, "Be brief.", GenerationParams())
    engine = use(Scripted("{}", "{}"))
    answered(system, GenerationParams(response_format=wanted))
    instructions = engine.prompts[0].messages[0]
    assert instructions.role == "system" and instructions.text.startswith("Be brief.")
    assert all(each in instructions.text for each in shown)
    assert bool(shown) == (instructions.text != "Be brief.")


class NoSystem(Scripted):
    """Its chat template knows no system message."""

    def count_tokens(self, prompt: Prompt) -> int:
        if prompt.messages and prompt.messages[0].role == "system":
            raise InvalidInput("The chat template knows no system message.", param="messages")
        return super().count_tokens(prompt)


def test_a_template_without_a_system_message_and_a_server_of_others_are_told_no_format(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    remote = EchoEngine(EngineSettings()).capabilities.model_copy(update={"remote": True})
    for engine in (NoSystem("{}", "{}"), Scripted("{}", "{}", can=remote)):
        use(engine)
        answered(system, TRIAGE)
        assert [each.role for each in engine.prompts[0].messages] == ["user"]


def test_a_schema_that_would_take_much_of_the_window_is_not_shown(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    schema = {"type": "object", "description": "x" * 20_000}
    wanted = ResponseFormat(type="json_schema", schema_text=json.dumps(schema))
    engine = use(Scripted("{}"))
    assert engine.context_window < 20_000
    answered(system, GenerationParams(response_format=wanted))
    assert [each.role for each in engine.prompts[0].messages] == ["user"]


def test_a_second_reply_that_has_no_room_is_not_the_client_s_fault(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    use(Scripted("Certainly!", ContextOverflow("Too long.", param="messages")))
    turn = answered(system, TRIAGE)
    assert (turn.state, turn.error_code) == ("failed", "format_not_met")


def test_a_reply_that_is_twice_not_in_its_format_fails_by_a_name_and_without_its_text(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    use(Scripted("SECRET", '{"language": "SECRET"}'))
    turn = answered(system, TRIAGE)
    assert (turn.state, turn.error_code) == ("failed", "format_not_met")
    assert "does not meet" in (turn.error_message or "")
    assert "SECRET" not in (turn.error_message or "")


def test_a_reply_that_is_cut_by_its_limit_is_returned_as_it_is(system: Any) -> None:
    reply = answered(system, TRIAGE.model_copy(update={"max_tokens": 3})).reply
    assert reply is not None
    assert (reply.content, reply.finish_reason) == ('{"language":', "length")


def test_stop_strings_do_not_cut_a_reply_with_a_format(system: Any) -> None:
    bot = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(stop=("urgency",)))
    reply = answered(system, TRIAGE).reply
    assert reply is not None and Triage.model_validate_json(reply.content)


def test_the_properties_of_a_reply_keep_the_order_of_the_schema(system: Any) -> None:
    reply = answered(system, TRIAGE).reply
    assert reply is not None
    assert [*json.loads(reply.content)] == ["language", "urgency", "words", "note"]


def test_a_bot_s_own_format_counts_unless_a_call_has_one(
    system: Any, client: openai.OpenAI
) -> None:
    system.start_worker()
    key = create_key(system.database, system.tenant_id, "admin", [Scope.ADMIN])
    url = f"{str(client.base_url).removesuffix('/v1/')}/bots/{MODEL}"
    headers = {"Authorization": f"Bearer {key}"}

    def change(format: Any) -> httpx.Response:
        return httpx.patch(url, headers=headers, json={"params": {"response_format": format}})

    def said(**fields: Any) -> str:
        messages: Any = [{"role": "user", "content": "My parcel is late."}]
        reply = client.chat.completions.create(model=MODEL, messages=messages, **fields)
        return reply.choices[0].message.content or ""

    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "triage", "strict": False, "schema": Triage.model_json_schema()},
    }
    assert change(wanted).json()["params"]["response_format"] == wanted
    shown = httpx.get(url, headers=headers).json()["params"]["response_format"]
    assert change(shown).is_success
    assert Triage.model_validate_json(said()).urgency == 1
    # Channels, which ask for nothing, send it as text.
    turn = accept(system.database, system.request("My parcel is late."))
    system.wait_until_settled()
    reply = read_turn(system.database, system.tenant_id, turn.turn_id).reply
    assert reply is not None and Triage.model_validate_json(reply.content)
    assert said(response_format={"type": "json_object"}) == "{}"
    assert said(response_format={"type": "text"}) == "My parcel is late."
    refused = change({"type": "json_schema", "json_schema": {"schema": {"not": {}}}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format.json_schema.schema.not"
    assert "response_format" not in change(None).json()["params"]
    assert said() == "My parcel is late."


def test_a_format_that_no_live_worker_writes_is_refused_by_its_field(
    system: Any, use: Callable[[Scripted], Scripted]
) -> None:
    use(Scripted(can=Capabilities(formats=frozenset({"text", "json_object"}))))
    choice = GenerationParams(response_format=ResponseFormat(type="choice", choices=("a",)))
    with InlineWorker(system.settings):
        for params in (TRIAGE, choice):
            with pytest.raises(InvalidInput, match="formats: ") as caught:
                accept(system.database, system.request("x", params=params))
            assert caught.value.param == "response_format"
