"""What a model reads in conversations is proposed, and told to no turn before it is confirmed."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.integration.memory.conftest import Listening, let_remember
from turnmill.producer.accept import accept
from turnmill.producer.memory import users
from turnmill.producer.memory.extraction import PROMPT, Round, propose
from turnmill.producer.memory.forgetting import forget_user
from turnmill.producer.tenants import save_bot
from turnmill.schemas.errors import NotFound
from turnmill.schemas.files.opening import open_storage
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.testing import InlineWorker
from turnmill.workers.upkeep.erasures import erase_all

ADA = "api:ada"


class Reader(Listening):
    """Finds in texts what the test says; answers like an echo otherwise."""

    found: tuple[tuple[str, str, int], ...] = (("city", "Bremen", 1), ("age", "99", 1))

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        if params.response_format is None:
            yield from super().generate(prompt, params, abort)
            return
        self.prompts.append(tuple(message.text for message in prompt.messages))
        facts = [{"key": k, "value": v, "line": line} for k, v, line in self.found]
        yield Chunk(json.dumps({"facts": facts}), token_count=1)
        yield Chunk("", finish_reason="stop")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Reader:
    engine = Reader()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine


@pytest.fixture
def reading(system: Any, engine: Reader) -> Any:
    """A bot whose idle conversations another bot reads."""
    model = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, "reader", model, "", GenerationParams())
    let_remember(system, extract_with="reader", idle_s=0)
    users.set_memory(system.database, system.tenant_id, ADA, is_on=True)
    return system


def talk(system: Any, *texts: str, user: str | None = ADA) -> Any:
    turn = None
    with InlineWorker(system.settings):
        for text in texts:
            place = {} if turn is None else {"conversation_id": turn.conversation_id}
            turn = accept(system.database, system.request(text, user_key=user, **place))
            system.wait_until_settled()
    return turn


def read(system: Any) -> Round:
    """Let a round read, and take what it came to."""
    with InlineWorker(system.settings):
        first = propose(system.database, system.tenant_id, datetime.now(UTC))
        system.wait_until_settled()
    second = propose(system.database, system.tenant_id, datetime.now(UTC))
    return Round(first.reading, second.proposed, second.confirmed)


def facts(system: Any, user: str = ADA) -> list[tuple[str, str, str]]:
    found = users.list_facts(system.database, system.tenant_id, user)
    return [(fact.key, fact.value, fact.source) for fact in found]


def test_what_a_user_wrote_is_proposed_with_its_turn_and_what_nobody_wrote_is_not(
    reading: Any, engine: Reader
) -> None:
    turn = talk(reading, "I live in Bremen.")
    assert read(reading) == Round(1, 1, 0)
    (fact,) = users.list_facts(reading.database, reading.tenant_id, ADA)
    assert (fact.key, fact.value, fact.source) == ("city", "Bremen", "proposed")
    assert fact.turn_id == turn.turn_id
    assert engine.prompts[-1][0].startswith(PROMPT)
    assert engine.prompts[-1][-1] == "1. I live in Bremen."
    lanes = reading.database.run("SELECT lane FROM turns WHERE batch_id IS NOT NULL")
    assert [row.lane for row in lanes] == ["batch"]


def test_a_proposed_fact_is_told_to_no_turn_before_it_is_confirmed(
    reading: Any, engine: Reader
) -> None:
    talk(reading, "I live in Bremen.")
    read(reading)
    talk(reading, "Where do I live?")
    assert "city" not in engine.prompts[-1][0]
    users.answer_proposal(reading.database, reading.tenant_id, ADA, "city", is_right=True)
    talk(reading, "And now?")
    assert "- city: Bremen" in engine.prompts[-1][0]
    assert facts(reading) == [("city", "Bremen", "confirmed")]
    with pytest.raises(NotFound, match="no fact of this name is proposed"):
        users.answer_proposal(reading.database, reading.tenant_id, ADA, "city", is_right=True)


def test_a_proposal_that_is_wrong_leaves_what_is_known(reading: Any, engine: Reader) -> None:
    users.remember(reading.database, reading.tenant_id, ADA, "city", "Ulm")
    talk(reading, "I was in Bremen.")
    assert read(reading) == Round(1, 1, 0)
    users.answer_proposal(reading.database, reading.tenant_id, ADA, "city", is_right=False)
    assert facts(reading) == [("city", "Ulm", "explicit")]


def test_keys_of_the_policy_need_no_confirmation(reading: Any, engine: Reader) -> None:
    let_remember(reading, extract_with="reader", idle_s=0, extract_keys=["City"])
    talk(reading, "I live in Bremen.")
    assert read(reading) == Round(1, 0, 1)
    assert facts(reading) == [("city", "Bremen", "confirmed")]


def test_a_conversation_is_read_once_and_again_when_more_was_said(
    reading: Any, engine: Reader
) -> None:
    talk(reading, "I live in Bremen.", "Hello?")
    assert read(reading).reading == 1
    assert read(reading).reading == 0
    talk(reading, "More.")
    assert read(reading).reading == 1


@pytest.mark.parametrize("reason", ["no user", "no consent", "not idle", "no policy"])
def test_nobody_else_is_read(reading: Any, engine: Reader, reason: str) -> None:
    user = None if reason == "no user" else "api:bob" if reason == "no consent" else ADA
    if reason == "not idle":
        let_remember(reading, extract_with="reader", idle_s=600)
    if reason == "no policy":
        let_remember(reading)
    talk(reading, "I live in Bremen.", user=user)
    assert read(reading) == Round(0, 0, 0)


@pytest.mark.parametrize(
    "safety", [{"remote": "pseudonyms"}, {"checks": ["personal:mask"]}, {"checks": ["words:block"]}]
)
def test_a_reader_that_hides_less_than_its_bot_reads_nothing_of_it(
    reading: Any, engine: Reader, safety: dict[str, Any]
) -> None:
    place = (reading.database, reading.tenant_id)
    let_remember(reading, extract_with="reader", idle_s=0)
    hide = """UPDATE bots SET policies = coalesce(policies, '{}')
        || jsonb_build_object('safety', %s::jsonb) WHERE name = %s RETURNING id"""
    bot = reading.settings.engine.model_name
    assert reading.database.run(hide, (json.dumps(safety), bot))
    talk(reading, "I live in Bremen.")
    found = propose(*place, datetime.now(UTC))
    assert (found.reading, len(found.problems)) == (0, 1)
    assert found.problems[0].startswith(f"Bot '{bot}': its reader 'reader' would show")
    assert reading.database.run("SELECT 1 FROM turns WHERE batch_id IS NOT NULL") == []
    assert reading.database.run(hide, (json.dumps(safety), "reader"))
    assert read(reading).reading == 1


def test_a_bot_that_cannot_be_read_stops_no_other(reading: Any, engine: Reader) -> None:
    model = reading.settings.engine.model_name
    for name in ("aaa", "zzz"):
        save_bot(reading.database, reading.tenant_id, name, model, "", GenerationParams())
        assert reading.database.run(
            """UPDATE bots SET policies = '{"memory": {"on": true, "extract_with": "gone",
            "idle_s": 0}}' WHERE name = %s RETURNING id""",
            (name,),
        )
    talk(reading, "I live in Bremen.")
    in_both = reading.database.run(
        "UPDATE turns SET bot_id = (SELECT id FROM bots WHERE name = 'zzz') RETURNING id"
    )
    assert in_both
    talk(reading, "I live in Bremen.")
    found = propose(reading.database, reading.tenant_id, datetime.now(UTC))
    assert found.reading == 1
    assert [each.partition(":")[0] for each in found.problems] == ["Bot 'zzz'"]


def test_a_consent_that_is_taken_back_meanwhile_counts(reading: Any, engine: Reader) -> None:
    talk(reading, "I live in Bremen.")
    with InlineWorker(reading.settings):
        propose(reading.database, reading.tenant_id, datetime.now(UTC))
        reading.wait_until_settled()
    users.set_memory(reading.database, reading.tenant_id, ADA, is_on=False)
    assert propose(reading.database, reading.tenant_id, datetime.now(UTC)) == Round(0, 0, 0)
    assert facts(reading) == []


def test_what_was_read_is_kept_nowhere_else(reading: Any, engine: Reader) -> None:
    talk(reading, "I live in Bremen.")
    with InlineWorker(reading.settings):
        propose(reading.database, reading.tenant_id, datetime.now(UTC))
        reading.wait_until_settled()
    forget_user(reading.database, reading.tenant_id, ADA)
    erase_all(reading.database, open_storage(reading.settings))
    for table in ("turns", "replies", "facts"):
        assert reading.database.run(f"SELECT 1 FROM {table} t WHERE t::text LIKE '%Bremen%'") == []
    assert propose(reading.database, reading.tenant_id, datetime.now(UTC)) == Round(0, 0, 0)


def test_facts_are_proposed_and_confirmed_by_command(
    reading: Any, engine: Reader, turnmill: Any
) -> None:
    talk(reading, "I live in Bremen.")
    with InlineWorker(reading.settings):
        assert "1 conversations are being read" in turnmill("users", "propose")[1]
        reading.wait_until_settled()
    assert "1 facts proposed" in turnmill("users", "propose")[1]
    assert "city Bremen proposed" in " ".join(turnmill("users", "show", ADA)[1].split())
    assert turnmill("users", "confirm", ADA, "city")[0] == 0
    assert facts(reading) == [("city", "Bremen", "confirmed")]
    assert turnmill("users", "confirm", ADA, "city", "--no")[0] != 0
