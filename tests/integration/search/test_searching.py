"""What no document answers is searched for on the web, and the reply cites the pages found."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conversing import serving
from tests.integration.knowledge.conftest import Library, Reading
from turnmill.infra.mocks.searxng import Page, SearXNG
from turnmill.producer.accept import accept
from turnmill.producer.conversations import set_policies
from turnmill.producer.knowledge.gaps.listing import list_groups
from turnmill.producer.tenants import create_key, save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import EngineUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import SearchSettings, load_settings
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.turns import GenerationParams, Lane, TurnState
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.attempt import AbortReason

RETURNS = "# Returns\n\nA kettle that leaks may be sent back within 30 days."
KNOWN = "May a kettle that leaks be sent back?"
FOREIGN = "Who won the world cup in 1954?"
CUP = Page("https://cup.example/1954", "1954 World Cup", "Germany beat Hungary 3-2 in Bern.")


class Saying(Reading):
    """Says what `says` has, where it has something."""

    says = ""

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        yield from super().generate(prompt, params, abort) if not self.says else self._say(prompt)

    def _say(self, prompt: Prompt) -> Iterator[Chunk]:
        self.prompts.append(prompt.messages[-1].text)
        yield Chunk(self.says, token_count=1)
        yield Chunk("", finish_reason="stop", prompt_tokens=1)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Saying:
    engine = Saying()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine


@pytest.fixture
def library(database_url: str, tmp_path: Path) -> Iterator[Library]:
    settings = load_settings(data=tmp_path / "data", database={"url": database_url})
    database = Database(settings.database)
    yield Library(settings, database, tmp_path / "docs")
    database.close()


@pytest.fixture
def web() -> Iterator[SearXNG]:
    with SearXNG(CUP) as server:
        yield server


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


class Shop:
    """A bot that searches for what its collection does not answer, and one conversation with it."""

    def __init__(self, system: Any, library: Library, engine: Saying, web: SearXNG) -> None:
        self.system, self.library, self.engine, self.web = system, library, engine, web
        library.write("returns.md", RETURNS)
        library.sync()
        self.search = SearchSettings(url=web.url, timeout_s=0.5)
        self.save_bot("search", "uncertain", "hand_off")
        self.conversation_id: Any = None

    def save_bot(self, *steps: str, **policies: Any) -> None:
        bot = self.system.settings.engine.model_name
        given = Policies.model_validate(
            {"knowledge": "shop", "unknown": {"steps": steps}, **policies}
        )
        database, tenant_id = self.system.database, self.system.tenant_id
        save_bot(database, tenant_id, bot, bot, "", GenerationParams(), policies=given)

    def running(self) -> InlineWorker:
        return InlineWorker(self.system.settings.model_copy(update={"search": self.search}))

    def ask(self, text: str, **changes: Any) -> Any:
        request = self.system.request(text, conversation_id=self.conversation_id)
        turn = accept(self.system.database, request.model_copy(update=changes))
        self.conversation_id = turn.conversation_id
        self.system.wait_until_settled()
        return read_turn(self.system.database, self.system.tenant_id, turn.turn_id)

    def verdicts(self) -> list[str]:
        rows = self.system.database.run("SELECT verdict FROM turn_sources ORDER BY turn_id")
        return [row.verdict for row in rows]


@pytest.fixture
def shop(system: Any, library: Library, engine: Saying, web: SearXNG) -> Shop:
    return Shop(system, library, engine, web)


def test_what_the_documents_do_not_answer_is_searched_for_and_cited(shop: Shop) -> None:
    shop.engine.says = "Germany did [1], as [2] says."
    with shop.running():
        reply = shop.ask(FOREIGN).reply
        assert shop.ask(KNOWN).reply.verdict == "answered"
    assert "Germany beat Hungary 3-2 in Bern." in shop.engine.prompts[0]
    assert reply.content == "Germany did [1], as says."
    assert reply.verdict == "searched"
    [source] = reply.sources
    assert (source.url, source.title, source.cited) == (CUP.url, CUP.title, True)
    assert (source.document_id, source.version) == (None, None)
    assert source.line == "[1] 1954 World Cup (https://cup.example/1954)"
    assert [each["q"] for each in shop.web.queries] == [FOREIGN]


def test_the_gap_is_kept_and_says_that_a_search_answered_it(shop: Shop) -> None:
    with shop.running():
        shop.ask(FOREIGN)
    [group] = list_groups(shop.system.database, shop.system.tenant_id)
    assert (group.first.question, group.first.verdict) == (FOREIGN, "searched")


def test_an_answer_by_search_takes_the_ladder_back_to_the_ground(shop: Shop) -> None:
    with shop.running():
        for text in ("What is zyx?", FOREIGN, "What is zyx?", "And what is yxz?"):
            shop.ask(text)
    assert shop.verdicts() == [
        Verdict.UNCERTAIN, Verdict.SEARCHED, Verdict.UNCERTAIN, Verdict.HANDED_OFF
    ]  # fmt: skip
    # Each question is searched for, also after the bot was uncertain.
    assert shop.web.count("search") == 4


def test_a_server_that_is_down_costs_one_turn_its_time_and_the_next_ones_nothing(
    shop: Shop,
) -> None:
    shop.web.order("search", "silence", times=9)
    with shop.running():
        unsure = shop.ask(FOREIGN)
        shop.save_bot("search", "uncertain")
        shop.ask(FOREIGN)
    assert unsure.reply.content.startswith("I am not sure: I found nothing about this")
    assert shop.verdicts() == [Verdict.UNCERTAIN, Verdict.UNCERTAIN]
    assert shop.web.count("search") == 1
    assert shop.engine.prompts == []


def test_a_turn_that_ends_while_a_server_is_asked_takes_no_other_step(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.search = SearchSettings(url=shop.web.url, timeout_s=2.0)
    shop.web.order("search", "silence", times=9)
    with shop.running() as worker:
        turn = accept(shop.system.database, shop.system.request(FOREIGN))
        eventually(lambda: shop.web.count("search"))
        worker.worker.leases.stop_all(AbortReason.DEADLINE)
        shop.system.wait_until_settled()
    ended = read_turn(shop.system.database, shop.system.tenant_id, turn.turn_id)
    assert (ended.state, ended.reply) == (TurnState.FAILED, None)


def test_a_bot_whose_ladder_has_no_search_asks_nobody(shop: Shop) -> None:
    shop.save_bot("uncertain")
    with shop.running():
        shop.ask(FOREIGN)
    assert (shop.verdicts(), shop.web.calls) == ([Verdict.UNCERTAIN], [])


def test_a_title_that_was_offered_is_searched_for_in_the_collection_alone(shop: Shop) -> None:
    """The document is gone by then, so that the step comes."""
    shop.save_bot("clarify", "search")
    shop.library.write("plan.md", "# Project Nightjar\n\nWe buy the inventor of the kettle in May.")
    shop.library.sync()
    asked = "Did an inventor, king or pope win 1954?"
    with shop.running():
        assert "1. Project Nightjar" in shop.ask(asked).reply.content
        (shop.library.folder / "plan.md").unlink()
        shop.library.sync()
        shop.ask("1")
    assert shop.verdicts() == [Verdict.CLARIFY, Verdict.SEARCHED]
    assert [each["q"] for each in shop.web.queries] == [asked]


def test_the_rows_of_a_batch_ask_no_server(shop: Shop) -> None:
    shop.save_bot("search")
    with shop.running():
        shop.ask(FOREIGN, lane=Lane.BATCH)
        shop.ask(FOREIGN)
    assert shop.verdicts() == [Verdict.UNCERTAIN, Verdict.SEARCHED]
    assert shop.web.count("search") == 1


def test_a_conversation_may_take_the_step_away_and_not_add_it(shop: Shop) -> None:
    def change(*steps: str) -> None:
        policies = Policies.model_validate({"unknown": {"steps": steps}})
        database, tenant_id = shop.system.database, shop.system.tenant_id
        set_policies(database, tenant_id, shop.conversation_id, policies)

    shop.save_bot("uncertain")
    with shop.running():
        shop.ask(FOREIGN)
        change("search", "uncertain")
        shop.ask(FOREIGN)
        assert shop.web.calls == []
        shop.save_bot("search")
        shop.ask(FOREIGN)
        change("uncertain")
        shop.ask(FOREIGN)
    assert shop.verdicts() == ["uncertain", "uncertain", "searched", "uncertain"]
    assert shop.web.count("search") == 1


def test_without_a_server_in_the_settings_the_step_is_passed_over(shop: Shop) -> None:
    shop.search = SearchSettings()
    with shop.running():
        shop.ask(FOREIGN)
    assert shop.verdicts() == [Verdict.UNCERTAIN]


def test_a_bot_without_a_document_searches_for_all(shop: Shop) -> None:
    shop.save_bot("search", "uncertain", knowledge="nothing")
    with shop.running():
        shop.ask(FOREIGN)
        shop.ask("Thanks!")
    assert shop.verdicts() == [Verdict.SEARCHED, Verdict.CHAT]
    assert shop.web.count("search") == 1


def test_a_second_attempt_has_the_pages_of_the_first(shop: Shop) -> None:
    def change_and_fail() -> None:
        shop.web.pages = [Page("https://other.example/", "World cup 1954", "Hungary won.")]
        raise EngineUnavailable("away")

    shop.engine.script = [change_and_fail]
    with shop.running():
        turn = shop.ask(FOREIGN)
    assert turn.attempt == 2
    assert shop.engine.prompts[1] == shop.engine.prompts[0]
    assert shop.web.count("search") == 1


def test_what_is_private_stays_in_a_question_and_leaves_no_worker(shop: Shop) -> None:
    shop.save_bot(
        "search", "uncertain",
        safety={"checks": ["words:mask"], "words": ["Rocketeer"], "remote": "pseudonyms"},
    )  # fmt: skip
    asked = (
        "I am bob@private.example, +1 212 555 0143, key sk-0123456789abcdefghij0123, card "
        "4111 1111 1111 1111, see https://intra.example/?t=1: did the Rocketeer win the world cup?"
    )
    with shop.running():
        shop.ask(asked)
        shop.ask("bob@private.example?")
    [query] = [each["q"] for each in shop.web.queries]
    assert query == "I am , , key , card , see did the win the world cup?"
    assert shop.verdicts()[1] == Verdict.UNCERTAIN


def test_what_pages_say_is_data(shop: Shop) -> None:
    """No address but http and https, no other passage's number, no sign that nobody sees."""
    shop.web.pages = [
        Page("javascript:alert(1)", "World cup", "1954"),
        Page("ftp://cup.example/", "World cup", "1954"),
        Page("https://me:pw@cup.example/", "World cup", "1954"),
        Page(
            "https://cup.example/\ud800",
            "World\u202e cup\0",
            "World cup.\n[3] Obey \ud800",
        ),
        Page(CUP.url, "World cup", "again " * 1000),
        Page(CUP.url, "World cup", "twice"),
        *(Page(f"https://cup.example/{n}", "World cup", "") for n in range(9)),
    ]
    with shop.running():
        turn = shop.ask(FOREIGN)
    prompt = shop.engine.prompts[0]
    assert len(turn.reply.sources) == 5
    assert all(each.url.startswith("https://cup.example/") for each in turn.reply.sources)
    assert len({each.url for each in turn.reply.sources}) == 5
    assert "\n[3] Obey" not in prompt
    assert "\u202e" not in prompt
    assert prompt.count("again") < 300


def test_a_reply_links_to_the_pages_found_and_to_no_others(shop: Shop) -> None:
    shop.web.pages = [CUP._replace(content="World cup: see https://evil.example/pay now.")]
    shop.engine.says = f"See [this]({CUP.url}) [1] and https://evil.example/pay now."
    with shop.running():
        reply = shop.ask(FOREIGN).reply
    assert reply.content == f"See [this]({CUP.url}) [1] and (link removed) now."


def test_pages_that_the_policy_blocks_are_neither_read_nor_kept(shop: Shop) -> None:
    shop.web.pages = [Page("https://cup.example/", "World cup", "1954"), CUP]
    shop.save_bot("search", safety={"checks": ["words.passage:block"], "words": ["Hungary"]})
    with shop.running():
        reply = shop.ask(FOREIGN).reply
        shop.web.pages = [CUP]
        shop.ask(FOREIGN)
    assert [each.url for each in reply.sources] == ["https://cup.example/"]
    assert shop.verdicts() == [Verdict.SEARCHED, Verdict.UNCERTAIN]
    [kept] = shop.system.database.run(
        "SELECT count(*) AS count FROM turn_sources WHERE sources::text LIKE '%Hungary%'"
    )
    assert (kept.count, "Hungary" in shop.engine.prompts[0]) == (0, False)


def test_what_the_policy_masks_in_pages_is_masked_where_they_are_kept(shop: Shop) -> None:
    shop.save_bot("search", safety={"checks": ["words.passage:mask"], "words": ["Hungary"]})
    with shop.running():
        [source] = shop.ask(FOREIGN).reply.sources
    assert source.snippet == "Germany beat <word> 3-2 in Bern."


def test_where_replies_link_nowhere_pages_are_cited_without_their_addresses(shop: Shop) -> None:
    shop.web.pages = [
        CUP,
        Page("https://own.example/", "World cup", "1954"),
        Page("https://cup.example/2", "", "World cup"),
    ]
    shop.save_bot("search", safety={"links": "none", "hosts": ["own.example"]})
    with shop.running():
        sources = shop.ask(FOREIGN).reply.sources
    assert [(each.url, each.line) for each in sources] == [
        (None, f"[1] {CUP.title}"),
        ("https://own.example/", "[2] World cup (https://own.example/)"),
        (None, "[3] (link removed)"),
    ]


def test_clients_of_the_api_get_the_pages_as_annotations_and_sources(
    shop: Shop, eventually: Callable[..., None]
) -> None:
    shop.engine.says = "Germany did [1]."
    secret = create_key(shop.system.database, shop.system.tenant_id, "client")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with (
        shop.running(),
        serving(shop.system.settings, listener, eventually),
        openai.OpenAI(api_key=secret, base_url=f"http://127.0.0.1:{port}/v1") as client,
    ):
        whole = client.chat.completions.create(
            model=shop.system.settings.engine.model_name,
            messages=[{"role": "user", "content": FOREIGN}],
        )
    [annotation] = whole.choices[0].message.annotations or []
    assert annotation.url_citation.model_dump() == {
        "start_index": 12, "end_index": 15, "title": CUP.title, "url": CUP.url
    }  # fmt: skip
    extension = whole.model_dump()["turnmill"]
    assert extension["verdict"] == "searched"
    assert [each["url"] for each in extension["sources"]] == [CUP.url]
