"""BM25 in SQL is BM25, and looks at no more passages than it has to."""

from collections import Counter
from math import log
from random import Random

import pytest

from tests.integration.knowledge.conftest import Library
from turnmill.schemas.store.knowledge import words
from turnmill.schemas.store.knowledge.lexemes import lexemes
from turnmill.schemas.store.knowledge.words import MAX_LEXEMES, Ranked, rank_words

#: Some in nearly all passages, some in one.
WORDS = [f"w{n}" for n in range(60)]


def text(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, [1 / (n + 1) for n in range(60)], k=count))


@pytest.fixture
def passages(library: Library) -> dict[int, list[str]]:
    """A collection of 120 passages, and their lexemes."""
    random = Random(5)
    pages = [f"# T{n}\n\n{text(random, random.randint(1, 40))}" for n in range(120)]
    for number, page in enumerate(pages):
        library.write(f"{number}.md", page)
    library.sync()
    rows = library.database.run(
        "SELECT p.id, d.title, p.heading, p.content FROM passages p "
        "JOIN documents d ON d.id = p.document_id"
    )
    return {row.id: lexemes(f"{row.title}\n{row.heading}\n{row.content}") for row in rows}


def reference(passages: dict[int, list[str]], question: str) -> dict[int, float]:
    """BM25 as it is written down: k1 = 1.2, b = 0.75."""
    df = Counter(word for found in passages.values() for word in {*found})
    count, usual = len(passages), sum(map(len, passages.values())) / len(passages)
    known = sorted({word for word in lexemes(question) if df[word]}, key=lambda w: (df[w], w))
    scores = {}
    for number, found in passages.items():
        frequency = Counter(found)
        score = sum(
            log(1 + (count - df[word] + 0.5) / (df[word] + 0.5))
            * frequency[word] * 2.2
            / (frequency[word] + 1.2 * (0.25 + 0.75 * len(found) / usual))
            for word in known[:MAX_LEXEMES]
        )  # fmt: skip
        if score:
            scores[number] = score
    return scores


def rank(library: Library, question: str, limit: int = 200) -> list[Ranked]:
    return rank_words(library.database, library.tenant_id, "shop", question, limit)


def test_scores_are_those_of_the_formula(library: Library, passages: dict[int, list[str]]) -> None:
    random = Random(6)
    for count in (1, 2, 5, 12, 30):
        question = text(random, count)
        found = {each.id: each.score for each in rank(library, question)}
        assert found == pytest.approx(reference(passages, question))


def test_the_best_are_mostly_the_same_where_the_commonest_words_choose_none(
    library: Library, passages: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_RANKED", 40)
    random = Random(7)
    same = looked_at = there = 0
    for _ in range(20):
        question = f"w{random.randint(20, 59)} {text(random, 6)}"
        expected = reference(passages, question)
        found = {each.id: each.score for each in rank(library, question)}
        assert found == pytest.approx({each: expected[each] for each in found})
        same += max(found.values(), default=0.0) == pytest.approx(max(expected.values()))
        looked_at += len(found)
        there += len(expected)
    assert same >= 16
    assert looked_at < there / 2


def test_the_rarest_word_is_looked_for_however_common_it_is(
    library: Library, passages: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_RANKED", 1)
    assert {each.id for each in rank(library, "w0")} == {*reference(passages, "w0")}


def test_among_given_passages_scores_are_the_same(
    library: Library, passages: dict[int, list[str]]
) -> None:
    question = "w0 w1 w30"
    some = sorted(passages)[::3]
    found = rank_words(library.database, library.tenant_id, "shop", question, 200, among=some)
    expected = {k: v for k, v in reference(passages, question).items() if k in some}
    assert {each.id: each.score for each in found} == pytest.approx(expected)
