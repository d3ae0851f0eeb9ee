"""A search of a vector store finds what a bot's turn finds, in the same order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import openai
import pytest

from tests.contract.embedders.stand_in import Hashed
from tests.integration.media.conftest import MakeSite, Site
from turnmill.producer.api import services
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.embedders.filling import fill
from turnmill.schemas.embedders.registry import EMBEDDERS
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES
from turnmill.schemas.store.knowledge.search import search
from turnmill.schemas.store.knowledge.spaces import Vector, adopt_pgvector, save_space, switch

RETURNS = b"""# Returns

## Kettles

A kettle that leaks may be sent back within 30 days.

## Knives

Knives cannot be returned once their sleeve is open.
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDERS, "hashed", "tests.contract.embedders.stand_in:Hashed")
    monkeypatch.setitem(EMBEDDER_LIBRARIES, "hashed", "zlib")


@pytest.fixture
def store_id(indexed: Site) -> str:
    """Of a vector store with a file."""
    store = indexed.openai.vector_stores.create(name="shop")
    indexed.openai.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("returns.md", RETURNS)
    )
    return store.id


def embed(site: Site, store_id: str) -> None:
    """As `turnmill knowledge embed` does."""
    assert adopt_pgvector(site.database)
    embedder = Hashed(site.settings.embedder)
    collection_id = parse_id(Prefix.VECTOR_STORE, store_id)
    space = save_space(site.database, collection_id, *embedder.identity[:3], ("", ""))
    list(fill(site.database, space, embedder))
    switch(site.database, space)


def find(site: Site, store_id: str, question: str) -> list[tuple[str, float]]:
    found = site.openai.vector_stores.search(store_id, query=question).data
    return [(each.content[0].text, each.score) for each in found]


def test_a_search_is_that_of_a_bots_turn(indexed: Site, store_id: str) -> None:
    question = "The boiler drips"
    assert find(indexed, store_id, question) == []
    embed(indexed, store_id)
    found = find(indexed, store_id, question)
    assert "kettle" in found[0][0]
    embedders = Embedders(indexed.settings.embedder)
    for asked in (question, "My kettle leaks", "May I return knives?"):
        place = (indexed.database, indexed.tenant_id, "shop", asked)
        of_turn = search(*place, 10, embedders.ask(*place))
        expected = [(each.content, pytest.approx(each.fused)) for each in of_turn]
        assert find(indexed, store_id, asked) == expected
        assert all(0 <= score <= 1 for _, score in find(indexed, store_id, asked))


def test_without_the_embedder_words_are_searched(
    indexed: Site, store_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(indexed, store_id)
    monkeypatch.setitem(EMBEDDER_LIBRARIES, "hashed", "no_such_library")
    assert find(indexed, store_id, "The boiler drips") == []
    [(text, score)] = find(indexed, store_id, "My kettle leaks")
    assert ("kettle" in text, score) == (True, 1)


@pytest.fixture
def crowded(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site that takes one search at a time, and lets none wait."""
    monkeypatch.setattr(services, "SEARCH_SIZE", 1)
    monkeypatch.setattr(services, "MAX_SEARCHES", 1)
    yield make_site()


def test_searches_that_are_too_many_are_refused_and_harm_no_other_call(
    crowded: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = crowded.openai.vector_stores.create(name="shop")
    embed(crowded, store.id)
    begun, go_on = Event(), Event()

    def hang(self: Hashed, text: str) -> Vector:
        begun.set()
        assert go_on.wait(30)
        raise RuntimeError

    monkeypatch.setattr(Hashed, "embed_question", hang)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(find, crowded, store.id, "kettle")
        try:
            assert begun.wait(30)
            with pytest.raises(openai.APIStatusError, match="too many searches") as refused:
                find(crowded, store.id, "kettle")
            assert refused.value.status_code == 503
            assert crowded.openai.vector_stores.retrieve(store.id).name == "shop"
        finally:
            go_on.set()
        assert first.result(timeout=30) == []


def test_a_search_that_has_waited_for_long_goes_by_words(
    indexed: Site, store_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(indexed, store_id)
    assert find(indexed, store_id, "The boiler drips")
    monkeypatch.setattr(services, "MAX_SEARCH_WAIT_S", -1.0)
    assert find(indexed, store_id, "The boiler drips") == []
    assert find(indexed, store_id, "My kettle leaks")


def test_queries_that_are_too_long_together_are_refused(site: Site) -> None:
    store = site.openai.vector_stores.create(name="shop")
    assert site.openai.vector_stores.search(store.id, query=["x" * 2048] * 2).data == []
    with pytest.raises(openai.BadRequestError, match="together have up to 4,096") as error:
        site.openai.vector_stores.search(store.id, query=["x" * 2048] * 3)
    assert error.value.param == "query"


@pytest.mark.parametrize("options", [{"ranker": "auto"}, {"ranker": "none", "score_threshold": 0}])
def test_options_that_say_what_happens_anyway_are_taken(
    site: Site, options: dict[str, object]
) -> None:
    store = site.openai.vector_stores.create(name="shop")
    found = site.openai.vector_stores.search(store.id, query="x", ranking_options=options)  # type: ignore[arg-type]
    assert found.data == []
    with pytest.raises(openai.BadRequestError, match="score_threshold") as error:
        site.openai.vector_stores.search(
            store.id,
            query="x",
            ranking_options={**options, "score_threshold": 0.5},  # type: ignore[arg-type]
        )
    assert error.value.param == "ranking_options"
