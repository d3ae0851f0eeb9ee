"""A bot with a collection is shown passages, the same at each attempt at a turn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.knowledge.conftest import Library, Reading
from turnmill.producer.accept import accept
from turnmill.producer.tenants import save_bot
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import EngineUnavailable
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.draft import DOCUMENTS_HEADING

RETURNS = "# Returns\n\nA kettle that leaks may be sent back within 30 days."


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


@pytest.fixture
def shop(system: Any, library: Library) -> Library:
    bot = system.settings.engine.model_name
    policies = Policies(knowledge="shop")
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(), policies=policies)
    library.write("returns.md", RETURNS)
    library.sync()
    return library


def test_a_turn_is_shown_the_passages_that_its_question_finds(
    system: Any, shop: Library, engine: Reading
) -> None:
    with InlineWorker(system.settings):
        accept(system.database, system.request("My kettle leaks!"))
        accept(system.database, system.request("Who won the cup in 1954?"))
        system.wait_until_settled()
    about = {"kettle" in prompt: prompt for prompt in engine.prompts}
    assert DOCUMENTS_HEADING in about[True]
    assert "[1] Returns\nA kettle that leaks may be sent back within 30 days." in about[True]
    assert about[True].endswith("My kettle leaks!")
    assert about[False] == "Who won the cup in 1954?"
    kept = system.database.run("SELECT sources FROM turn_sources ORDER BY sources")
    assert [len(row.sources) for row in kept] == [0, 1]
    assert kept[1].sources[0]["uri"] == "returns.md"


def test_a_second_attempt_has_the_sources_of_the_first_whatever_became_of_the_documents(
    system: Any, shop: Library, engine: Reading
) -> None:
    def change_and_fail() -> None:
        shop.write("returns.md", RETURNS.replace("30 days", "60 days"))
        shop.sync()
        raise EngineUnavailable("away")

    engine.script = [change_and_fail]
    with InlineWorker(system.settings):
        accept(system.database, system.request("My kettle leaks!"))
        system.wait_until_settled()
        first, second = engine.prompts
        assert "30 days" in first
        assert second == first
        accept(system.database, system.request("My kettle still leaks!"))
        system.wait_until_settled()
    assert "60 days" in engine.prompts[-1]


def test_what_was_deleted_is_shown_to_no_later_turn(
    system: Any, shop: Library, engine: Reading, tmp_path: Path
) -> None:
    (shop.folder / "returns.md").unlink()
    shop.sync()
    with InlineWorker(system.settings):
        accept(system.database, system.request("My kettle leaks!"))
        system.wait_until_settled()
    assert engine.prompts == ["My kettle leaks!"]


def test_a_later_turn_is_not_shown_what_an_earlier_one_was(
    system: Any, shop: Library, engine: Reading
) -> None:
    with InlineWorker(system.settings):
        first = accept(system.database, system.request("My kettle leaks!"))
        accept(
            system.database,
            system.request("Thanks.", conversation_id=first.conversation_id),
        )
        system.wait_until_settled()
    assert engine.prompts[-1] == "Thanks."
