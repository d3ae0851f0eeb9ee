"""BM25 in SQL is BM25, and looks at no more passages than it has to."""

from collections import Counter
from collections.abc import Callable
from math import log
from random import Random
from uuid import UUID

import pytest

from tests.integration.knowledge.conftest import Library
from tests.selection import storm_turns
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.knowledge import words
from turnmill.schemas.store.knowledge.indexing import Wanted, write
from turnmill.schemas.store.knowledge.lexemes import lexemes, passage_terms
from turnmill.schemas.store.knowledge.words import MAX_LEXEMES, Ranked, rank_words

#: Some in nearly all passages, some in one.
WORDS = [f"w{n}" for n in range(60)]
#: Of which each pair is a lexeme.
CHARACTERS = "的是不了在人有我他这个们中来上大为和国地到以说时要就出会可也"


def text(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, [1 / (n + 1) for n in range(60)], k=count))


def chinese(random: Random, count: int) -> str:
    return "".join(random.choices(CHARACTERS, [1 / (n + 1) for n in range(30)], k=count))


@pytest.fixture
def passages(library: Library) -> dict[int, list[str]]:
    """A collection of 120 passages, and their lexemes."""
    random = Random(5)
    return add(library, "shop", [text(random, random.randint(1, 40)) for _ in range(120)])


def add(
    library: Library, name: str, contents: list[str], tenant_id: UUID | None = None
) -> dict[int, list[str]]:
    """Make a collection of one passage a document; return the lexemes of each passage."""
    collection_id = new_id()
    with library.database.cursor() as cursor:
        cursor.execute(
            "INSERT INTO collections (id, tenant_id, name) VALUES (%s, %s, %s)",
            (collection_id, tenant_id or library.tenant_id, name),
        )
        for number, content in enumerate(contents):
            terms, length = passage_terms(f"T{number}", "", content)
            passage = {"heading": "", "content": content, "terms": terms, "length": length}
            wanted = Wanted(collection_id, "made", f"{number}.md", b"")
            write(cursor, wanted, f"T{number}", [passage])
    rows = library.database.run(
        "SELECT p.id, d.title, p.heading, p.content FROM passages p "
        "JOIN documents d ON d.id = p.document_id WHERE p.collection_id = %s",
        (collection_id,),
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


def rank(
    library: Library, question: str, limit: int = 200, collection: str = "shop"
) -> list[Ranked]:
    return rank_words(library.database, library.tenant_id, collection, question, limit)


def test_scores_are_those_of_the_formula(library: Library, passages: dict[int, list[str]]) -> None:
    random = Random(6)
    for count in (1, 2, 5, 12, 30):
        question = text(random, count)
        found = {each.id: each.score for each in rank(library, question)}
        assert found == pytest.approx(reference(passages, question))


@pytest.mark.parametrize("write_text", [text, chinese])
def test_the_few_best_are_those_of_the_formula(
    library: Library, write_text: Callable[[Random, int], str]
) -> None:
    random = Random(8)
    for number in range(4):
        longest = random.choice((5, 30, 200))  # the shorter, the less often a word is repeated
        contents = [write_text(random, random.randint(1, longest)) for _ in range(80)]
        found = add(library, f"c{number}", contents)
        for count in (1, 2, 3, 6, 12, 30):
            question = write_text(random, count + 1)
            expected = reference(found, question)
            best = sorted(expected.values(), reverse=True)
            for limit in (1, 3, 10, 50):
                ranked = rank(library, question, limit, f"c{number}")
                assert [each.score for each in ranked] == pytest.approx(best[:limit])
                assert [each.score for each in ranked] == pytest.approx(
                    [expected[each.id] for each in ranked]
                )


def test_words_that_most_passages_have_cost_no_passage_its_place(
    library: Library, passages: dict[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their index is not read where rarer words choose the passages."""
    rare = Counter(word for found in passages.values() for word in {*found})
    monkeypatch.setattr(words, "MAX_RANKED", 30)
    for word in (each for each in WORDS if 0 < rare[each] <= 30):
        question = f"{word} w0 w1 w2"
        expected = reference(passages, question)
        chosen = {each: expected[each] for each, found in passages.items() if word in found}
        ranked = rank(library, question, 3)
        best = sorted(chosen.values(), reverse=True)[:3]
        assert [each.score for each in ranked] == pytest.approx(best)


def test_few_passages_words_are_read(library: Library, passages: dict[int, list[str]]) -> None:
    """Repeated words alone leave a doubt: of most passages the index tells the score."""
    params = {
        "tenant": library.tenant_id, "name": "shop", "lexemes": ["w3", "w4", "w5"],
        "most": MAX_LEXEMES, "ranked": 3000, "limit": 3,
    }  # fmt: skip
    statement = words._ASKED + words._LIKELY + "SELECT cardinality(ids) AS n FROM likely"
    [row] = library.database.run(statement, params)
    assert 3 <= row.n < len(reference(passages, "w3 w4 w5")) / 3


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


def test_no_search_finds_a_passage_of_another_tenant_or_collection(library: Library) -> None:
    random, other = Random(9), create_tenant(library.database, "other", library.settings)
    contents = [text(random, random.randint(1, 40)) for _ in range(30)]
    places = {
        (tenant_id, name): set(add(library, name, contents, tenant_id))
        for tenant_id in (library.tenant_id, other)
        for name in ("shop", "help")
    }
    answered, searches = 0, storm_turns(200)
    for _ in range(searches):
        (tenant_id, name), own = random.choice([*places.items()])
        question = text(random, random.randint(1, 8))
        found = {each.id for each in rank_words(library.database, tenant_id, name, question, 50)}
        assert found <= own
        answered += bool(found)
    assert answered > searches / 2
