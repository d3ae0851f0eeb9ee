"""A file of an erased turn that its storage refuses to delete fails alone, and is told."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.integration.memory.world import World, files_of, forget, send
from turnmill.producer.memory.forgetting import forget_user
from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files.files import File
from turnmill.schemas.files.local import LocalStorage
from turnmill.schemas.files.storage import Key
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.files import undeleted
from turnmill.schemas.store.memory import orphans
from turnmill.schemas.store.memory.erasures import list_erasures
from turnmill.schemas.store.memory.finding import find_conversations
from turnmill.workers.upkeep.erasures import Eraser, erase_all

WORD, OTHERS = "quetzalcoatlus", "archaeopteryx"


def block(world: World, file: File) -> Path:
    """Put into the file's place what no `unlink` removes, not even root's."""
    assert isinstance(world.storage, LocalStorage)
    place = world.storage.path(file.key)
    place.unlink()
    place.mkdir()
    (place / "held").write_text(WORD)
    return place


def unblock(place: Path) -> None:
    (place / "held").unlink()
    place.rmdir()


def noted(world: World) -> dict[UUID, int]:
    """How often each file that could not be deleted was tried."""
    rows = world.database.run("SELECT file_id, failures FROM undeleted_files")
    return {row.file_id: row.failures for row in rows}


def make_due(world: World) -> None:
    world.database.run("UPDATE undeleted_files SET due_at = now() RETURNING file_id")


def test_a_file_that_cannot_be_deleted_keeps_no_other(world: World) -> None:
    held, *others = [world.upload(f"{WORD} {each}") for each in range(4)]
    for file in (held, *others):
        send(world, WORD, file)
    place = block(world, held)
    forget(world, WORD)
    assert files_of(world) == {held.file_id}
    assert world.files_with(f"{WORD} ") == []
    assert noted(world) == {held.file_id: 1}
    [row] = world.database.run("SELECT * FROM undeleted_files")
    assert row.tenant_id == world.tenant_id
    assert "Is a directory" in row.reason and "account" in row.remedy
    # The user is not forgotten before all is gone.
    assert [each.key for each in list_erasures(world.database, is_open=True)] == [f"api:{WORD}"]
    unblock(place)
    world.erase()
    assert files_of(world) == {held.file_id}, "tried before its pause was over"
    make_due(world)
    world.erase()
    assert (files_of(world), noted(world)) == (set(), {})
    assert world.database.run("SELECT file_id FROM erased_files") == []
    assert list_erasures(world.database, is_open=True) == []


def test_the_pauses_grow_up_to_a_limit(world: World) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    block(world, file)
    forget(world, WORD)
    pauses = []
    for _ in range(12):
        [row] = world.database.run(
            "SELECT extract(epoch FROM due_at - tried_at)::float AS pause_s FROM undeleted_files"
        )
        pauses.append(row.pause_s)
        make_due(world)
        world.erase()
    wanted = [min(60.0 * 2**each, undeleted.MOST_PAUSE_S) for each in range(12)]
    assert pauses == pytest.approx(wanted, abs=1.0)
    assert noted(world) == {file.file_id: 13}


def test_what_goes_wrong_is_logged_once_for_all_files_and_rounds(world: World) -> None:
    files = [world.upload(f"{WORD} {each}") for each in range(3)]
    for file in files:
        send(world, WORD, file)
        block(world, file)
    with capture_logs() as logs:
        forget(world, WORD)
        for _ in range(3):
            make_due(world)
            world.erase()
    told = [each for each in logs if each["event"] == "file.not_deleted"]
    assert [each["file_id"] in {file.file_id.hex for file in files} for each in told] == [True]
    assert "Is a directory" in told[0]["reason"]
    assert noted(world) == {file.file_id: 4 for file in files}


def test_whoever_is_forgotten_later_does_not_wait_for_a_file_that_cannot_be_deleted(
    world: World,
) -> None:
    held, other = world.upload(WORD), world.upload(OTHERS)
    send(world, WORD, held)
    send(world, OTHERS, other)
    block(world, held)
    for word in (WORD, OTHERS):
        forget_user(world.database, world.tenant_id, f"api:{word}")
        world.erase()
    assert files_of(world) == {held.file_id}
    assert [each.key for each in list_erasures(world.database, is_open=True)] == [f"api:{WORD}"]


def test_another_try_searches_only_turns_since_the_last_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    place = block(world, file)
    forget(world, WORD)
    [row] = world.database.run("SELECT searched_to, cleared_to FROM erased_files")
    assert (row.searched_to, row.cleared_to is not None) == (None, True)
    places: list[UUID] = []
    look = orphans._look

    def watch(cursor: Any, slice_: Any) -> Any:
        places.append(slice_.after)
        return look(cursor, slice_)

    monkeypatch.setattr(orphans, "_look", watch)
    unblock(place)
    make_due(world)
    world.erase()
    assert places[0] == row.cleared_to
    assert files_of(world) == set()


def test_a_file_that_somebody_sends_while_it_cannot_be_deleted_stays(world: World) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    place = block(world, file)
    forget(world, WORD)
    unblock(place)
    place.write_bytes(b"it is there after all")
    send(world, OTHERS, file)
    make_due(world)
    world.erase()
    assert (files_of(world), noted(world)) == ({file.file_id}, {})
    assert list_erasures(world.database, is_open=True) == []


def test_a_storage_that_does_not_answer_is_no_files_fault(world: World) -> None:
    files = [world.upload(f"{WORD} {each}") for each in range(3)]
    places = []
    for file in files:
        send(world, WORD, file)
        places.append(block(world, file))
    mark = world.settings.files_dir / "owner"
    mark.rename(mark.with_name("kept"))
    mark.symlink_to(mark)  # cannot be read, even by root
    with pytest.raises(StorageUnavailable):
        forget(world, WORD)
    assert (len(files_of(world)), noted(world)) == (3, {})
    mark.unlink()
    mark.with_name("kept").rename(mark)
    for place in places:
        unblock(place)
    world.erase()
    assert files_of(world) == set()


def test_a_row_that_postgres_refuses_to_delete_keeps_no_other(world: World) -> None:
    held, other = world.upload(WORD), world.upload(f"{WORD} again")
    for file in (held, other):
        send(world, WORD, file)
    world.database.run(
        "CREATE TABLE holds (file_id uuid REFERENCES files (id)); "
        f"INSERT INTO holds VALUES ('{held.file_id}')"
    )
    try:
        forget(world, WORD)
        assert files_of(world) == {held.file_id}
        assert world.storage.has(held.key), "bytes without their row's deletion"
        [row] = world.database.run("SELECT reason FROM undeleted_files")
        assert "ForeignKeyViolation" in row.reason
    finally:
        world.database.run("DROP TABLE holds")
    make_due(world)
    world.erase()
    assert files_of(world) == set()


def test_a_process_that_dies_between_bytes_and_commit_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [world.upload(f"{WORD} {each}") for each in range(2)]
    for file in files:
        send(world, WORD, file)
    delete, seen = LocalStorage.delete, []

    def die(storage: LocalStorage, key: Key) -> None:
        seen.append(key.file_id)
        delete(storage, key)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            forget(world, WORD)
    assert files_of(world) == {file.file_id for file in files}
    assert list_erasures(world.database, is_open=True) != []
    world.erase()
    assert (files_of(world), noted(world)) == (set(), {})
    assert list_erasures(world.database, is_open=True) == []


@pytest.mark.parametrize("is_refused", [True, False])
def test_deletions_that_take_their_time_do_not_hold_locks_for_all_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    monkeypatch.setattr(orphans, "HOLD_S", 0.0)
    files = [world.upload(f"{WORD} {each}") for each in range(3)]
    for file in files:
        send(world, WORD, file)
    if is_refused:
        block(world, files[0])
    steps: list[int] = []
    delete = orphans._delete

    def count(*given: Any) -> Any:
        steps.append(len(given[-1]))
        return delete(*given)

    monkeypatch.setattr(orphans, "_delete", count)
    forget(world, WORD)
    # Each deletion takes too long for another one in its transaction.
    assert steps == [3, 2, 1]
    assert files_of(world) == ({files[0].file_id} if is_refused else set())


def test_a_search_locks_notes_before_files_as_who_deletes_a_file_does(
    world: World, database_url: str, eventually: Any
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    place = block(world, file)
    forget(world, WORD)
    unblock(place)
    make_due(world)
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as link:
        link.execute("SELECT FROM undeleted_files FOR UPDATE")
        erased = pool.submit(world.erase)
        eventually(lambda: world.database.run(waits, (link.info.dbname,)))
        link.execute("SELECT FROM files FOR UPDATE NOWAIT")
        link.rollback()
        erased.result(20)
    assert files_of(world) == set()


def test_what_is_erased_is_not_looked_for_again_while_a_file_cannot_be_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in (WORD, OTHERS):
        send(world, word, world.upload(word))
    held = world.upload(f"{WORD} again")
    send(world, WORD, held)
    place = block(world, held)
    looked: list[str] = []

    def look(database: Any, person: Any) -> Any:
        looked.append(person.key)
        return find_conversations(database, person)

    monkeypatch.setattr("turnmill.workers.upkeep.erasures.find_conversations", look)
    said: set[Any] = set()
    for word in (WORD, OTHERS, WORD):
        forget_user(world.database, world.tenant_id, f"api:{word}")
        erase_all(world.database, world.storage, said=said)
        erase_all(world.database, world.storage, said=said)
    # Once for each time that somebody asked for it.
    assert looked == [f"api:{word}" for word in (WORD, OTHERS, WORD)]
    unblock(place)
    make_due(world)
    erase_all(world.database, world.storage, said=said)
    assert (files_of(world), len(list_erasures(world.database, is_open=True))) == (set(), 1)
    # Once more when its files are gone, before it is done.
    erase_all(world.database, world.storage, said=said)
    assert list_erasures(world.database, is_open=True) == []
    erase_all(world.database, world.storage, said=said)
    assert (len(looked), said) == (4, set())


def test_an_older_state_of_the_database_is_not_taken_for_erased(
    world: World, database_url: str, make_copy: Callable[[str], str]
) -> None:
    """A failover that loses the last commits, or a backup of between request and erasing."""
    file = world.upload(WORD)
    send(world, WORD, file)
    world.call(WORD, f"A {WORD}!")
    block(world, file)
    forget_user(world.database, world.tenant_id, f"api:{WORD}")
    world.database.close()  # it opens again; no connection may be open while it is copied
    url = make_copy(database_url)
    said: set[Any] = set()
    erase_all(world.database, world.storage, said=said)
    assert len(said) == 1
    settings = world.settings.database.model_copy(update={"url": SecretStr(url)})
    with closing(Database(settings)) as database:
        old = World(world.system, database, world.settings.data)
        for _ in range(3):
            erase_all(database, old.storage, said=said)
            make_due(old)
        assert list_erasures(database, is_open=True) != []
        assert "turns" not in old.tables_with(WORD)
        unblock(world.storage.path(file.key))
        for _ in range(2):
            erase_all(database, old.storage, said=said)
        assert old.tables_with(WORD) == set()
        assert list_erasures(database, is_open=True) == []


def test_a_ledger_that_cannot_be_written_is_told_once_in_a_while(
    world: World, tmp_path: Path
) -> None:
    file = world.upload(WORD)
    send(world, WORD, file)
    block(world, file)
    forget_user(world.database, world.tenant_id, f"api:{WORD}")
    (tmp_path / "in the way").touch()
    eraser = Eraser(world.database, world.storage, tmp_path / "in the way" / "erasures.jsonl")
    with capture_logs() as logs:
        for _ in range(3):
            eraser._round()
        forget_user(world.database, world.tenant_id, f"api:{OTHERS}")
        eraser._round()
    # Once for all that is open, and once for the one that is new.
    assert [each["event"] for each in logs].count("erasures.not_copied") == 2
