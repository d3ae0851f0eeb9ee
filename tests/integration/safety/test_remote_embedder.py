"""A server that makes vectors of questions reads no more of them than a server with a model."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.embedders.stand_in import EmbeddingServer
from tests.integration.knowledge.conftest import Library
from tests.integration.safety.conftest import Obedient
from turnmill.producer.accept import accept
from turnmill.producer.cli.entry import main
from turnmill.producer.knowledge.gaps.listing import list_groups
from turnmill.producer.knowledge.lookup import find_collection
from turnmill.schemas.embedders.embedders import SEARCHES
from turnmill.schemas.embedders.filling import fill
from turnmill.schemas.embedders.registry import create_embedder
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.settings import EmbedderSettings
from turnmill.schemas.store.knowledge.spaces import save_space, switch
from turnmill.workers.testing import InlineWorker

pytest.importorskip("phonenumbers", reason="pip install 'turnmill[personal]'")
pytest.importorskip("httpx", reason="pip install 'turnmill[embeddings]'")

PHONE = "+49 30 123456"
QUESTION = f"Are chess pawns carved out of ivory? Call {PHONE}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    server = EmbeddingServer()
    with server.running() as url:
        monkeypatch.setenv("TURNMILL_EMBEDDER__URL", url)
        monkeypatch.setenv("TURNMILL_EMBEDDER__MODEL", "pairs")
        yield server


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, server: EmbeddingServer) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


@pytest.fixture
def shop(system: Any, library: Library, server: EmbeddingServer) -> Library:
    """A collection whose vectors the server makes."""
    library.write("returns.md", "# Returns\n\nA kettle that leaks may be sent back.")
    library.sync()
    settings: EmbedderSettings = system.settings.embedder
    embedder = create_embedder("openai_http", settings)
    collection = find_collection(library.database, library.tenant_id, "shop")
    identity = embedder.identity
    space = save_space(library.database, collection.collection_id, *identity[:3], ("", ""))
    list(fill(library.database, space, embedder))
    switch(library.database, space)
    embedder.close()
    server.requests.clear()
    return library


def ask(system: Any, text: str) -> None:
    with InlineWorker(system.settings):
        accept(system.database, system.request(text))
        system.wait_until_settled()


def sent(server: EmbeddingServer) -> list[str]:
    """Questions and passages, without what an embedder sends to learn the size of its vectors."""
    texts = [text for request in server.requests for text in request["input"]]
    return [text for text in texts if text != "-"]


@pytest.mark.parametrize(
    ("safety", "shown"),
    [
        ({"links": "any"}, PHONE),
        ({"remote": "pseudonyms"}, "<PHONE_1>"),
        ({"checks": ["personal.input:mask"]}, "<phone>"),
        ({"checks": ["personal.output:mask"], "remote": "pseudonyms"}, "<PHONE_1>"),
    ],
)
def test_a_server_embeds_the_question_as_models_may_read_it(
    system: Any,
    shop: Library,
    server: EmbeddingServer,
    save: Callable[..., None],
    engine: Obedient,
    safety: dict[str, Any],
    shown: str,
) -> None:
    save(knowledge="shop", **safety)
    fused = SEARCHES.labels("fused")._value.get()
    ask(system, QUESTION)
    assert sent(server) == [QUESTION.replace(PHONE, shown)]
    assert SEARCHES.labels("fused")._value.get() == fused + 1


def test_a_gap_is_asked_again_as_its_turn_was(
    system: Any,
    shop: Library,
    server: EmbeddingServer,
    save: Callable[..., None],
    engine: Obedient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(knowledge="shop", remote="pseudonyms")
    ask(system, QUESTION)
    [group] = list_groups(system.database, system.tenant_id)
    assert group.first.question == QUESTION
    server.requests.clear()
    for name, value in system.variables.items():
        monkeypatch.setenv(name, value)
    words = ["--question", "What are chess pawns made of?"]
    gap = show_id(Prefix.GAP, group.first.id)
    monkeypatch.setattr(sys, "argv", ["turnmill", "gaps", "answer", gap, "Of olive wood.", *words])
    with pytest.raises(SystemExit):
        main()
    assert QUESTION.replace(PHONE, "<PHONE_1>") in sent(server)
    assert PHONE not in "".join(sent(server))


def test_without_what_hides_it_the_question_is_searched_for_by_words(
    system: Any,
    shop: Library,
    server: EmbeddingServer,
    save: Callable[..., None],
    engine: Obedient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*given: Any, **named: Any) -> Any:
        raise ModuleNotFoundError("phonenumbers")

    save(knowledge="shop", remote="pseudonyms")
    monkeypatch.setattr("turnmill.workers.safety.sifting.find_personal", missing)
    ask(system, QUESTION)
    assert sent(server) == []
