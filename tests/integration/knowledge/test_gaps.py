"""What a collection did not answer is asked of its owner, and answered from then on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.knowledge.conftest import Library, Reading
from tests.integration.knowledge.test_ladder import FAQ, FOREIGN, KNOWN, Shop
from turnmill.producer.handoff import hand_off
from turnmill.producer.knowledge.gaps.closing import answer_gap, dismiss_gaps
from turnmill.producer.knowledge.gaps.listing import Gap, list_groups
from turnmill.producer.ratings import rate
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.workers.testing import InlineWorker

PAWNS = "Are chess pawns carved out of ivory?"
PAWNS_TOO = "Are pawns of chess carved out of ivory?"
ANSWER = "We sell no ivory; our chess pawns are of olive wood."


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", rescue_every_s=60.0)


@pytest.fixture
def shop(system: Any, library: Library, engine: Reading) -> Shop:
    return Shop(system, library, engine)


def missed(shop: Shop, *questions: str) -> None:
    """Ask each in a conversation of its own."""
    for question in questions:
        shop.conversation_id = None
        shop.ask(question)


def listed(shop: Shop) -> list[list[str]]:
    groups = list_groups(shop.system.database, shop.system.tenant_id)
    return [[gap.question for gap in group.gaps] for group in groups]


def first_gap(shop: Shop) -> Any:
    return list_groups(shop.system.database, shop.system.tenant_id)[0].first


def test_an_answer_becomes_a_document_and_the_next_user_is_answered(shop: Shop) -> None:
    place = (shop.system.database, shop.system.tenant_id)
    with InlineWorker(shop.system.settings):
        missed(shop, PAWNS, FOREIGN, PAWNS_TOO)
        assert listed(shop) == [[PAWNS_TOO, PAWNS], [FOREIGN]]
        gap = first_gap(shop)
        replayed = answer_gap(*place, gap.id, ANSWER)
        assert [each.question for each in replayed.passed] == [PAWNS_TOO, PAWNS]
        assert replayed.missed == ()
        assert listed(shop) == [[FOREIGN]]
        missed(shop, PAWNS)
    assert shop.verdicts()[-1] == Verdict.ANSWERED
    assert "olive wood" in shop.engine.prompts[-1]
    # It stays when the sources are synchronized, and another answer takes its place.
    shop.library.sync("shop", FAQ / "en.csv")
    answer_gap(*place, gap.id, "Our chess pawns of ivory are sold out.")
    found = [each for each in shop.library.search(PAWNS) if each.uri == show_id(Prefix.GAP, gap.id)]
    assert [each.content for each in found] == ["Our chess pawns of ivory are sold out."]


def test_an_answer_that_its_question_does_not_find_leaves_the_gap_open(shop: Shop) -> None:
    place = (shop.system.database, shop.system.tenant_id)
    with InlineWorker(shop.system.settings):
        missed(shop, PAWNS)
    gap = first_gap(shop)
    replayed = answer_gap(*place, gap.id, "Olive wood only.", question="Which timber is used?")
    assert (replayed.passed, [each.id for each in replayed.missed]) == ((), [gap.id])
    assert listed(shop) == [[PAWNS]]


def test_gaps_are_asked_again_as_turns_ask(shop: Shop) -> None:
    """Once the answer is there, and by each question's vector."""
    with InlineWorker(shop.system.settings):
        missed(shop, PAWNS)
    asked: list[tuple[str, int]] = []

    @contextmanager
    def asking(collection: str) -> Iterator[Callable[[Gap], None]]:
        there = len(shop.library.search("olive wood pawns", collection))

        def ask(gap: Gap) -> None:
            asked.append((gap.question, there))

        yield ask

    place = (shop.system.database, shop.system.tenant_id)
    answer_gap(*place, first_gap(shop).id, ANSWER, asking=asking)
    assert [question for question, _ in asked] == [PAWNS]
    assert all(there for _, there in asked)


def test_a_gap_is_dismissed_with_those_near_to_it(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        missed(shop, PAWNS, PAWNS_TOO, FOREIGN)
    place = (shop.system.database, shop.system.tenant_id)
    assert dismiss_gaps(*place, first_gap(shop).id) == 2
    assert listed(shop) == [[FOREIGN]]


def test_a_bad_rating_is_a_gap_until_it_is_taken_back(shop: Shop) -> None:
    place = (shop.system.database, shop.system.tenant_id)
    with InlineWorker(shop.system.settings):
        turn = shop.ask(KNOWN)
    rate(*place, turn.turn_id, "anna", -1)
    rate(*place, turn.turn_id, "bert", -1)
    assert [(gap.question, gap.verdict) for gap in list_groups(*place)[0].gaps] == [
        (KNOWN, "rated_down")
    ]
    rate(*place, turn.turn_id, "anna", 0)
    assert listed(shop) == []


def test_what_was_asked_before_a_person_took_over_is_a_gap(shop: Shop) -> None:
    place = (shop.system.database, shop.system.tenant_id)
    with InlineWorker(shop.system.settings):
        shop.ask(PAWNS)
        shop.ask(KNOWN)
    hand_off(*place, shop.conversation_id, "An operator took it over.")
    hand_off(*place, shop.conversation_id, "An operator took it over.")
    rows = {(gap.question, gap.verdict) for each in list_groups(*place) for gap in each.gaps}
    assert rows == {(PAWNS, "uncertain"), (KNOWN, "taken_over")}


def test_replays_of_stored_turns_make_no_gaps(shop: Shop) -> None:
    database = shop.system.database
    batch = new_id()
    database.run(
        "INSERT INTO batches (id, tenant_id, bot, name, fingerprint, total, purpose) "
        "VALUES (%s, %s, 'b', 'b', 'b', 1, 'replay') RETURNING id",
        (batch, shop.system.tenant_id),
    )
    with InlineWorker(shop.system.settings):
        shop.ask(FOREIGN, batch_id=batch, batch_row=1)
    assert shop.verdicts() == [Verdict.UNCERTAIN]
    assert listed(shop) == []


def test_gaps_are_their_tenants_own(shop: Shop) -> None:
    with InlineWorker(shop.system.settings):
        missed(shop, PAWNS)
    gap = first_gap(shop)
    other = create_tenant(shop.system.database, "other", shop.system.settings)
    assert list_groups(shop.system.database, other) == []
    for attempt in (
        lambda: answer_gap(shop.system.database, other, gap.id, ANSWER),
        lambda: dismiss_gaps(shop.system.database, other, gap.id),
    ):
        with pytest.raises(NotFound, match="There is no gap"):
            attempt()
    with pytest.raises(InvalidInput, match="1 to 4000 characters"):
        answer_gap(shop.system.database, shop.system.tenant_id, gap.id, " ")


def test_the_words_of_a_user_are_in_one_column_of_a_gap(shop: Shop) -> None:
    canary = "Where is the zanzibarquokka of Mrs Miller?"
    with InlineWorker(shop.system.settings):
        missed(shop, canary)
    rows = shop.system.database.run(
        "SELECT to_jsonb(g) - 'question' AS rest FROM knowledge_gaps g WHERE question = %s",
        (canary,),
    )
    assert len(rows) == 1
    assert "quokka" not in str(rows[0].rest)
