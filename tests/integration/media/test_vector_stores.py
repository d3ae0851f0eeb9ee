"""Vector stores through OpenAI's own client: files become documents, and are gone for good."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import openai
import pytest

from tests.integration.media.conftest import Site
from tests.unit.workers.readers.files import ENCRYPTED, pdf

RETURNS = b"# Returns\n\nA kettle that leaks may be sent back within 30 days."
KNIVES = b"# Knives\n\nKnives cannot be returned once their sleeve is open."


def counts(site: Site) -> list[int]:
    """Rows of all that a document leaves, and bytes in the storage."""
    tables = ("documents", "document_contents", "passages", "collection_terms", "files")
    rows = [site.database.run(f"SELECT count(*) AS n FROM {each}")[0].n for each in tables]
    return [*rows, len(site.stored())]


def test_a_file_is_uploaded_read_found_and_deleted_for_good(indexed: Site) -> None:
    client = indexed.openai
    store = client.vector_stores.create(name="shop", metadata={"team": "returns"})
    assert store.id.startswith("vs_")
    assert (store.status, store.file_counts.total) == ("completed", 0)
    added = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("returns.md", RETURNS), attributes={"year": 2026}
    )
    assert (added.status, added.last_error, added.vector_store_id) == ("completed", None, store.id)
    [found] = client.vector_stores.search(store.id, query="My kettle leaks").data
    assert (found.file_id, found.filename) == (added.id, "returns.md")
    assert (found.attributes, found.score) == ({"year": 2026.0}, 1)
    assert "30 days" in found.content[0].text
    [passage] = client.vector_stores.files.content(added.id, vector_store_id=store.id)
    assert (passage.type, passage.text) == ("text", found.content[0].text)
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1
    assert client.vector_stores.retrieve(store.id).usage_bytes == len(RETURNS)
    client.files.delete(added.id)
    assert client.vector_stores.search(store.id, query="My kettle leaks").data == []
    assert client.vector_stores.retrieve(store.id).file_counts.total == 0
    assert counts(indexed) == [0] * 6


def test_a_file_that_nobody_reads_leaves_no_vector_store(site: Site) -> None:
    file = site.upload(b"MZ", "program.exe")
    with pytest.raises(openai.BadRequestError, match="no reader"):
        site.openai.vector_stores.create(name="shop", file_ids=[file.id])
    assert list(site.openai.vector_stores.list()) == []


def test_a_file_that_is_taken_out_stays_a_file(indexed: Site) -> None:
    client = indexed.openai
    file = indexed.upload(RETURNS, "returns.md")
    store = client.vector_stores.create(file_ids=[file.id])
    client.vector_stores.files.poll(file.id, vector_store_id=store.id)
    assert client.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
    assert client.vector_stores.search(store.id, query="kettle").data == []
    assert counts(indexed)[:4] == [0] * 4
    assert client.files.retrieve(file.id).filename == "returns.md"
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)


def test_what_cannot_be_read_says_why(indexed: Site) -> None:
    client = indexed.openai
    store = client.vector_stores.create(name="shop")
    file = indexed.upload(pdf(["Kettle"], encrypt=ENCRYPTED), "manual.pdf")
    failed = client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id)
    assert failed.status == "failed"
    assert failed.last_error is not None
    assert failed.last_error.code == "invalid_file"
    assert "encrypted" in failed.last_error.message
    photo = indexed.upload(b"\x89PNG\r\n\x1a\n", "photo.png")
    with pytest.raises(openai.BadRequestError, match=r"no reader for 'photo.png'.*\.docx"):
        client.vector_stores.files.create(store.id, file_id=photo.id)
    assert client.vector_stores.retrieve(store.id).file_counts.failed == 1


def test_pages_lead_on_in_both_orders(indexed: Site) -> None:
    client = indexed.openai
    made = [client.vector_stores.create(name=f"store {number}").id for number in range(5)]
    assert [each.id for each in client.vector_stores.list(limit=2)] == made[::-1]
    assert [each.id for each in client.vector_stores.list(limit=2, order="asc")] == made
    page = client.vector_stores.list(limit=2, before=made[0])
    assert [each.id for each in page.data] == [made[2], made[1]]
    files = [indexed.upload(RETURNS, f"{number}.md").id for number in range(5)]
    for file in files:
        client.vector_stores.files.create(made[0], file_id=file)
    listed = client.vector_stores.files.list(made[0], limit=2, order="asc")
    assert [each.id for each in listed] == files
    for file in files:
        client.vector_stores.files.poll(file, vector_store_id=made[0])
    assert len(client.vector_stores.files.list(made[0], filter="completed").data) == 5
    assert client.vector_stores.files.list(made[0], filter="failed").data == []


def test_changes_are_kept_and_the_end_is_for_good(indexed: Site) -> None:
    client = indexed.openai
    store = client.vector_stores.create(name="shop")
    added = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("knives.md", KNIVES)
    )
    changed = client.vector_stores.update(store.id, name="store", metadata={"a": "b"})
    assert (changed.name, changed.metadata) == ("store", {"a": "b"})
    described = client.vector_stores.files.update(
        added.id, vector_store_id=store.id, attributes={"kind": "sharp", "is_new": True}
    )
    assert described.attributes == {"kind": "sharp", "is_new": True}
    assert client.vector_stores.search(store.id, query=["sleeve", "knives"]).data
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError, match="vs_"):
        client.vector_stores.retrieve(store.id)
    assert counts(indexed)[:4] == [0] * 4


def test_other_tenants_do_not_find_it(indexed: Site) -> None:
    mine = indexed.openai
    store = mine.vector_stores.create(name="shop")
    added = mine.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("returns.md", RETURNS)
    )
    theirs = indexed.client("other")
    own = theirs.vector_stores.create(name="shop")
    calls: list[Callable[[], Any]] = [
        lambda: theirs.vector_stores.retrieve(store.id),
        lambda: theirs.vector_stores.update(store.id, name="x"),
        lambda: theirs.vector_stores.delete(store.id),
        lambda: theirs.vector_stores.search(store.id, query="kettle"),
        lambda: theirs.vector_stores.files.list(store.id),
        lambda: theirs.vector_stores.files.retrieve(added.id, vector_store_id=store.id),
        lambda: theirs.vector_stores.files.retrieve(added.id, vector_store_id=own.id),
        lambda: theirs.vector_stores.files.content(added.id, vector_store_id=store.id),
        lambda: theirs.vector_stores.files.content(added.id, vector_store_id=own.id),
        lambda: theirs.vector_stores.files.delete(added.id, vector_store_id=store.id),
        lambda: theirs.vector_stores.files.create(own.id, file_id=added.id),
        lambda: theirs.vector_stores.create(name="y", file_ids=[added.id]),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert [each.id for each in theirs.vector_stores.list()] == [own.id]
    assert theirs.vector_stores.search(own.id, query="kettle").data == []
    assert mine.vector_stores.search(store.id, query="kettle").data
    theirs.close()


def test_an_id_of_another_server_is_not_found(site: Site) -> None:
    client = site.openai
    own = client.vector_stores.create(name="shop").id
    calls: list[Callable[[], Any]] = [
        lambda: client.files.retrieve("file-abc123"),
        lambda: client.files.content("file-abc123"),
        lambda: client.files.delete("file-abc123"),
        lambda: client.vector_stores.retrieve("vs_abc123"),
        lambda: client.vector_stores.search("vs_abc123", query="kettle"),
        lambda: client.vector_stores.create(name="y", file_ids=["file-abc123"]),
        lambda: client.vector_stores.files.create(own, file_id="file-abc123"),
        lambda: client.vector_stores.files.retrieve("file-abc123", vector_store_id=own),
        lambda: client.vector_stores.file_batches.create(own, file_ids=["file-abc123"]),
        lambda: client.vector_stores.file_batches.retrieve("vsfb_abc123", vector_store_id=own),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match="is not an id of the form") as error:
            call()
        assert error.value.param


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"expires_after": {"anchor": "last_active_at", "days": 1}}, "do not expire"),
        ({"chunking_strategy": {"type": "static", "static": {}}}, "headings and sentences"),
        ({"description": "ours"}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "16 pairs"),
        ({"name": "x" * 101}, "100"),
        ({"name": "taken"}, "bots read it by this name"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    site: Site,
    fields: dict[str, Any],
    said: str,
) -> None:
    site.openai.vector_stores.create(name="taken")
    with pytest.raises(openai.BadRequestError, match=said) as error:
        site.openai.vector_stores.create(**fields)
    assert error.value.param == next(iter(fields))


@pytest.mark.parametrize("name", ["filters", "ranking_options", "rewrite_query"])
def test_a_search_refuses_by_name_what_it_does_not_do(
    site: Site,
    name: str,
) -> None:
    store = site.openai.vector_stores.create(name="shop")
    value: Any = True if name == "rewrite_query" else {"type": "eq", "key": "a", "value": "b"}
    with pytest.raises(openai.BadRequestError, match="not supported") as error:
        site.openai.vector_stores.search(store.id, query="kettle", **{name: value})
    assert error.value.param == name


@pytest.mark.parametrize(
    ("path", "body", "said", "param"),
    [
        ("search", {}, "Missing required parameter: 'query'.", "query"),
        (
            "search",
            {"query": "x", "limit": 3},
            "Unrecognized request argument supplied: limit.",
            "limit",
        ),
        (
            "search",
            {"query": ""},
            "Invalid 'query': String should have at least 1 character; or: ",
            "query",
        ),
        (
            "search",
            {"query": "x", "filters": {}},
            "'filters' is not supported: make a vector ",
            "filters",
        ),
        (
            "files",
            {"file_id": "x", "attributes": {"a": []}},
            "Invalid 'attributes.a': ",
            "attributes.a",
        ),
        (
            "file_batches",
            {"files": [{"file_id": 5}]},
            "Invalid 'files[0].file_id': Input should ",
            "files[0].file_id",
        ),
        ("file_batches", {}, "Send either 'file_ids' or 'files'.", None),
        ("search", [], "Input should be a valid dictionary", None),
    ],
)
def test_a_mistake_is_told_with_the_place_of_its_field(
    site: Site, path: str, body: object, said: str, param: str | None
) -> None:
    store = site.openai.vector_stores.create(name="shop")
    with pytest.raises(openai.BadRequestError) as error:
        site.openai.post(f"/vector_stores/{store.id}/{path}", body=body, cast_to=object)
    message = error.value.body["message"]  # type: ignore[index]
    assert message.startswith(said)
    assert error.value.param == param


def test_a_file_that_is_deleted_while_it_is_added_leaves_nothing(indexed: Site) -> None:
    client = indexed.openai
    store = client.vector_stores.create(name="shop")
    for _ in range(5):
        file = indexed.upload(RETURNS, "returns.md")

        def add(file_id: str = file.id) -> None:
            with suppress(openai.NotFoundError):
                client.vector_stores.files.create(store.id, file_id=file_id)

        thread = threading.Thread(target=add)
        thread.start()
        client.files.delete(file.id)
        thread.join()
    assert counts(indexed)[2:] == [0] * 4
    assert client.vector_stores.files.list(store.id).data == []
