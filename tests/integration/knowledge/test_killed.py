"""Whoever dies between a search and the reply, the turn keeps what was found and the verdict."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.knowledge.conftest import Library, Reading
from turnmill.infra.mocks.searxng import Page, SearXNG
from turnmill.producer.accept import accept
from turnmill.producer.tenants import save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.channels.unknown import Step, UnknownPolicy
from turnmill.schemas.turns import GenerationParams, TurnState
from turnmill.workers.context.consult import decline
from turnmill.workers.testing import InlineWorker

RETURNS = "# Returns\n\nA kettle that leaks may be sent back within 30 days."


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    return make_system(database_url, valkey_url)


@pytest.fixture
def shop(system: Any, library: Library) -> Library:
    bot = system.settings.engine.model_name
    unknown = UnknownPolicy(steps=(Step.UNCERTAIN, Step.HAND_OFF))
    policies = Policies(knowledge="shop", unknown=unknown)
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(), policies=policies)
    library.write("returns.md", RETURNS)
    library.sync()
    return library


def pinned(system: Any) -> list[Any]:
    return system.database.run("SELECT turn_id, sources, verdict FROM turn_sources")


def test_a_killed_worker_leaves_its_sources_to_the_next_one(
    system: Any, shop: Library, eventually: Callable[..., None]
) -> None:
    system.start("relay")
    slow = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.2"}
    doomed = system.start_worker(**slow)
    turn = accept(system.database, system.request("My kettle leaks!"))
    eventually(lambda: system.database.run("SELECT 1 FROM chunks"))
    before = pinned(system)
    doomed.kill()
    shop.write("returns.md", RETURNS.replace("30 days", "60 days"))
    shop.sync()
    system.start_worker()
    system.wait_until_settled()
    assert pinned(system) == before
    assert before[0].verdict == "answered"
    reply = read_turn(system.database, system.tenant_id, turn.turn_id).reply
    assert reply is not None
    assert "30 days" in reply.content
    assert "60 days" not in reply.content


def test_a_worker_killed_after_a_search_leaves_its_pages_to_the_next_one(
    system: Any, shop: Library, eventually: Callable[..., None]
) -> None:
    """The web has changed by then, and nobody looks again."""
    bot = system.settings.engine.model_name
    policies = Policies(knowledge="shop", unknown=UnknownPolicy(steps=(Step.SEARCH,)))
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(), policies=policies)
    system.start("relay")
    page = Page("https://cup.example/1954", "1954 World Cup", "Germany beat Hungary in Bern.")
    with SearXNG(page) as web:
        searching = {"TURNMILL_SEARCH__URL": web.url}
        slow = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.2"}
        doomed = system.start_worker(**searching, **slow)
        turn = accept(system.database, system.request("Who won the world cup in 1954?"))
        eventually(lambda: system.database.run("SELECT 1 FROM chunks"))
        before = pinned(system)
        doomed.kill()
        web.pages = [Page("https://other.example/", "World cup 1954", "Hungary beat Germany.")]
        system.start_worker(**searching)
        system.wait_until_settled()
        assert web.count("search") == 1
    assert pinned(system) == before
    assert before[0].verdict == "searched"
    ended = read_turn(system.database, system.tenant_id, turn.turn_id)
    assert (ended.attempt, ended.reply is not None) == (2, True)
    assert ended.reply is not None
    assert "Germany beat Hungary" in ended.reply.content
    assert [(each.url, each.cited) for each in ended.reply.sources] == [(page.url, True)]


def test_a_reply_without_the_model_is_the_same_after_a_death(
    system: Any, shop: Library, engine: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection knows the answer when the turn is taken over; it was declined before."""
    deaths = []

    def die_once(*arguments: Any) -> Any:
        if not deaths:
            deaths.append(pinned(system))
            shop.write("cup.md", "# Cup\n\nGermany won the world cup in 1954.")
            shop.sync()
            raise SystemExit
        return decline(*arguments)

    monkeypatch.setattr("turnmill.workers.turn.answer.decline", die_once)
    with InlineWorker(system.settings):
        accepted = accept(system.database, system.request("Who won the world cup in 1954?"))
        system.wait_until_settled()
    assert pinned(system) == deaths[0]
    assert deaths[0][0].verdict == "uncertain"
    turn = read_turn(system.database, system.tenant_id, accepted.turn_id)
    assert (turn.state, turn.attempt) == (TurnState.COMPLETED, 2)
    assert turn.reply is not None
    assert turn.reply.content.startswith("I am not sure")
    assert engine.prompts == []
    assert len(system.database.run("SELECT 1 FROM knowledge_gaps")) == 1
