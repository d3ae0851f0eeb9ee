"""Summaries of what prompts have no room for, with a real Postgres.

The engine here summarizes a conversation by the keys that it finds in its prompt, so that a
test can see what got lost.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from turnmill.producer.accept import accept
from turnmill.producer.tenants import save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import DatabaseUnavailable, EngineFailure, EngineUnavailable
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import AcceptedTurn, GenerationParams, Message, Role, TurnState
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.answer import Worker, answer_turn
from turnmill.workers.turn.attempt import AbortReason
from turnmill.workers.turn.draft import SUMMARY_HEADING
from turnmill.workers.turn.leases import Leases
from turnmill.workers.upkeep.rescuer import sweep

Eventually = Callable[..., None]
WINDOW, SHARE = 200, 0.25
LIMIT = int(WINDOW * SHARE)
MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()
KEY = re.compile(r"\bkey\d+\b")


class Remembering:
    """One word is one token. What it is told to do while it summarizes is in `script`."""

    context_window = WINDOW
    capabilities = Capabilities(continues=True)

    def __init__(self) -> None:
        #: Prompts of turns, and those for summaries.
        self.prompts: list[Prompt] = []
        self.questions: list[Prompt] = []
        self.script: list[Any] = []
        #: Text of the next reply after which the engine fails, once `until_kept` has returned.
        self.breaks_after = ""
        self.until_kept: Callable[[], None] = lambda: None
        self.held: dict[str, float] = {}

    def start(self) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...

    def count_tokens(self, prompt: Prompt) -> int:
        return sum(len(message.content.split()) for message in prompt.messages)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        tokens = self.count_tokens(prompt)
        assert tokens + (params.max_tokens or 0) <= WINDOW
        is_summary = prompt.messages[-1].content.startswith("Summarize ")
        (self.questions if is_summary else self.prompts).append(prompt)
        if is_summary:
            self._follow_script()
            words = self.summarize(prompt.messages)[: params.max_tokens]
        elif self.breaks_after:
            text, self.breaks_after = self.breaks_after, ""
            yield Chunk(text, 1)
            self.until_kept()
            raise EngineUnavailable("busy")
        else:
            words = ["fine", "indeed"]
        for word in words:
            if abort.is_set():
                return
            yield Chunk(f"{word} ", 1)
        yield Chunk("", 0, "stop", tokens)

    def summarize(self, messages: Sequence[Message]) -> list[str]:
        return ["told", *keys_of(messages)]

    def _follow_script(self) -> None:
        for step in self.script:
            if isinstance(step, BaseException):
                raise step
            step()


def keys_of(messages: Sequence[Message]) -> list[str]:
    found = (key for message in messages for key in KEY.findall(message.content))
    return list(dict.fromkeys(found))


class Talk:
    """A conversation that goes on one turn at a time."""

    def __init__(self, system: Any, worker: Worker, share: float = SHARE) -> None:
        self.system = system
        self.engine = Remembering()
        self.worker = replace(worker, engine=self.engine, summary_share=share)
        self.conversation_id = new_id()
        self.turns: list[AcceptedTurn] = []
        self.texts: list[str] = []

    def accept(self, text: str = "", **fields: Any) -> AcceptedTurn:
        self.texts.append(text or f"key{len(self.texts) + 1} was it")
        params = GenerationParams(max_tokens=8)
        request = self.system.request(
            self.texts[-1], conversation_id=self.conversation_id, params=params, **fields
        )
        self.turns.append(accept(self.system.database, request))
        return self.turns[-1]

    def say(self, text: str = "") -> TurnState:
        turn = self.accept(text)
        assert answer_turn(self.worker, turn.turn_id)
        return self.state(turn)

    def go_on(self, count: int) -> None:
        for _ in range(count):
            assert self.say() is TurnState.COMPLETED

    def until_it_is_full(self) -> None:
        """The next turn will need a summary."""
        self.go_on(36)
        assert self.engine.questions == []

    def state(self, turn: AcceptedTurn) -> TurnState:
        found = read_turn(self.system.database, self.system.tenant_id, turn.turn_id)
        return TurnState(found.state)

    @property
    def all_keys(self) -> set[str]:
        return {key for text in self.texts for key in KEY.findall(text)}

    @property
    def last_keys(self) -> set[str]:
        return set(keys_of(self.engine.prompts[-1].messages))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    system = make_system(database_url, "amqp://nobody")
    model = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, model, model, "Be kind.", GenerationParams())
    return system


@pytest.fixture
def worker(system: Any) -> Iterator[Worker]:
    settings = system.settings.worker.model_copy(update={"rescue_every_s": 60.0, "lease_s": 60.0})
    with running_worker(system.settings.model_copy(update={"worker": settings})) as (worker, _):
        yield worker


@pytest.fixture
def talk(system: Any, worker: Worker, eventually: Eventually) -> Talk:
    talk = Talk(system, worker)
    talk.engine.until_kept = lambda: eventually(lambda: system.database.run("SELECT 1 FROM chunks"))
    return talk


def summaries(system: Any) -> list[tuple[int, str]]:
    rows = system.database.run("SELECT seq, content FROM summaries")
    return [(row.seq, row.content) for row in rows]


def test_what_no_longer_fits_is_told_in_a_summary(system: Any, talk: Talk) -> None:
    for _ in range(65):
        assert talk.say() is TurnState.COMPLETED
        # Each turn is in the prompt, or told of: nothing is lost, and the prompt fits.
        assert talk.last_keys == talk.all_keys
        assert talk.engine.count_tokens(talk.engine.prompts[-1]) <= WINDOW - 8
    system_message, *rest = talk.engine.prompts[-1].messages
    [(seq, content)] = summaries(system)
    assert system_message.content == f"Be kind.\n\n{SUMMARY_HEADING}\n{content}"
    assert keys_of([system_message]) == [f"key{number}" for number in range(1, seq + 1)]
    assert keys_of(rest) == [f"key{number}" for number in range(seq + 1, 66)]
    assert rest[-1].content == "key65 was it"
    # One for several turns.
    assert 2 <= len(talk.engine.questions) <= 5


def test_a_summary_is_asked_for_where_the_last_prompt_began(system: Any, talk: Talk) -> None:
    """So what the engine remembers of that prompt need not be computed again."""
    talk.until_it_is_full()
    while len(talk.engine.questions) < 2:
        before = talk.engine.prompts[-1].messages
        talk.go_on(1)
    *begun, asked = talk.engine.questions[-1].messages
    assert tuple(begun) == before[: len(begun)]
    assert len(begun) > 3
    assert asked.role is Role.USER
    assert keys_of([begun[0]])  # the summary before this one


def test_without_the_setting_turns_are_dropped_and_nothing_is_asked(
    system: Any, worker: Worker
) -> None:
    assert worker.summary_share == 0
    talk = Talk(system, worker, worker.summary_share)
    talk.go_on(65)
    assert talk.engine.questions == []
    assert talk.last_keys < talk.all_keys
    assert talk.engine.prompts[-1].messages[0].content == "Be kind."
    assert summaries(system) == []


def test_the_setting_reaches_the_worker(system: Any, eventually: Eventually) -> None:
    engine = system.settings.engine.model_copy(update={"context_window": 200})
    worker = system.settings.worker.model_copy(update={"summary_share": 0.25})
    settings = system.settings.model_copy(update={"engine": engine, "worker": worker})
    conversation, params = new_id(), GenerationParams(max_tokens=8)
    turns = [
        accept(
            system.database,
            system.request(f"{number} one two", conversation_id=conversation, params=params),
        )
        for number in range(40)
    ]
    with InlineWorker(settings):
        system.wait_until_settled()
    system.assert_answered_once_and_in_order(turns)
    [(seq, content)] = summaries(system)
    assert 0 < seq < 40
    # The echo engine repeats the question.
    assert content.startswith("Summarize our conversation so far in at most 25 words.")
    assert content.endswith("in the language that we speak.")


def test_the_tokens_of_a_summary_are_logged_and_not_charged(system: Any, talk: Talk) -> None:
    talk.until_it_is_full()
    with capture_logs() as logs:
        while not talk.engine.questions:
            talk.go_on(1)
    [event] = [each for each in logs if each["event"] == "conversation.summarized"]
    assert event["is_kept"]
    assert event["turn_count"] == summaries(system)[0][0]
    assert event["completion_tokens"] == 1 + event["turn_count"]
    assert event["prompt_tokens"] == talk.engine.count_tokens(talk.engine.questions[0])
    assert "key1" not in str(event)
    reply = read_turn(system.database, system.tenant_id, talk.turns[-1].turn_id).reply
    assert reply is not None
    assert reply.usage.completion_tokens == 2
    assert reply.usage.prompt_tokens == talk.engine.count_tokens(talk.engine.prompts[-1])


@pytest.mark.parametrize(
    "error", [EngineFailure("no"), EngineUnavailable("busy"), MemoryError("none left")]
)
def test_a_summary_that_fails_leaves_the_turn_as_it_would_be_without(
    system: Any, worker: Worker, talk: Talk, error: BaseException
) -> None:
    talk.engine.script = [error]
    plain = Talk(system, worker, share=0)
    for _ in range(42):
        talk.go_on(1)
        plain.go_on(1)
        assert talk.engine.prompts[-1].messages == plain.engine.prompts[-1].messages
    assert talk.engine.questions
    assert summaries(system) == []
    # What failed is tried again.
    talk.engine.script.clear()
    talk.go_on(1)
    assert talk.last_keys == talk.all_keys


def test_a_summary_that_postgres_does_not_take_is_done_without(
    system: Any, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.until_it_is_full()
    run = talk.worker.database.run

    def refuse(statement: str, params: Any = None) -> Any:
        if "INSERT INTO summaries" in statement:
            raise DatabaseUnavailable
        return run(statement, params)

    monkeypatch.setattr(talk.worker.database, "run", refuse)
    talk.go_on(6)
    assert talk.engine.questions
    assert talk.engine.prompts[-1].messages[0].content == "Be kind."
    assert summaries(system) == []


def test_a_summary_of_no_words_is_none(
    system: Any, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.until_it_is_full()
    monkeypatch.setattr(Remembering, "summarize", lambda *_: ["", " "])
    talk.go_on(6)
    assert talk.engine.questions
    assert summaries(system) == []


def test_a_drain_stops_the_summary_and_the_turn_is_handed_back(system: Any, talk: Talk) -> None:
    talk.until_it_is_full()
    talk.engine.script = [lambda: talk.worker.leases.stop_all(AbortReason.DRAIN)]
    while talk.say() is TurnState.COMPLETED:
        assert len(talk.turns) < 60
    turn = talk.turns[-1]
    assert talk.state(turn) is TurnState.QUEUED
    assert system.count("failures > 0") == 0
    assert summaries(system) == []
    assert answer_turn(talk.worker, turn.turn_id)
    assert talk.state(turn) is TurnState.COMPLETED
    assert len(talk.engine.questions) == 1
    talk.engine.script.clear()
    talk.go_on(1)
    assert talk.last_keys == talk.all_keys


def test_a_summary_may_not_take_the_time_of_its_turn(
    system: Any, talk: Talk, eventually: Eventually
) -> None:
    talk.until_it_is_full()
    ends_at = 0.0

    def take_more_than_half() -> None:
        late_at = (time.monotonic() + ends_at) / 2
        eventually(lambda: time.monotonic() > late_at)

    talk.engine.script = [take_more_than_half]
    while not talk.engine.questions:
        turn = talk.accept(timeout_s=8.0)
        ends_at = time.monotonic() + 8.0
        assert answer_turn(talk.worker, turn.turn_id)
    assert talk.state(turn) is TurnState.COMPLETED
    assert summaries(system) == []


def test_an_attempt_that_goes_on_reads_what_the_one_before_it_read(system: Any, talk: Talk) -> None:
    talk.until_it_is_full()
    while not talk.engine.questions:
        first, second = two_attempts(system, talk)
        assert second.prefix == "fine "
        assert first.messages == second.messages
    assert len(talk.engine.questions) == len(summaries(system)) == 1


def test_an_attempt_that_goes_on_without_a_summary_stays_without(system: Any, talk: Talk) -> None:
    talk.until_it_is_full()
    talk.engine.script = [EngineUnavailable("busy")]
    while not talk.engine.questions:
        first, second = two_attempts(system, talk, talk.engine.script.clear)
        assert second.prefix == "fine "
        assert first.messages == second.messages
        talk.engine.script = [EngineUnavailable("busy")]
    assert len(talk.engine.questions) == 1
    assert summaries(system) == []


def two_attempts(
    system: Any, talk: Talk, in_between: Callable[[], object] = lambda: None
) -> list[Prompt]:
    """The prompts of a turn whose first attempt fails after a word."""
    talk.engine.breaks_after = "fine "
    turn = talk.accept()
    assert answer_turn(talk.worker, turn.turn_id)
    in_between()
    system.database.run("UPDATE outbox SET due_at = clock_timestamp()")
    assert answer_turn(talk.worker, turn.turn_id)
    assert talk.state(turn) is TurnState.COMPLETED
    return talk.engine.prompts[-2:]


def test_a_late_attempt_keeps_no_summary(system: Any, talk: Talk) -> None:
    talk.until_it_is_full()
    settings = system.settings.worker
    model = system.settings.engine.model_name
    other = Leases(system.database, settings, model=model, engine="echo")

    def take_over() -> None:
        system.database.run("UPDATE turns SET leased_until = now() WHERE state = 'running'")
        sweep(system.database, settings)
        system.database.run("UPDATE outbox SET due_at = clock_timestamp()")
        assert other.claim(talk.turns[-1].turn_id) is not None

    talk.engine.script = [take_over]
    while not talk.engine.questions:
        turn = talk.accept()
        assert answer_turn(talk.worker, turn.turn_id)
    assert talk.state(turn) is TurnState.RUNNING
    assert summaries(system) == []


def test_a_summary_is_not_kept_when_the_one_it_builds_on_was_pruned(
    system: Any, talk: Talk
) -> None:
    talk.until_it_is_full()
    while not summaries(system):
        talk.go_on(1)
    talk.engine.script = [lambda: system.database.run("DELETE FROM summaries")]
    while summaries(system):
        talk.go_on(1)
    assert len(talk.engine.questions) == 2
    # The turns are still there, and are told of anew, as many at a time as fit into a prompt.
    talk.engine.script.clear()
    talk.go_on(5)
    assert talk.last_keys == talk.all_keys


def test_a_long_conversation_is_told_step_by_step_once_it_is_turned_on(
    system: Any, worker: Worker
) -> None:
    talk = Talk(system, worker, share=0)
    talk.go_on(50)
    talk.worker = replace(talk.worker, summary_share=SHARE)
    for count in range(1, 10):
        talk.go_on(1)
        # No turn waits for more than one.
        assert len(talk.engine.questions) <= count
    assert talk.last_keys == talk.all_keys
    assert len(talk.engine.questions) < 9


def test_a_message_that_leaves_a_summary_no_room_is_answered_without(
    system: Any, talk: Talk
) -> None:
    talk.until_it_is_full()
    while not summaries(system):
        talk.go_on(1)
    kept, asked = summaries(system), len(talk.engine.questions)
    assert talk.say("word " * 180) is TurnState.COMPLETED
    system_message, *_, last = talk.engine.prompts[-1].messages
    assert system_message.content == "Be kind."
    assert last.content == "word " * 180
    assert (summaries(system), len(talk.engine.questions)) == (kept, asked)
    # It fits into no question, so it is never told of; all else is.
    talk.go_on(15)
    assert talk.last_keys == talk.all_keys


def test_a_model_whose_template_refuses_a_summary_is_given_none(
    system: Any, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.until_it_is_full()
    while not summaries(system):
        talk.go_on(1)
    count = Remembering.count_tokens

    def refuse(engine: Remembering, prompt: Prompt) -> int:
        if SUMMARY_HEADING in prompt.messages[0].content:
            raise EngineFailure("The model's chat template refuses the prompt.")
        return count(engine, prompt)

    monkeypatch.setattr(Remembering, "count_tokens", refuse)
    talk.go_on(1)
    assert talk.engine.prompts[-1].messages[0].content == "Be kind."


def test_a_real_model_goes_on_from_summaries_and_from_what_it_remembers(system: Any) -> None:
    pytest.importorskip("openvino_genai", reason="pip install 'turnmill[openvino]'")
    engine = {"name": "openvino", "models_dir": MODELS_DIR, "context_window": 384}
    settings = system.settings.model_copy(
        update={
            "engine": system.settings.engine.model_copy(update=engine),
            "worker": system.settings.worker.model_copy(update={"summary_share": 0.15}),
        }
    )
    params = GenerationParams(max_tokens=12, temperature=0)
    conversation = new_id()
    turns = [
        accept(
            system.database,
            system.request(
                f"Tell me something about the number {number}, please.",
                conversation_id=conversation,
                params=params,
            ),
        )
        for number in range(1, 19)
    ]
    with capture_logs() as logs, InlineWorker(settings):
        system.wait_until_settled(240)
    system.assert_answered_once_and_in_order(turns)
    [(seq, content)] = summaries(system)
    assert seq > 4
    assert content
    events = [each for each in logs if each["event"] == "conversation.summarized"]
    assert 0 < len(events) < 8
    assert all(0 < each["completion_tokens"] <= 384 * 0.15 for each in events)
    # What a summary is made of stood in the last prompt.
    assert all(each["cached_tokens"] > each["prompt_tokens"] / 2 for each in events)
    last = read_turn(system.database, system.tenant_id, turns[-1].turn_id).reply
    assert last is not None
    assert last.usage.prompt_tokens + 12 <= 384
