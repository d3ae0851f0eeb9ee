"""Vectors are kept in spaces, one of which is searched."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier, Event
from time import monotonic
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from tests.contract.embedders.stand_in import DIMS, Hashed, HashedNewer, hashed
from tests.integration.knowledge.conftest import Library
from turnmill.producer.cli.context import System
from turnmill.producer.cli.knowledge.embedding import embed_new
from turnmill.producer.knowledge.lookup import find_collection, list_progress
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.embedders import embedders as loading
from turnmill.schemas.embedders import filling
from turnmill.schemas.embedders.base import Embedder
from turnmill.schemas.embedders.embedders import SEARCHES, Embedders
from turnmill.schemas.embedders.filling import fill
from turnmill.schemas.embedders.registry import EMBEDDERS
from turnmill.schemas.errors import InvalidInput, SettingsError, TransientError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES
from turnmill.schemas.store.knowledge import dense
from turnmill.schemas.store.knowledge import search as searching
from turnmill.schemas.store.knowledge.dense import nearest
from turnmill.schemas.store.knowledge.search import Passage, search
from turnmill.schemas.store.knowledge.spaces import (
    Asked,
    Space,
    Vector,
    adopt_pgvector,
    drop_superseded,
    live_space,
    missing,
    save_space,
    switch,
)
from turnmill.workers.upkeep.indexer import Indexer, index_next

#: Random questions of two tenants.
QUESTIONS = int(os.environ.get("QUESTIONS", "500"))

RETURNS = """# Returns

## Kettles

A kettle that leaks may be sent back within 30 days.

## Knives

Knives cannot be returned once their sleeve is open.
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDERS, "hashed", "tests.contract.embedders.stand_in:Hashed")
    monkeypatch.setitem(EMBEDDER_LIBRARIES, "hashed", "zlib")


@pytest.fixture(params=["pgvector", "arrays"])
def shop(request: pytest.FixtureRequest, library: Library) -> Library:
    if request.param == "pgvector":
        assert adopt_pgvector(library.database)
        assert adopt_pgvector(library.database)  # again
    else:
        pytest.importorskip("numpy")
    library.write("returns.md", RETURNS)
    library.sync()
    return library


@pytest.fixture
def embedders(library: Library) -> Iterator[Embedders]:
    embedders = Embedders(library.settings.embedder)
    yield embedders
    embedders.close()


def make_space(library: Library, embedder: Hashed, name: str = "shop") -> Space:
    collection = find_collection(library.database, library.tenant_id, name)
    identity = embedder.identity
    return save_space(
        library.database, collection.collection_id, *identity[:3], (identity[3], identity[4])
    )


def embed(library: Library, name: str = "shop", kind: type[Hashed] = Hashed) -> Space:
    embedder = kind(library.settings.embedder)
    space = make_space(library, embedder, name)
    list(fill(library.database, space, embedder))
    switch(library.database, space)
    found = live_space(library.database, library.tenant_id, name)
    assert found is not None
    return found


def find(
    library: Library, embedders: Embedders, question: str, name: str = "shop"
) -> list[Passage]:
    asked = embedders.ask(library.database, library.tenant_id, name, question)
    return search(library.database, library.tenant_id, name, question, 5, asked)


def test_a_question_in_other_words_finds_its_passage(shop: Library, embedders: Embedders) -> None:
    question = "The boiler drips"
    assert find(shop, embedders, question) == []
    embed(shop)
    first = find(shop, embedders, question)[0]
    assert first.heading == "Kettles"
    assert first.score == first.coverage == 0
    assert first.cosine is not None
    assert first.fused is not None
    assert 0 < first.cosine <= 1.001
    both = find(shop, embedders, "My kettle leaks")[0]
    assert (both.heading, both.score > 0, both.fused) == ("Kettles", True, pytest.approx(1))


def test_the_cosine_is_that_of_the_vectors(shop: Library, embedders: Embedders) -> None:
    embed(shop)
    for each in find(shop, embedders, "sleeve"):
        text = f"{each.title}\n{each.heading}\n{each.content}"
        expected = sum(a * b for a, b in zip(hashed("sleeve"), hashed(text), strict=True))
        assert each.cosine == pytest.approx(expected, abs=2e-3)


def test_a_new_embedder_fills_another_space_and_takes_over_at_once(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = embed(shop)
    newer = HashedNewer(shop.settings.embedder)
    space = make_space(shop, newer)
    list(fill(shop.database, space, newer))
    assert live_space(shop.database, shop.tenant_id, "shop") == old
    assert find(shop, embedders, "The boiler drips")
    switch(shop.database, space)
    live = live_space(shop.database, shop.tenant_id, "shop")
    assert live is not None
    assert live.id == space.id
    # A worker that has the former version searches by words; one that has the newer, by both.
    assert find(shop, embedders, "The boiler drips") == []
    monkeypatch.setitem(EMBEDDERS, "hashed", "tests.contract.embedders.stand_in:HashedNewer")
    fresh = Embedders(shop.settings.embedder)
    assert find(shop, fresh, "The boiler drips")[0].heading == "Kettles"
    # A search that began before ends with what it began with.
    asked = Asked(old, hashed("kettle"))
    assert nearest(shop.database, asked, 5)
    assert drop_superseded(shop.database, old.collection_id) == 0
    shop.database.run("UPDATE spaces SET superseded_at = superseded_at - interval '1 hour'")
    assert drop_superseded(shop.database, old.collection_id) == 1
    assert find(shop, fresh, "The boiler drips")[0].heading == "Kettles"


def test_whoever_is_interrupted_leaves_the_rest_to_the_next_one(
    shop: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(10):
        shop.write(f"{n}.txt", f"Note {n} of ten.")
    shop.sync()
    monkeypatch.setattr(filling, "BATCH", 3)
    embedder = Hashed(shop.settings.embedder)
    space = make_space(shop, embedder)
    total = len(missing(shop.database, space))
    assert next(fill(shop.database, space, embedder)) == (3, total, 0)
    embedder = Hashed(shop.settings.embedder)
    assert [*fill(shop.database, space, embedder)][-1] == (total - 3, total - 3, 0)
    assert embedder.passages == total - 3
    assert missing(shop.database, space) == []


def test_what_an_embedder_refuses_keeps_vectors_from_nothing_else(
    shop: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(10):
        shop.write(f"{n}.txt", f"Note {n} of ten.")
    shop.sync()
    monkeypatch.setattr(filling, "BATCH", 4)

    def refuse(self: Hashed, texts: Sequence[str]) -> list[Vector]:
        if any("Note 3" in text or "Note 4" in text for text in texts):
            raise InvalidInput("The server answered 400.")
        return [hashed(text) for text in texts]

    monkeypatch.setattr(Hashed, "embed_passages", refuse)
    space = make_space(shop, Hashed(shop.settings.embedder))
    total = len(missing(shop.database, space))
    switch(shop.database, space)
    place = {"database": shop.database, "tenant_id": shop.tenant_id, "settings": shop.settings}
    system = cast(System, SimpleNamespace(**place))
    for _ in range(2):
        embed_new(system, "shop")
        assert "2 passages are found by their words alone" in capsys.readouterr().out
        assert len(missing(shop.database, space)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Hashed, "embed_passages", lambda self, texts: [hashed(t) for t in texts])
        assert [*fill(shop.database, space, Hashed(shop.settings.embedder))] == [(2, 2, 0)]
    assert total == 12


def test_what_is_deleted_or_new_in_a_collection_is_so_in_its_space(
    shop: Library, embedders: Embedders
) -> None:
    space = embed(shop)
    assert find(shop, embedders, "The boiler drips")
    shop.write("lamps.md", "# Lamps\n\nLamps may be returned to the lamp desk.")
    (shop.folder / "returns.md").unlink()
    shop.sync()
    assert all(each.uri == "lamps.md" for each in find(shop, embedders, "The boiler drips"))
    assert len(missing(shop.database, space)) == 1
    # Found by its words until it is embedded.
    [lamps] = find(shop, embedders, "lamp desk")
    assert lamps.cosine is None
    list(fill(shop.database, space, Hashed(shop.settings.embedder)))
    assert find(shop, embedders, "lamp desk")[0].cosine is not None


def count(by: str) -> float:
    return float(SEARCHES.labels(by)._value.get())


def test_a_worker_without_the_embedder_searches_by_words(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(shop)
    monkeypatch.setitem(EMBEDDER_LIBRARIES, "hashed", "no_such_library")
    before = count("words_missing")
    found = find(shop, embedders, "My kettle leaks")
    assert found[0].heading == "Kettles"
    assert found[0].cosine is None
    assert count("words_missing") == before + 1


def test_an_embedder_that_fails_is_left_alone_for_a_while(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(shop)
    asked: list[str] = []

    def refuse(self: Hashed, text: str) -> None:
        asked.append(text)
        raise TransientError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Hashed, "embed_question", refuse)
        before = count("words_failing")
        for _ in range(3):
            assert find(shop, embedders, "My kettle leaks")[0].cosine is None
        assert len(asked) == 1
        assert count("words_failing") == before + 3
    monkeypatch.setattr("turnmill.schemas.embedders.embedders.PAUSE_S", 0.0)
    embedders._failed.clear()
    assert find(shop, embedders, "My kettle leaks")[0].cosine is not None


def test_a_question_that_a_server_refuses_harms_no_other(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(shop)

    def refuse(self: Hashed, text: str) -> Vector:
        if "long" in text:
            raise InvalidInput("The server answered 400.")
        return hashed(text)

    monkeypatch.setattr(Hashed, "embed_question", refuse)
    before = count("words_refused")
    assert find(shop, embedders, "A long kettle")[0].cosine is None
    assert count("words_refused") == before + 1
    assert find(shop, embedders, "My kettle leaks")[0].cosine is not None


@pytest.mark.parametrize("unit", ["壶", "kettle "])
def test_of_a_long_question_the_end_has_a_vector(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    embed(shop)
    embedded: list[str] = []

    def keep(self: Hashed, text: str) -> Vector:
        embedded.append(text)
        return hashed(text)

    monkeypatch.setattr(Hashed, "embed_question", keep)
    asked = embedders.ask(shop.database, shop.tenant_id, "shop", unit * 4000 + "end")
    assert asked is not None
    [text] = embedded
    assert text.endswith(unit + "end")
    assert 1490 < len(text.encode()) <= 1500
    assert "\ufffd" not in text


def test_no_vector_is_begun_too_late(shop: Library, embedders: Embedders) -> None:
    embed(shop)
    before = count("words_busy")
    place = (shop.database, shop.tenant_id, "shop", "kettle")
    assert embedders.ask(*place, begin_before=monotonic() - 1) is None
    assert embedders.ask(*place, begin_before=monotonic() + 60) is not None
    assert count("words_busy") == before + 1


@pytest.mark.parametrize("fault", [RuntimeError("kettle"), ModuleNotFoundError("kettle")])
def test_no_fault_of_a_library_is_one_of_the_turn(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    embed(shop)

    def fail(self: Hashed, text: str) -> None:
        raise fault

    monkeypatch.setattr(Hashed, "embed_question", fail)
    before = count("words_failing")
    assert find(shop, embedders, "My kettle leaks")[0].cosine is None
    assert count("words_failing") == before + 1


def test_vectors_of_another_size_are_neither_searched_with_nor_stored(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has another model behind the same name."""
    space = embed(shop)
    shop.write("lamps.md", "# Lamps\n\nLamps may be returned to the lamp desk.")
    shop.sync()

    def longer(self: Hashed, texts: Sequence[str]) -> list[Vector]:
        return [[*hashed(text), 0.0] for text in texts]

    monkeypatch.setattr(Hashed, "embed_passages", longer)
    monkeypatch.setattr(Hashed, "embed_question", lambda self, text: [*hashed(text), 0.0])
    before = count("words_missing")
    assert find(shop, embedders, "My kettle leaks")[0].cosine is None
    assert count("words_missing") == before + 1
    with pytest.raises(SettingsError, match="another model"):
        list(fill(shop.database, space, Hashed(shop.settings.embedder)))
    assert len(missing(shop.database, space)) == 1


@pytest.mark.parametrize("lack", ["numpy", "memory"])
def test_where_vectors_cannot_be_compared_words_are(
    library: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    library.write("returns.md", RETURNS)
    library.sync()
    embed(library)
    if lack == "numpy":
        monkeypatch.setattr(dense, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(dense, "MAX_KEPT_BYTES", 64)
    before = count("words_missing")
    assert find(library, embedders, "My kettle leaks")[0].cosine is None
    assert count("words_missing") == before + 1


def test_the_former_vectors_are_searched_while_one_thread_reads_the_new(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpy")
    library.write("returns.md", RETURNS)
    library.sync()
    old = embed(library)
    asked = Asked(old, hashed("kettle"))
    assert nearest(library.database, asked, 5)
    newer = Asked(old._replace(changes=old.changes + 1), asked.vector)
    begun, go_on = Event(), Event()
    read = dense._read

    def slowly(database: Database, space: Space) -> dense._Matrix:
        begun.set()
        assert go_on.wait(30)
        return read(database, space)

    monkeypatch.setattr(dense, "_read", slowly)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(nearest, library.database, newer, 5)
        assert begun.wait(30)
        meanwhile = pool.submit(nearest, library.database, newer, 5)
        try:
            assert meanwhile.result(timeout=30)
        finally:
            go_on.set()
        assert reading.result(timeout=30)
    # Whoever began before takes the newer ones.
    assert dense._kept(library.database, old).changes == newer.space.changes


def test_an_embedder_that_hangs_is_waited_for_once_by_all_threads(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(shop)
    tried: list[str] = []
    together = Barrier(4)
    load = Embedders.load

    def load_together(self: Embedders, name: str) -> Embedder:
        together.wait(30)
        return load(self, name)

    def hang(name: str, settings: object) -> None:
        tried.append(name)
        raise TransientError("away")

    monkeypatch.setattr(Embedders, "load", load_together)
    monkeypatch.setattr(loading, "create_embedder", hang)
    with ThreadPoolExecutor(4) as pool:
        place = (shop.database, shop.tenant_id, "shop", "kettle")
        asked = [pool.submit(embedders.ask, *place) for _ in range(4)]
    assert [each.result() for each in asked] == [None] * 4
    assert len(tried) == 1


def test_a_worker_embeds_what_it_has_indexed(
    shop: Library,
    embedders: Embedders,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    space = embed(shop)
    indexer = Indexer(shop.database, shop.files, 15.0, embedders)
    indexer.start()
    try:
        shop.write("lamps.md", "# Lamps\n\nLamps may be returned to the lamp desk.")
        [lamps] = [each for each in shop.queue() if each.uri == "lamps.md"]
        eventually(lambda: list_progress(shop.database, [lamps.document_id])[0].has_ended)
        eventually(lambda: missing(shop.database, space) == [])

        def fail(self: Hashed, texts: Sequence[str]) -> list[Vector]:
            raise RuntimeError

        # A document is no worse for an embedder that fails.
        monkeypatch.setattr(Hashed, "embed_passages", fail)
        for name in ("pans.md", "pots.md"):
            shop.write(name, f"# {name}\n\nNothing is known of {name}.")
        queued = [each.document_id for each in shop.queue() if each.uri in ("pans.md", "pots.md")]
        eventually(lambda: all(each.has_ended for each in list_progress(shop.database, queued)))
        assert len(missing(shop.database, space)) == 2
    finally:
        indexer.close()


def test_a_document_that_a_server_refuses_takes_no_vectors_from_others(
    shop: Library,
    embedders: Embedders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = embed(shop)

    def refuse(self: Hashed, texts: Sequence[str]) -> list[Vector]:
        if any("long" in text for text in texts):
            raise InvalidInput("The server answered 400.")
        return [hashed(text) for text in texts]

    monkeypatch.setattr(Hashed, "embed_passages", refuse)
    indexer = Indexer(shop.database, shop.files, 15.0, embedders)
    for name in ("long", "lamps"):
        shop.write(f"{name}.md", f"# {name}\n\nNothing is known of {name}.")
        shop.queue()
        if task := index_next(shop.database, shop.files, 15.0):
            indexer._embed(task)
    assert len(missing(shop.database, space)) == 1


def test_a_new_passage_without_a_vector_stands_before_what_is_unrelated(
    shop: Library, embedders: Embedders
) -> None:
    embed(shop)
    shop.write("lamps.md", "# Lamps\n\nLamps may be taken to the lamp desk.")
    shop.sync()
    first = find(shop, embedders, "Where is the lamp desk?")[0]
    assert (first.uri, first.cosine) == ("lamps.md", None)


@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_document_that_is_indexed_again_during_a_search_is_found(
    shop: Library, embedders: Embedders, monkeypatch: pytest.MonkeyPatch, is_embedded: bool
) -> None:
    if is_embedded:
        embed(shop)
    rank = searching.rank_words

    def index_again(*arguments: Any, **options: Any) -> Any:
        ranked = rank(*arguments, **options)
        monkeypatch.setattr(searching, "rank_words", rank)
        shop.write("returns.md", RETURNS.replace("30 days", "20 days"))
        shop.sync()
        return ranked

    monkeypatch.setattr(searching, "rank_words", index_again)
    assert "20 days" in find(shop, embedders, "My kettle leaks")[0].content


def test_a_sync_without_changes_deletes_former_spaces(
    shop: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(shop)
    embed(shop, kind=HashedNewer)
    shop.database.run("UPDATE spaces SET superseded_at = superseded_at - interval '1 hour'")
    place = {"database": shop.database, "tenant_id": shop.tenant_id, "settings": shop.settings}
    embed_new(cast(System, SimpleNamespace(**place)), "shop")
    assert [row.version for row in shop.database.run("SELECT version FROM spaces")] == ["2"]


def test_tenants_with_the_same_texts_find_their_own_alone(shop: Library) -> None:
    """Random questions, by words and by vectors."""
    owners: dict[UUID, set[UUID]] = {}
    tenants = [shop.tenant_id, create_tenant(shop.database, "other", shop.settings)]
    spaces = {}
    for tenant in tenants:
        shop.tenant_id = tenant
        shop.sync()
        spaces[tenant] = embed(shop)
        rows = shop.database.run(
            "SELECT d.id FROM documents d JOIN collections c ON c.id = d.collection_id "
            "WHERE c.tenant_id = %s", (tenant,),
        )  # fmt: skip
        owners[tenant] = {row.id for row in rows}
    assert owners[tenants[0]].isdisjoint(owners[tenants[1]])
    random = Random(1)
    words = ["kettle", "leaks", "knives", "sleeve", "returned", "days", "boiler", "zeppelin"]
    found = 0
    for n in range(QUESTIONS):
        tenant = tenants[n % 2]
        question = " ".join(random.choices(words, k=random.randint(1, 4)))
        vector = [random.gauss(0, 1 / DIMS**0.5) for _ in range(DIMS)]
        asked = Asked(spaces[tenant], vector) if n % 4 < 2 else None
        result = search(shop.database, tenant, "shop", question, 5, asked)
        assert {each.document_id for each in result} <= owners[tenant]
        found += len(result)
    assert found > QUESTIONS


def test_a_space_of_another_tenant_gives_no_rows(shop: Library) -> None:
    """The last statement asks for the tenant once more."""
    space = embed(shop)
    other = create_tenant(shop.database, "other", shop.settings)
    asked = Asked(space, hashed("kettle"))
    assert search(shop.database, other, "shop", "kettle", 5, asked) == []
