"""A user who is forgotten is nowhere: not in the database or the files, nor after a restore.

A word of the user's is put wherever a user's words can stand: `words.py` says where, and a unit
test that no column is missing there. Then each column of each table is searched, declared or not.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from tests.conversing import message
from tests.integration.memory.conftest import Listening
from tests.integration.memory.world import World
from turnmill.compression.conversations import tenant_conversations
from turnmill.producer.accept import accept
from turnmill.producer.cli.memory import erasing
from turnmill.producer.converse import receive
from turnmill.producer.memory import users
from turnmill.producer.memory.forgetting import forget_user
from turnmill.producer.tenants import create_key, set_training
from turnmill.producer.turns import read_conversation, read_turn
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import InvalidInput, StorageUnavailable
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.memory.erasing import erase_conversation
from turnmill.schemas.store.memory.erasures import find_erasure, list_erasures
from turnmill.schemas.store.memory.finding import Person
from turnmill.schemas.store.memory.words import HELD
from turnmill.schemas.tenants import Scope
from turnmill.schemas.turns import TurnState
from turnmill.workers.testing import InlineWorker

#: A word of the user who is forgotten, which is the user's id too; and one of another user.
WORD, OTHERS = "quetzalcoatlus", "archaeopteryx"


@pytest.fixture
def full_world(world: World) -> World:
    """One in which both users have said their word everywhere."""
    for word in (WORD, OTHERS):
        world.live(word)
    world.measure()
    for word in (WORD, OTHERS):
        world.fill(word)
    return world


def test_a_word_of_a_user_who_is_forgotten_is_nowhere(full_world: World) -> None:
    world = full_world
    assert HELD.keys() - world.tables_with(WORD) == set()
    assert world.files_with(WORD)
    kept = ("turns", "attempts", "replies", "ratings", "study_items", "batch_moves")
    count = "SELECT " + ", ".join(f"(SELECT count(*) FROM {name}) AS {name}" for name in kept)
    before = world.database.run(count)
    world.forget(WORD)
    assert world.tables_with(WORD) == set()
    assert world.files_with(WORD) == []
    assert world.database.run(count)[0][:-1] == before[0][:-1]


def test_what_others_said_stays_until_they_are_forgotten(full_world: World) -> None:
    world = full_world
    world.forget(WORD)
    assert HELD.keys() - world.tables_with(OTHERS) == set()
    assert len(world.files_with(OTHERS)) == 1
    world.forget(OTHERS)
    assert world.tables_with(OTHERS) == set()


def test_a_restored_backup_forgets_again(
    full_world: World, database_url: str, make_copy: Callable[[str], str], eventually: Any
) -> None:
    full_world.database.close()  # it opens again; no connection may be open while it is copied
    backup = make_copy(database_url)
    full_world.forget(WORD)
    settings = full_world.settings.database.model_copy(update={"url": SecretStr(backup)})
    database = Database(settings)
    old = World(full_world.system, database, full_world.settings.data)
    old.settings = old.settings.model_copy(update={"database": settings})
    try:
        assert HELD.keys() - old.tables_with(WORD) == set()
        assert list_erasures(database) == []
        with InlineWorker(old.settings):
            eventually(lambda: len(list_erasures(database)) == 2)
            eventually(lambda: list_erasures(database, is_open=True) == [])
        assert old.tables_with(WORD) == set()
        assert HELD.keys() - old.tables_with(OTHERS) == set()
    finally:
        database.close()


def test_who_comes_back_is_remembered_anew(world: World) -> None:
    world.live(WORD)
    world.forget(WORD)
    users.remember(world.database, world.tenant_id, f"api:{WORD}", "city", "Bremen")
    turn = world.call(WORD, f"Do you know my {WORD}?")
    assert world.erase() == []
    assert read_turn(world.database, world.tenant_id, turn.turn_id).messages[0].text[:2] == "Do"
    found = find_erasure(world.database, world.tenant_id, f"api:{WORD}")
    assert found is not None
    assert (found.key, found.done_at is None) == (None, False)


def test_a_job_that_is_interrupted_resumes(
    full_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise StorageUnavailable("The disk is away.")

    with monkeypatch.context() as patch:
        for call in ("delete", "owned_since"):
            patch.setattr(full_world.storage, call, fail)
        with pytest.raises(StorageUnavailable):
            full_world.forget(WORD)
    assert full_world.tables_with(WORD)
    full_world.erase()
    assert full_world.tables_with(WORD) == set()
    assert full_world.files_with(WORD) == []


def test_an_erasure_that_fails_keeps_no_later_one_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in (WORD, OTHERS):
        world.call(word, f"A {word}!")
    for word in (WORD, OTHERS):
        forget_user(world.database, world.tenant_id, f"api:{word}")

    def fail(database: Database, person: Person, *_: Any, **__: Any) -> Counter[str] | None:
        if WORD in person.key:
            raise StorageUnavailable("The disk is away.")
        return erase_conversation(database, person, *_, **__)

    monkeypatch.setattr("turnmill.workers.upkeep.erasures.erase_conversation", fail)
    with pytest.raises(StorageUnavailable):
        world.erase()
    assert world.tables_with(OTHERS) == set()
    assert world.tables_with(WORD)


def test_a_user_is_forgotten_by_command(world: World, turnmill: Any, tmp_path: Path) -> None:
    world.call(WORD, f"A {WORD}!")
    status, said = turnmill("users", "forget", f"api:{WORD}", "--yes")
    assert (status, "All is erased." in said) == (0, True), said
    assert world.tables_with(WORD) == set()
    assert "not yet" not in turnmill("users", "erasures")[1]
    assert (tmp_path / "erasures.jsonl").is_file()
    world.database.run("DELETE FROM erasures RETURNING at")
    status, said = turnmill("users", "reapply")
    assert (status, "1 erasures were new" in said) == (0, True), said
    assert turnmill("users", "reapply", str(tmp_path / "absent"))[0] == 64


def test_what_is_left_of_erased_turns_can_be_looked_at(world: World, turnmill: Any) -> None:
    world.live(WORD)
    rows = world.database.run("SELECT id, conversation_id FROM turns ORDER BY id")
    world.forget(WORD)
    assert rows
    commands = [("turns", "list"), ("parked", "list"), ("conversations", "list")]
    commands += [("ratings", "summary")]
    commands += [("turns", "show", show_id(Prefix.TURN, row.id)) for row in rows]
    shown = {show_id(Prefix.CONVERSATION, row.conversation_id) for row in rows}
    commands += [("conversations", "show", conversation) for conversation in sorted(shown)]
    for words in commands:
        status, said = turnmill(*words)
        assert (words, status, "Traceback" in said) == (words, 0, False), said
        assert WORD not in said
    parked = turnmill("parked", "replay", "--all")
    assert "Traceback" not in parked[1]
    assert world.database.run("SELECT FROM turns WHERE state IN ('queued', 'waiting')") == []


def test_a_parked_turn_of_another_user_stays_listed(
    world: World, turnmill: Any, serve_api: Any
) -> None:
    first = world.call(WORD, f"A {WORD}!")
    request = world.system.request(
        "And then?", user_key=f"api:{OTHERS}", conversation_id=first.conversation_id
    )
    parked = accept(world.database, request).turn_id
    world.end(parked, TurnState.PARKED)
    world.database.run(
        "UPDATE turns SET error_code = 'engine_error', error_message = %s WHERE id = %s "
        "RETURNING id",
        (f"No {WORD} here.", parked),
    )
    world.forget(WORD)
    assert world.tables_with(WORD) == set()
    name = show_id(Prefix.TURN, parked)
    for words in (("parked", "list"), ("parked", "show", name), ("turns", "show", name)):
        status, said = turnmill(*words)
        assert (words, status, "Erased." in said) == (words, 0, True), said
        assert name in said
    admin = create_key(world.database, world.tenant_id, "admin", [Scope.ADMIN])
    headers = {"Authorization": f"Bearer {admin}"}
    with serve_api(world.settings) as url, httpx.Client(base_url=url, headers=headers) as client:
        page, turn = (client.get(path).json() for path in ("/parked", f"/parked/{name}"))
    assert page["errors"] == [
        {"error_code": "engine_error", "error_message": "Erased.", "count": 1}
    ]
    assert [each["turn_id"] for each in page["turns"]] == [turn["turn_id"]] == [name]


def test_what_still_is_being_sent_is_named(
    world: World, turnmill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "WAIT_S", 0.0)
    world.write(f"A {WORD}!", f"U{WORD}")
    world.database.run('UPDATE deliveries SET progress = \'{"status": "shown"}\' RETURNING id')
    status, said = turnmill("users", "forget", f"slack:U{WORD}", "--yes")
    assert (status, "1 conversations wait" in said) == (0, True), said
    assert "not yet" in turnmill("users", "erasures")[1]


def test_a_user_is_forgotten_by_call(world: World, serve_api: Any) -> None:
    world.call(WORD, f"A {WORD}!")
    key = create_key(world.database, world.tenant_id, "test", [Scope.TURNS])
    admin = create_key(world.database, world.tenant_id, "admin", [Scope.ADMIN])
    with serve_api(world.settings) as url, httpx.Client(base_url=url) as client:

        def call(method: str, path: str, secret: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"}
            return client.request(method, f"/users/api:{WORD}{path}", headers=headers)

        assert call("DELETE", "", key).status_code == 403
        assert call("GET", "/erasure", admin).status_code == 404
        assert call("DELETE", "", admin).status_code == 202
        assert call("GET", "/erasure", admin).json()["done_at"] is None
        world.settle()
        world.erase()
        assert call("GET", "/erasure", admin).json()["done_at"] is not None
    assert world.tables_with(WORD) == set()


def test_an_open_turn_of_the_user_is_cancelled(system: Any) -> None:
    turn = accept(system.database, system.request("Where is it?", user_key="api:ada"))
    forget_user(system.database, system.tenant_id, "api:ada")
    assert read_turn(system.database, system.tenant_id, turn.turn_id).state is TurnState.CANCELLED
    assert system.database.run("SELECT FROM outbox") == []


def test_forgetting_locks_conversations_before_users_as_messages_do(
    system: Any, database_url: str, eventually: Any
) -> None:
    users.remember(system.database, system.tenant_id, "api:ada", "city", "Bremen")
    accept(system.database, system.request("Where is it?", user_key="api:ada"))
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as link:
        link.execute("SELECT 1 FROM conversations FOR UPDATE")
        forgotten = pool.submit(forget_user, system.database, system.tenant_id, "api:ada")
        eventually(lambda: system.database.run(waits, (link.info.dbname,)))
        link.execute("SELECT 1 FROM users FOR UPDATE NOWAIT")
        link.rollback()
        forgotten.result(20)


def test_a_reply_to_another_user_of_the_thread_is_waited_for(world: World) -> None:
    first = world.write(f"A {WORD}!", f"U{WORD}", "shared")
    said = message(f"And an {OTHERS}?", author=f"U{OTHERS}", thread="shared")
    receive(world.database, "slack", world.tenant_id, world.bot, Policies(), said)
    forget_user(world.database, world.tenant_id, f"slack:U{WORD}")
    assert [each.waiting for each in world.erase()] == [1]
    world.settle()
    world.forget(WORD)
    assert first.conversation_id is not None
    mine, theirs = read_conversation(world.database, world.tenant_id, first.conversation_id)
    assert (mine.messages, mine.author) == ((), None)
    assert [each.text for each in theirs.messages] == [f"And an {OTHERS}?"]
    # The reply may repeat what was said before it.
    assert theirs.reply is not None
    assert theirs.reply.content == ""
    assert theirs.reply.usage.completion_tokens > 0


def test_no_model_learns_from_what_was_erased(world: World) -> None:
    first = world.call(WORD, f"A {WORD}!")
    world.call(OTHERS, "What was that?", first.conversation_id)
    set_training(world.database, "default", is_allowed=True)
    (before,) = tenant_conversations(world.database, "default")
    assert len(before.messages) == 4
    world.forget(WORD)
    with pytest.raises(InvalidInput, match="no answered conversation"):
        tenant_conversations(world.database, "default")


def test_later_prompts_have_nothing_of_what_was_erased(world: World, engine: Listening) -> None:
    first = world.call(WORD, f"A {WORD}!")
    world.forget(WORD)
    world.call(OTHERS, "What was that?", first.conversation_id)
    assert WORD not in str(engine.prompts[-1])
    assert len(engine.prompts[-1]) == 2


def test_a_conversation_that_postgres_refuses_to_change_keeps_no_other_of_the_user(
    world: World,
) -> None:
    first, _, last = [world.call(WORD, f"What is a {WORD}?") for _ in range(3)]
    world.database.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE check_violation; END $$"
    )
    world.database.run(
        "CREATE TRIGGER refuse BEFORE UPDATE ON turns FOR EACH ROW WHEN (OLD.conversation_id IN "
        f"('{first.conversation_id}', '{last.conversation_id}')) EXECUTE FUNCTION refuse()"
    )
    forget_user(world.database, world.tenant_id, f"api:{WORD}")
    with pytest.raises(psycopg.errors.CheckViolation):
        world.erase()
    said = f"SELECT conversation_id AS id FROM turns WHERE input::text LIKE '%{WORD}%'"
    left = {row.id for row in world.database.run(said)}
    assert left == {first.conversation_id, last.conversation_id}
    assert len(list_erasures(world.database, is_open=True)) == 1
    world.database.run("DROP TRIGGER refuse ON turns")
    world.erase()
    assert world.database.run(said) == []
    assert list_erasures(world.database, is_open=True) == []
