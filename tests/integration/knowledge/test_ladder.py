"""A bot that does not know asks, says so, and hands over, without asking its model."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conversing import serving
from tests.integration.knowledge.conftest import Library, Reading
from turnmill.producer.accept import accept
from turnmill.producer.handoff import resume
from turnmill.producer.knowledge.calibration.run import calibrate_collection
from turnmill.producer.tenants import create_key, save_bot
from turnmill.producer.turns import read_conversation, read_turn
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.channels.unknown import UnknownPolicy
from turnmill.schemas.content import Document
from turnmill.schemas.errors import EngineUnavailable
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.turns import GenerationParams, Lane, TurnState, Usage
from turnmill.workers.testing import InlineWorker

FAQ = Path(__file__).parent / "faq"
KNOWN = "My kettle drips at the bottom. Can I send it back?"
FOREIGN = "Who won the world cup in 1954?"
#: About copper pots, and no row answers it.
NEAR = "Can the copper pot be used on induction?"


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


class Shop:
    """A calibrated collection, a bot that climbs the ladder, and one conversation with it."""

    def __init__(self, system: Any, library: Library, engine: Reading) -> None:
        self.system, self.library, self.engine = system, library, engine
        library.sync("shop", FAQ / "en.csv")
        library.sync("shop", FAQ / "zh.csv")
        calibrate_collection(library.database, library.tenant_id, "shop")
        self.save_bot("clarify", "uncertain", "hand_off")
        self.conversation_id: Any = None

    def save_bot(self, *steps: str, **texts: str) -> None:
        bot = self.system.settings.engine.model_name
        unknown = UnknownPolicy.model_validate({"steps": steps, **texts})
        policies = Policies(knowledge="shop", unknown=unknown)
        database, tenant_id = self.system.database, self.system.tenant_id
        save_bot(database, tenant_id, bot, bot, "", GenerationParams(), policies=policies)

    def ask(self, text: str, **changes: Any) -> Any:
        """The turn that comes of a question in the conversation."""
        request = self.system.request(text, conversation_id=self.conversation_id)
        turn = accept(self.system.database, request.model_copy(update=changes))
        self.conversation_id = turn.conversation_id
        self.system.wait_until_settled()
        return read_turn(self.system.database, self.system.tenant_id, turn.turn_id)

    def verdicts(self) -> list[str]:
        rows = self.system.database.run("SELECT verdict FROM turn_sources ORDER BY turn_id")
        return [row.verdict for row in rows]

    def gaps(self) -> list[tuple[str, str]]:
        rows = self.system.database.run(
            "SELECT question, verdict FROM knowledge_gaps ORDER BY turn_id"
        )
        return [(row.question, row.verdict) for row in rows]


@pytest.fixture
def shop(system: Any, library: Library, engine: Reading) -> Shop:
    return Shop(system, library, engine)


def test_a_question_that_the_collection_answers_goes_to_the_model(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        turn = shop.ask(KNOWN)
    assert "within 30 days" in shop.engine.prompts[0]
    assert turn.reply.usage.completion_tokens > 0
    assert shop.verdicts() == [Verdict.ANSWERED]
    assert shop.gaps() == []


def test_misses_in_a_row_climb_the_ladder_to_a_person(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        asked, unsure, handed = (shop.ask(text) for text in (NEAR, FOREIGN, "And who lost?"))
        assert shop.engine.prompts == []
        later = shop.ask("Hello?")
    first, *offered = asked.reply.content.split("\n")
    assert first.startswith("I am not sure which of these you mean")
    assert 1 <= len(offered) <= 3
    assert "1. " in offered[0]
    assert "How do I clean a copper pot?" in asked.reply.content
    assert unsure.reply.content.startswith("I am not sure: I found nothing about this")
    assert "asked a person" in handed.reply.content
    for turn in (asked, unsure, handed):
        assert turn.state is TurnState.COMPLETED
        assert (turn.reply.finish_reason, turn.reply.usage) == ("stop", Usage())
    assert later.state is TurnState.HANDED_OFF
    assert shop.verdicts() == [Verdict.CLARIFY, Verdict.UNCERTAIN, Verdict.HANDED_OFF]
    assert shop.gaps() == [
        (NEAR, "clarify"), (f"{NEAR}\n{FOREIGN}", "uncertain"), ("And who lost?", "handed_off")
    ]  # fmt: skip
    [row] = shop.system.database.run("SELECT handed_off_because FROM conversations")
    assert row.handed_off_because == "The bot does not know."


def test_who_chooses_what_was_offered_is_answered(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        shop.ask(NEAR)
        shop.ask("the 1st one")
    assert shop.verdicts() == [Verdict.CLARIFY, Verdict.ANSWERED]
    assert shop.engine.prompts[0].endswith("the 1st one")
    assert "half a lemon" in shop.engine.prompts[0]


def test_what_is_said_after_a_clarifying_question_adds_to_it(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        shop.ask(NEAR)
        shop.ask("I mean: what cleans stains?")
    assert shop.verdicts() == [Verdict.CLARIFY, Verdict.ANSWERED]


def test_an_answer_and_a_person_take_the_ladder_back_to_the_ground(shop: Shop) -> None:
    shop.save_bot("uncertain", "hand_off")
    with InlineWorker(shop.system.settings):
        for text in (FOREIGN, KNOWN, FOREIGN, FOREIGN):
            shop.ask(text)
        resume(shop.system.database, shop.system.tenant_id, shop.conversation_id)
        shop.ask(FOREIGN)
    assert shop.verdicts() == [
        Verdict.UNCERTAIN, Verdict.ANSWERED, Verdict.UNCERTAIN, Verdict.HANDED_OFF,
        Verdict.UNCERTAIN,
    ]  # fmt: skip


def test_the_last_step_is_repeated_where_no_person_is_to_come(shop: Shop) -> None:
    shop.save_bot("clarify", "uncertain")
    with InlineWorker(shop.system.settings):
        for text in (FOREIGN, NEAR, FOREIGN):
            shop.ask(text)
    # The ladder is not climbed down again: to ask what was meant came before.
    assert shop.verdicts() == [Verdict.UNCERTAIN] * 3


def test_the_bot_answers_in_the_script_of_the_question_or_in_its_owners_words(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        chinese = shop.ask("明天上海会下雨吗？")
        shop.conversation_id = None
        shop.save_bot("uncertain", uncertain="Ask me about kettles.")
        own = shop.ask(FOREIGN)
    assert chinese.reply.content.startswith("这个问题我不确定")
    assert own.reply.content == "Ask me about kettles."


def test_who_only_says_thanks_talks_to_the_model(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        shop.ask("Thanks!")
        shop.ask("你好")
        shop.ask("Refund?")
    assert shop.engine.prompts[:2] == ["Thanks!", "你好"]
    assert shop.verdicts()[:2] == [Verdict.CHAT, Verdict.CHAT]
    assert shop.verdicts()[2] != Verdict.CHAT


def test_a_bot_without_a_ladder_lets_its_model_answer_and_keeps_the_gap(shop: Shop) -> None:
    shop.save_bot()
    with InlineWorker(shop.system.settings):
        shop.ask(FOREIGN)
    assert len(shop.engine.prompts) == 1
    assert shop.verdicts() == [Verdict.UNANSWERED]
    assert shop.gaps() == [(FOREIGN, "unanswered")]


def test_a_client_that_brings_its_own_passages_is_not_declined(shop: Shop) -> None:
    params = GenerationParams(documents=(Document(title="Cup", text="Germany won in 1954."),))
    with InlineWorker(shop.system.settings):
        shop.ask(FOREIGN, params=params)
    assert "Germany won in 1954." in shop.engine.prompts[0]


def test_a_row_of_a_backlog_is_not_handed_to_a_person(shop: Shop) -> None:
    shop.save_bot("hand_off")
    with InlineWorker(shop.system.settings):
        turns = [shop.ask(text, lane=Lane.BATCH) for text in (FOREIGN, FOREIGN, KNOWN)]
    assert [turn.state for turn in turns] == [TurnState.COMPLETED] * 3
    assert shop.verdicts() == [Verdict.UNCERTAIN, Verdict.UNCERTAIN, Verdict.ANSWERED]


def test_a_second_attempt_has_the_verdict_of_the_first(shop: Shop) -> None:
    """The collection learns the answer between the two attempts, and the verdict stays."""

    def learn_and_fail() -> None:
        shop.library.write("cup.md", "# Cup\n\nGermany won the world cup in 1954.")
        shop.library.sync()
        raise EngineUnavailable("away")

    shop.save_bot()
    shop.engine.script = [learn_and_fail]
    with InlineWorker(shop.system.settings):
        shop.ask(FOREIGN)
        assert shop.engine.prompts[1] == shop.engine.prompts[0]
        assert shop.verdicts() == [Verdict.UNANSWERED]
        shop.ask(FOREIGN)
    assert "Germany won" in shop.engine.prompts[-1]
    assert [turn.attempt for turn in _turns(shop)] == [2, 1]


def test_clients_of_the_api_see_the_verdict_whole_and_in_streams(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.save_bot("uncertain")
    secret = create_key(shop.system.database, shop.system.tenant_id, "client")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    asked: Any = {
        "model": shop.system.settings.engine.model_name,
        "messages": [{"role": "user", "content": FOREIGN}],
    }
    with (
        InlineWorker(shop.system.settings),
        serving(shop.system.settings, listener, eventually),
        openai.OpenAI(api_key=secret, base_url=f"http://127.0.0.1:{port}/v1") as client,
    ):
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert whole.model_dump()["turnmill"] == {"verdict": "uncertain"}
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 0
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    verdicts = [(chunk.model_dump().get("turnmill") or {}).get("verdict") for chunk in chunks]
    assert verdicts[-1] == "uncertain"


def _turns(shop: Shop) -> list[Any]:
    return read_conversation(shop.system.database, shop.system.tenant_id, shop.conversation_id)
