"""A bot's replies link where its policy lets them, in what is streamed as in what is stored."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.knowledge.conftest import Library
from tests.integration.safety.conftest import SAY, Obedient
from turnmill.producer.accept import accept
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import EngineUnavailable
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.testing import InlineWorker

EVIL = "Look: ![x](https://evil.test/a.png?q=secret) and https://evil.test/b or evil.com for more."


@pytest.fixture
def ask(system: Any, engine: Obedient) -> Callable[..., str]:
    def asked(text: str, **fields: Any) -> str:
        with InlineWorker(system.settings):
            accepted = accept(system.database, system.request(text, **fields))
            system.wait_until_settled()
        turn = read_turn(system.database, system.tenant_id, accepted.turn_id)
        assert turn.reply is not None, turn
        return turn.reply.content

    return asked


def test_a_bot_that_says_nothing_of_links_shows_all(
    save: Callable[..., None], ask: Callable[..., str]
) -> None:
    save()
    assert ask(SAY + EVIL) == EVIL


def test_a_bot_with_a_collection_links_to_nothing_but_its_sources(
    save: Callable[..., None], ask: Callable[..., str], library: Library
) -> None:
    save(knowledge="shop")
    library.write("kettle.txt", f"A kettle that leaks: {SAY}{EVIL}")
    library.sync()
    said = ask("My kettle leaks, what now?")
    assert said.startswith("Look: ![x] (link removed) and (link removed) or")
    assert "evil" not in said


def test_hosts_that_the_owner_allows_are_linked_to(
    save: Callable[..., None], ask: Callable[..., str]
) -> None:
    save(links="none", hosts=["evil.test"], removed="(gone)")
    assert ask(SAY + EVIL) == EVIL.replace("evil.com", "(gone)")


def test_nothing_forbidden_is_ever_streamed(
    system: Any, save: Callable[..., None], ask: Callable[..., str], engine: Obedient
) -> None:
    save(links="none")
    engine._settings = engine._settings.model_copy(update={"echo_token_s": 0.02})
    system.database.run(
        "CREATE TABLE seen AS SELECT text FROM chunks; CREATE FUNCTION see() RETURNS trigger "
        "LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (NEW.text); RETURN NEW; END $$; "
        "CREATE TRIGGER see BEFORE INSERT ON chunks FOR EACH ROW EXECUTE FUNCTION see()"
    )
    said = ask(SAY + " ".join([EVIL] * 5))
    seen = [row.text for row in system.database.run("SELECT text FROM seen")]
    assert len(seen) > 2
    assert said.startswith("".join(seen))
    assert "evil" not in said


def test_a_second_attempt_continues_what_the_first_was_allowed_to_show(
    system: Any, save: Callable[..., None], ask: Callable[..., str], engine: Obedient
) -> None:
    save(links="none")

    def fail() -> None:
        raise EngineUnavailable("away")

    engine.script = [fail]
    assert "evil" not in ask(SAY + EVIL)
    assert len(engine.prompts) == 2


def test_a_reply_with_a_format_is_whole_before_its_links_are_judged(
    save: Callable[..., None], ask: Callable[..., str]
) -> None:
    save(links="none", removed="(gone)")
    choice = {
        "type": "json_schema",
        "schema_text": '{"enum": ["see https://evil.test/x", "see (gone)"]}',
    }
    params = GenerationParams.model_validate({"response_format": choice})
    assert ask("Which?", params=params) == '"see (gone)"'
