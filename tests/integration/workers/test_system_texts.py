"""System texts belong to the turn that they came with, and to no later prompt.

With a real Postgres and no broker; the engine writes down what it is given.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from turnmill.producer.accept import accept
from turnmill.producer.tenants import save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Message, Role, TurnRequest
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.answer import Worker, answer_turn

Said = list[tuple[str, str]]


class Recorder(EchoEngine):
    """The echo engine, with the prompts that it was given."""

    def __init__(self, *, context_window: int = 8192) -> None:
        super().__init__(EngineSettings(name="echo", context_window=context_window))
        self.prompts: list[Said] = []

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        self.prompts.append([(message.role.value, message.content) for message in prompt.messages])
        return super().generate(prompt, params, abort)


class Talk:
    """One conversation with a bot that is told to be kind."""

    def __init__(self, system: Any, worker: Worker, engine: Recorder) -> None:
        self._system, self._worker, self.engine = system, worker, engine
        self._conversation_id = new_id()

    def say(self, *messages: tuple[str, str]) -> str:
        """The state of the turn once it is answered."""
        request = TurnRequest(
            tenant_id=self._system.tenant_id,
            bot=self._system.settings.engine.model_name,
            messages=tuple(Message(role=Role(role), content=text) for role, text in messages),
            params=GenerationParams(max_tokens=8),
            conversation_id=self._conversation_id,
        )
        turn = accept(self._system.database, request)
        assert answer_turn(replace(self._worker, engine=self.engine), turn.turn_id)
        return str(read_turn(self._system.database, self._system.tenant_id, turn.turn_id).state)


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    system = make_system(database_url, "amqp://nobody")
    model = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, model, model, "Be kind.", GenerationParams())
    return system


@pytest.fixture
def worker(system: Any) -> Iterator[Worker]:
    with running_worker(system.settings) as (worker, _):
        yield worker


def past(*texts: str) -> Said:
    return [(role, text) for text in texts for role in ("user", "assistant")]


def test_a_prompt_has_the_system_texts_of_its_own_turn_and_no_others(
    system: Any, worker: Worker
) -> None:
    talk = Talk(system, worker, Recorder())
    for number, text in enumerate(("one", "[[fail]]", "two")):
        talk.say(("system", f"It is {number} o'clock."), ("user", text))
    talk.say(("user", "three"), ("system", "Look at the map."))
    talk.say(("system", "It is late."), ("user", "four"))
    talk.say(("user", "five"))
    said = past("one", "two", "three")
    assert talk.engine.prompts[-2:] == [
        [("system", "Be kind.\n\nIt is late."), *said, ("user", "four")],
        [("system", "Be kind."), *said, *past("four"), ("user", "five")],
    ]


@pytest.mark.parametrize("place", ["before", "after"])
def test_system_texts_that_vary_never_fill_the_window(
    system: Any, worker: Worker, place: str
) -> None:
    talk = Talk(system, worker, Recorder(context_window=120))
    for number in range(30):
        state = " ".join([f"state{number}"] * 40)
        messages: Sequence[tuple[str, str]] = [("system", state), ("user", f"turn {number}")]
        assert talk.say(*(messages if place == "before" else reversed(messages))) == "completed"


def test_the_past_stays_the_same_from_turn_to_turn(system: Any, worker: Worker) -> None:
    """So that an engine remembers it, whatever system texts the turns brought."""
    talk = Talk(system, worker, Recorder())
    for number in range(6):
        extra = [("system", f"It is {number} o'clock.")] if number % 2 else []
        talk.say(*extra, ("user", f"turn {number}"))
    pasts = [prompt[1:-1] for prompt in talk.engine.prompts]
    for earlier, later in pairwise(pasts):
        assert later[: len(earlier)] == earlier


def test_a_history_that_the_client_sends_along_is_kept_as_it_is(
    system: Any, worker: Worker
) -> None:
    talk = Talk(system, worker, Recorder())
    history = [("user", "Hi"), ("system", "The user is 12."), ("assistant", "Hello")]
    talk.say(("system", "Rhyme."), *history, ("system", "It is late."), ("user", "one"))
    talk.say(("user", "two"))
    first, second = talk.engine.prompts
    assert first == [
        ("system", "Be kind.\n\nRhyme."), *history, ("system", "It is late."), ("user", "one"),
    ]  # fmt: skip
    assert second == [("system", "Be kind."), *history, *past("one"), ("user", "two")]
