"""Files of erased turns are searched for in what is left, and go with the last who sent them."""

import json
import random
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.integration.memory.world import World, files_of, forget, send
from turnmill.producer.accept import accept
from turnmill.producer.memory.forgetting import forget_user
from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files.files import Purpose
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.memory import orphans
from turnmill.schemas.store.memory.erasures import (
    Erasure,
    add_erasures,
    list_erasures,
)
from turnmill.schemas.turns import TurnState
from turnmill.workers.upkeep.erasures import erase_all

WORD, OTHERS = "quetzalcoatlus", "archaeopteryx"


def test_others_write_in_the_users_conversation_while_files_are_searched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = world.call(WORD, f"A {WORD}!")
    send(world, WORD, world.upload(WORD))
    look, written = orphans._look, []

    def write(*slice_: Any) -> Any:
        # Its connection would be given up after ten seconds behind a lock.
        another = world.system.request("Hi", conversation_id=said.conversation_id,
                                       user_key=f"api:{OTHERS}")  # fmt: skip
        written.append(accept(world.database, another))
        return look(*slice_)

    monkeypatch.setattr(orphans, "_look", write)
    forget(world, WORD)
    assert len(written) >= 2
    assert world.tables_with(WORD) == set()


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one turn, and the last minute is none of its own."""
    monkeypatch.setattr(orphans, "FIRST_ROWS", 1)
    monkeypatch.setattr(orphans, "MOST_ROWS", 1)
    monkeypatch.setattr(orphans, "LATE", timedelta(0))


def test_a_file_of_two_users_goes_with_the_last_of_them(world: World, short_slices: None) -> None:
    shared, own = world.upload("shared"), world.upload(WORD)
    for word in (OTHERS, WORD):
        send(world, word, shared)
        send(world, word, own if word == WORD else shared)
    forget(world, WORD)
    assert files_of(world) == {shared.file_id}
    assert len(world.files_with("shared")) == 1
    forget(world, OTHERS)
    assert files_of(world) == set()
    assert world.files_with("shared") == []
    assert world.database.run("SELECT file_id FROM erased_files") == []


def test_a_file_that_somebody_sends_during_the_search_stays(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    again, sent = orphans._look_again, []

    def send_late(*slice_: Any) -> Any:
        sent.append(send(world, OTHERS, file))
        return again(*slice_)

    monkeypatch.setattr(orphans, "LATE", timedelta(minutes=1))
    monkeypatch.setattr(orphans, "_look_again", send_late)
    forget(world, WORD)
    assert len(sent) == 1
    assert files_of(world) == {file.file_id}


def test_a_file_that_somebody_stores_during_the_search_stays_for_their_turn(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    send(world, OTHERS, world.upload(OTHERS))

    def search(*where: Any, **_: Any) -> Counter[str]:
        for step, _ in enumerate(orphans.search(*where)):
            if step == 0:
                tomorrow = datetime.now(UTC) + timedelta(days=1)
                world.files.prolong(world.tenant_id, file.file_id, tomorrow)
        return Counter(steps=step)

    with monkeypatch.context() as patch:
        patch.setattr("turnmill.workers.upkeep.erasures.delete_orphans", search)
        forget(world, WORD)
    assert file.file_id in files_of(world)
    send(world, OTHERS, file)
    forget(world, OTHERS)
    assert files_of(world) == set()


@pytest.mark.parametrize("is_owed", [True, False])
def test_only_who_sends_a_file_keeps_it_not_who_fetches_it(world: World, is_owed: bool) -> None:
    file = world.upload(WORD)
    world.database.run("UPDATE files SET source = '{}' RETURNING id")
    note = "INSERT INTO erased_files (tenant_id, file_id) VALUES (%s, %s)"
    world.database.run(note, (world.tenant_id, file.file_id))
    with world.storage.draft() as draft:
        draft.write(b"its bytes")
        world.files.save(
            draft, tenant_id=world.tenant_id, name="x", purpose=Purpose.MESSAGE,
            file_id=file.file_id, is_owed=is_owed,
        )  # fmt: skip
    assert bool(world.database.run("SELECT file_id FROM erased_files")) is is_owed


def test_a_search_that_is_interrupted_resumes(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    for _ in range(6):
        world.end(accept(world.database, world.system.request("x")).turn_id, TurnState.FAILED)
    send(world, WORD, file)
    look, left = orphans._look, [4, 100]
    seen: Counter[int] = Counter()

    def some(*slice_: Any) -> Any:
        if seen[len(left)] == left[0]:
            left.pop(0)
            raise StorageUnavailable("The process ends here.")
        seen[len(left)] += 1
        return look(*slice_)

    monkeypatch.setattr(orphans, "_look", some)
    with pytest.raises(StorageUnavailable):
        forget(world, WORD)
    assert files_of(world) == {file.file_id}
    world.erase()
    assert files_of(world) == set()
    # Seven turns, the end, and what is looked at once more.
    assert seen == {2: 4, 1: 5}


def test_a_search_for_files_keeps_no_user_without_files_waiting(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in (WORD, "pteranodon"):
        send(world, word, world.upload(word))
    world.end(
        accept(world.database, world.system.request("Hi", user_key=f"api:{OTHERS}")).turn_id,
        TurnState.FAILED,
    )
    for word in (WORD, "pteranodon", OTHERS):
        forget_user(world.database, world.tenant_id, f"api:{word}")
    searches: list[UUID] = []

    def search(database: Any, storage: Any, tenant_id: UUID, **within: Any) -> Counter[str]:
        searches.append(tenant_id)
        return orphans.delete_orphans(database, storage, tenant_id, **within)

    monkeypatch.setattr("turnmill.workers.upkeep.erasures.delete_orphans", search)
    erase_all(world.database, world.storage, search_s=0)
    # One slice: one turn of three.
    assert len(files_of(world)) == 2
    waiting = {each.key for each in list_erasures(world.database, is_open=True)}
    assert waiting == {f"api:{WORD}", "api:pteranodon"}
    assert searches == [world.tenant_id]
    world.erase()
    assert (files_of(world), list_erasures(world.database, is_open=True)) == (set(), [])
    assert searches == [world.tenant_id] * 2


def test_who_is_forgotten_during_a_search_does_not_send_it_back(
    world: World, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "MOST_ROWS", 2)
    monkeypatch.setattr(orphans, "FIRST_ROWS", 2)
    newcomers = [f"gull {n}" for n in range(6)]
    # Theirs are the older files, so their search begins before.
    for word in (*newcomers, WORD):
        send(world, word, world.upload(word))
    forget_user(world.database, world.tenant_id, f"api:{WORD}")
    waiting: list[set[str | None]] = []
    for word in newcomers:
        erase_all(world.database, world.storage, search_s=0)
        waiting.append({each.key for each in list_erasures(world.database, is_open=True)})
        forget_user(world.database, world.tenant_id, f"api:{word}")
    # Seven turns: three slices and the end.
    assert [f"api:{WORD}" in keys for keys in waiting] == [True] * 3 + [False] * 3
    assert waiting[4] == {f"api:{word}" for word in newcomers[:4]}
    world.erase()
    assert (files_of(world), list_erasures(world.database, is_open=True)) == (set(), [])


def test_a_file_of_two_forgotten_users_keeps_both_waiting(world: World) -> None:
    shared = world.upload("shared")
    for word in (WORD, OTHERS):
        send(world, word, shared)
        forget_user(world.database, world.tenant_id, f"api:{word}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("turnmill.workers.upkeep.erasures.delete_orphans", lambda *_, **__: Counter())
        erase_all(world.database, world.storage)
    assert len(list_erasures(world.database, is_open=True)) == 2
    world.erase()
    assert (files_of(world), list_erasures(world.database, is_open=True)) == (set(), [])


def test_tenants_share_the_time_of_a_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def search(*_: Any, within_s: float) -> Counter[str]:
        shares.append(within_s)
        return Counter()

    monkeypatch.setattr("turnmill.workers.upkeep.erasures.delete_orphans", search)
    for tenant_id in (world.tenant_id, *(new_id() for _ in range(3))):
        add_erasures(world.database, [Erasure(tenant_id, b"hash", datetime.now(UTC))])
    erase_all(world.database, world.storage, search_s=4000.0)
    # What one leaves, the others have.
    assert shares == pytest.approx([1000, 4000 / 3, 2000, 4000], rel=0.05)


def test_another_process_does_not_fill_the_pause_of_a_search(
    world: World, database_url: str, short_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in (OTHERS, WORD):
        send(world, word, world.upload(word))
    are_locked: list[bool] = []

    def pause(_: float) -> None:
        with psycopg.connect(database_url) as link:
            left = link.execute("SELECT 1 FROM erased_files FOR UPDATE SKIP LOCKED").fetchall()
        are_locked.append(not left)

    clock = SimpleNamespace(sleep=pause, monotonic=time.monotonic)
    monkeypatch.setattr(orphans, "time", clock)
    forget(world, WORD)
    # The last pause is after the notes are gone.
    assert are_locked == [True] * 3


def test_a_search_rests_after_each_slice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send(world, WORD, world.upload(WORD))
    pauses: list[float] = []
    # Other threads sleep, too.
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr(orphans, "time", clock)
    forget(world, WORD)
    assert len(pauses) == 1
    assert 0 < pauses[0] <= orphans.MOST_PAUSE_S


def test_what_other_tenants_said_is_not_read_in_a_search(world: World, database_url: str) -> None:
    send(world, WORD, world.upload(WORD))
    large = [
        {"role": "user", "content": [{"type": "text", "text": random.randbytes(20_000).hex()}]}
    ]
    added = (
        "INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, "
        "input, params) VALUES (%s, %s, gen_random_uuid(), 1, gen_random_uuid(), 'm', "
        "'interactive', 'completed', %s, '{}')"
    )
    read = {}
    with psycopg.connect(database_url, autocommit=True) as link:
        for name, tenant_id in (("others", new_id()), ("own", world.tenant_id)):
            for _ in range(20):
                link.execute(added, (new_id(), tenant_id, json.dumps(large)))
            slice_ = orphans._Slice(world.tenant_id, [new_id()], UUID(int=0), 100)
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {orphans._SLICE}"
            row = link.execute(explain, slice_._asdict()).fetchone()  # type: ignore[call-overload]
            plan = row[0][0]["Plan"]
            read[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    # A text of 40,000 characters has at least five blocks beside its row.
    assert read["others"] < 50 < 100 < read["own"], read
