"""Many files go into a vector store together, through OpenAI's own client."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread
from typing import Any

import openai
import psycopg
import pytest

from tests.integration.media.conftest import Site
from turnmill.producer.api.resources.vector_stores import stores as stores_api
from turnmill.producer.knowledge import file_batches, stores
from turnmill.schemas.files.files import Files
from turnmill.schemas.files.opening import open_files
from turnmill.schemas.ids import Prefix, new_id, parse_id
from turnmill.schemas.store.knowledge.passages import lock_collection
from turnmill.workers.upkeep.indexer import index_next

KETTLES = b"# Returns\n\nA kettle that leaks may be sent back within 30 days."
KNIVES = b"# Knives\n\nKnives cannot be returned once their sleeve is open."


def counts(batch: Any) -> tuple[str, int, int, int, int, int]:
    n = batch.file_counts
    return batch.status, n.in_progress, n.completed, n.failed, n.cancelled, n.total


def test_files_are_uploaded_and_read_together(indexed: Site) -> None:
    client = indexed.openai
    store = client.vector_stores.create(name="shop")
    known = indexed.upload(b"# Lamps\n\nLamps are repaired at the lamp desk.", "lamps.md")
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("kettles.md", KETTLES), ("broken.pdf", b"%PDF-1.7")], file_ids=[known.id]
    )
    assert batch.id.startswith("vsfb_")
    assert batch.vector_store_id == store.id
    assert counts(batch) == ("completed", 0, 2, 1, 0, 3)
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {each.filename for each in listed} == {"kettles.md", "broken.pdf", "lamps.md"}  # type: ignore[attr-defined]
    failed = client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="failed"
    )
    assert [each.status for each in failed] == ["failed"]
    assert client.vector_stores.search(store.id, query="lamp desk").data[0].file_id == known.id
    client.files.delete(known.id)
    again = client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
    assert counts(again) == ("completed", 0, 1, 1, 0, 3)


def test_pages_of_a_batch_have_its_files_alone(indexed: Site) -> None:
    batches = indexed.openai.vector_stores.file_batches
    store = indexed.openai.vector_stores.create(name="shop")
    files = [indexed.upload(KETTLES, f"{number}.md").id for number in range(5)]
    other = indexed.upload(KNIVES, "knives.md")
    batches.create_and_poll(store.id, file_ids=[other.id])
    batch = batches.create_and_poll(
        store.id,
        files=[{"file_id": each, "attributes": {"n": at}} for at, each in enumerate(files)],
    )
    listed = batches.list_files(batch.id, vector_store_id=store.id, limit=2, order="asc")
    assert [(each.id, each.attributes) for each in listed] == [
        (each, {"n": at}) for at, each in enumerate(files)
    ]


def test_a_batch_with_a_file_that_nobody_reads_adds_nothing(indexed: Site) -> None:
    client = indexed.openai
    store = client.vector_stores.create(name="shop")
    fine, program = indexed.upload(KETTLES, "a.md"), indexed.upload(b"MZ", "program.exe")
    gone = indexed.upload(KNIVES, "gone.md")
    client.files.delete(gone.id)
    with pytest.raises(openai.BadRequestError, match=r"no reader for 'program\.exe'"):
        client.vector_stores.file_batches.create(store.id, file_ids=[fine.id, program.id])
    with pytest.raises(openai.NotFoundError, match=gone.id):
        client.vector_stores.file_batches.create(store.id, file_ids=[fine.id, gone.id])
    for fields in ({}, {"file_ids": [fine.id], "files": [{"file_id": fine.id}]}):
        with pytest.raises(openai.BadRequestError, match="either 'file_ids' or 'files'"):
            client.vector_stores.file_batches.create(store.id, **fields)
    assert list(client.vector_stores.files.list(store.id)) == []


def test_what_nobody_has_read_yet_is_cancelled(site: Site) -> None:
    """No worker runs: the test reads one document as a worker does."""
    client = site.openai
    store = client.vector_stores.create(name="shop")
    files = [site.upload(KETTLES, f"{number}.md").id for number in range(3)]
    place = {"vector_store_id": store.id}
    batch = client.vector_stores.file_batches.create(store.id, file_ids=files)
    assert counts(batch) == ("in_progress", 3, 0, 0, 0, 3)
    assert index_next(site.database, open_files(site.database, site.settings), lease_s=15.0)
    cancelled = client.vector_stores.file_batches.cancel(batch.id, **place)
    assert counts(cancelled) == ("cancelled", 0, 1, 0, 2, 3)
    assert len(client.vector_stores.files.list(store.id).data) == 1
    assert [each.id for each in client.files.list(order="asc")] == files
    # One that is through is not cancelled, nor is what is read again.
    done = client.vector_stores.file_batches.create(store.id, file_ids=files[:1])
    assert counts(client.vector_stores.file_batches.cancel(done.id, **place))[0] == "in_progress"
    assert client.vector_stores.search(store.id, query="kettle").data


def test_what_something_else_has_added_too_is_not_deleted(site: Site) -> None:
    """By another batch, or by itself before or after."""
    client = site.openai
    store = client.vector_stores.create(name="shop")
    batches, place = client.vector_stores.file_batches, {"vector_store_id": store.id}
    alone, early, late, shared = (
        site.upload(KETTLES + name.encode(), f"{name}.md").id
        for name in ("alone", "early", "late", "shared")
    )
    client.vector_stores.files.create(store.id, file_id=early)
    first = batches.create(store.id, file_ids=[alone, early, late, shared])
    second = batches.create(store.id, file_ids=[shared])
    client.vector_stores.files.create(store.id, file_id=late)
    assert counts(batches.cancel(first.id, **place)) == ("cancelled", 0, 0, 0, 4, 4)
    left = {each.id for each in client.vector_stores.files.list(store.id)}
    assert left == {early, late, shared}
    assert batches.list_files(first.id, **place).data == []
    assert counts(batches.retrieve(second.id, **place)) == ("in_progress", 1, 0, 0, 0, 1)
    assert counts(batches.cancel(second.id, **place)) == ("cancelled", 0, 0, 0, 1, 1)
    assert {each.id for each in client.vector_stores.files.list(store.id)} == {early, late}


def test_what_is_deleted_later_was_not_cancelled(site: Site) -> None:
    client = site.openai
    store = client.vector_stores.create(name="shop")
    files = [site.upload(KETTLES, f"{number}.md").id for number in range(2)]
    batch = client.vector_stores.file_batches.create(store.id, file_ids=files)
    assert index_next(site.database, open_files(site.database, site.settings), lease_s=15.0)
    place = {"vector_store_id": store.id}
    cancelled = client.vector_stores.file_batches.cancel(batch.id, **place)
    assert counts(cancelled) == ("cancelled", 0, 1, 0, 1, 2)
    [read] = client.vector_stores.files.list(store.id).data
    client.vector_stores.files.delete(read.id, **place)
    later = client.vector_stores.file_batches.retrieve(batch.id, **place)
    assert counts(later) == ("cancelled", 0, 0, 0, 1, 2)


def test_a_batch_of_many_files_takes_few_statements(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = site.openai.vector_stores.create(name="shop")
    files = [site.upload(KETTLES, f"{number}.md").id for number in range(30)]
    statements: list[Any] = []
    execute = psycopg.Cursor.execute

    def count(self: Any, query: Any, *args: Any, **more: Any) -> Any:
        statements.append(query)
        return execute(self, query, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", count)
        batch = site.openai.vector_stores.file_batches.create(store.id, file_ids=files)
    assert counts(batch) == ("in_progress", 30, 0, 0, 0, 30)
    assert 3 < len(statements) < 20


def test_batches_do_not_take_the_threads_that_accept_turns(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()
    calls: list[str] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **more: Any) -> Any:
            names.add(current_thread().name.partition("_")[0])
            calls.append(function.__name__)
            return function(*args, **more)

        return noted

    places: list[tuple[Any, str]] = [
        (file_batches, "add_batch"),
        (file_batches, "cancel_batch"),
        (stores, "add_file"),
        (stores, "remove_file"),
        (stores, "read_passages"),
        (stores_api, "delete_collection"),
        (Files, "delete"),
    ]
    for place, name in places:
        monkeypatch.setattr(place, name, noting(getattr(place, name)))
    client = site.openai.vector_stores
    store = client.create(name="shop")
    file = site.upload(KETTLES, "a.md")
    batch = client.file_batches.create(store.id, file_ids=[file.id])
    client.files.content(file.id, vector_store_id=store.id)
    client.file_batches.cancel(batch.id, vector_store_id=store.id)
    client.files.create(store.id, file_id=file.id)
    client.files.delete(file.id, vector_store_id=store.id)
    client.delete(client.create(name="knives", file_ids=[file.id]).id)
    site.openai.files.delete(file.id)
    assert calls == [
        "add_batch", "read_passages", "cancel_batch", "add_file", "remove_file", "add_file",
        "delete_collection", "delete",
    ]  # fmt: skip
    assert names == {"stock"}  # nor those that read images


def test_files_are_added_while_a_worker_saves_passages(site: Site) -> None:
    client = site.openai.with_options(timeout=10).vector_stores
    store = client.create(name="shop")
    files = [site.upload(KETTLES, f"{number}.md").id for number in range(3)]
    with site.database.cursor() as cursor:
        lock_collection(cursor, parse_id(Prefix.VECTOR_STORE, store.id))
        client.files.create(store.id, file_id=files[0])
        batch = client.file_batches.create(store.id, file_ids=files[1:])
    assert counts(batch) == ("in_progress", 2, 0, 0, 0, 2)


@pytest.mark.parametrize("is_of_batch", [False, True])
def test_a_file_that_is_added_again_while_its_batch_is_cancelled_stays(
    site: Site, eventually: Callable[..., None], is_of_batch: bool
) -> None:
    client = site.openai.vector_stores
    store = client.create(name="shop")
    file = site.upload(KETTLES, "a.md")
    batch = client.file_batches.create(store.id, file_ids=[file.id])
    store_id = parse_id(Prefix.VECTOR_STORE, store.id)
    found = open_files(site.database, site.settings).find(
        site.tenant_id, parse_id(Prefix.FILE, file.id)
    )
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor(1) as threads:
        with site.database.cursor() as cursor:
            documents = stores.add_files(
                cursor, site.tenant_id, store_id, [(found, None)], is_of_batch=is_of_batch
            )
            if is_of_batch:
                cursor.execute(file_batches._SAVE, (new_id(), store_id, documents))
            cancelling = threads.submit(
                client.file_batches.cancel, batch.id, vector_store_id=store.id
            )
            eventually(lambda: site.database.run(waits))
        assert counts(cancelling.result()) == ("cancelled", 0, 0, 0, 1, 1)
    assert [each.id for each in client.files.list(store.id)] == [file.id]


def test_other_tenants_do_not_find_a_batch(site: Site) -> None:
    batches = site.openai.vector_stores.file_batches
    store = site.openai.vector_stores.create(name="shop")
    file = site.upload(KETTLES, "a.md")
    batch = batches.create(store.id, file_ids=[file.id])
    theirs = site.client("other")
    own = theirs.vector_stores.create(name="shop")
    foreign = theirs.vector_stores.file_batches
    calls: list[Callable[[], Any]] = [
        lambda: foreign.create(own.id, file_ids=[file.id]),
        lambda: foreign.create(store.id, file_ids=[file.id]),
        *(
            call
            for place in (store.id, own.id)
            for call in (
                lambda place=place: foreign.retrieve(batch.id, vector_store_id=place),
                lambda place=place: foreign.cancel(batch.id, vector_store_id=place),
                lambda place=place: foreign.list_files(batch.id, vector_store_id=place),
            )
        ),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert counts(batches.retrieve(batch.id, vector_store_id=store.id))[0] == "in_progress"
    theirs.close()
