"""How a study is laid out, and what its raters read."""

import pytest

from turnmill.producer.studies.creation import Plan, place
from turnmill.producer.studies.model import DIMENSIONS, KNOWN, Candidate
from turnmill.producer.studies.texts import TEXTS, choose_language

CANDIDATES = [Candidate((), f"a{number}", f"b{number}") for number in range(200)]


def test_the_same_seed_lays_out_the_same_study() -> None:
    def shown(seed: int) -> list[tuple[str, bool, int]]:
        placed = place("pairwise", CANDIDATES, Plan(seed))
        return [(each.candidate.a, each.left_is_a, each.wanted) for each in placed]

    assert shown(1) == shown(1) != shown(2)


def test_sides_are_shuffled_evenly() -> None:
    lefts = sum(each.left_is_a for each in place("pairwise", CANDIDATES, Plan()))
    assert 80 <= lefts <= 140


def test_a_share_of_the_items_is_for_several_and_a_share_comes_again_later() -> None:
    placed = place("likert", CANDIDATES, Plan(overlap=0.2, raters=3, repeats=0.1))

    first = [each for each in placed if each.repeat_of is None]
    again = [each for each in placed if each.repeat_of is not None]
    places = {each.item_id: at for at, each in enumerate(placed)}
    assert sorted(each.wanted for each in first) == [1] * 160 + [3] * 40
    assert len(again) == 20
    assert all(places[each.repeat_of] < places[each.item_id] for each in again if each.repeat_of)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_studies_can_be_laid_out_too(count: int) -> None:
    placed = place("likert", CANDIDATES[:count], Plan(overlap=1, repeats=1))
    assert len({each.candidate.a for each in placed}) == count


def test_every_dimension_has_anchors_in_every_language() -> None:
    for texts in TEXTS.values():
        assert {*KNOWN["likert"], *KNOWN["pairwise"]} == set(texts.scales)
        assert all(all(texts.scales[name].anchors) for name in DIMENSIONS["likert"])


@pytest.mark.parametrize(
    ("wanted", "accepted", "language"),
    [
        ("zh", "en", "zh"),
        ("en", "zh", "en"),
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "en-GB,zh;q=0.5", "en"),
        (None, "zh;q=0.2,en;q=0.9", "en"),
        (None, "fr,zh;q=0", "en"),
        (None, "zh;q=x", "en"),
        (None, "", "en"),
    ],
)
def test_the_language_is_the_one_that_was_asked_for(
    wanted: str | None, accepted: str, language: str
) -> None:
    assert choose_language(wanted, accepted) == language
