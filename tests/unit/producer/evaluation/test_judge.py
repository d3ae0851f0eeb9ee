"""A model as the judge: both orders, and ties where they disagree."""

from uuid import UUID

import pytest

from turnmill.producer.evaluation.judge import (
    PROMPT,
    ask_judge,
    comparable,
    judge_samples,
    judged,
)
from turnmill.producer.evaluation.outcomes import Outcome, Pair, Question
from turnmill.schemas.turns import GenerationParams, Message, Role


def pair(number: int, baseline: str | None, candidate: str | None) -> Pair:
    asked = (Message(role=Role.USER, content="Where is it?"),)
    question = Question(UUID(int=number), str(number), asked, "stored", GenerationParams())
    return Pair(question, Outcome(baseline, None), Outcome(candidate, None))


def said(pair: Pair, ab: str | None, ba: str | None) -> dict[str, Outcome]:
    key = pair.question.turn_id.hex
    return {f"{key}:ab": Outcome(ab, None), f"{key}:ba": Outcome(ba, None)}


@pytest.mark.parametrize(
    ("ab", "ba", "score"),
    [
        ("second", "first", 1.0),
        ("First.", "**second**", 0.0),
        ("tie", "tie", 0.5),
        ("first", "first", 0.5),
        ("second", "tie", 0.5),
        ("the first or the second", "first", 0.5),
        (None, "first", 0.5),
        ("", "", 0.5),
    ],
)
def test_a_preference_counts_if_it_survives_the_exchange_of_the_seats(
    ab: str | None, ba: str | None, score: float
) -> None:
    one = pair(1, "old", "new")
    (sample,) = judge_samples([one], said(one, ab, ba))
    assert (sample.baseline, sample.candidate) == (0.5, score)


def test_a_judge_who_always_takes_the_first_decides_nothing() -> None:
    pairs = [pair(number, "old", "new") for number in range(10)]
    verdicts = {key: each for one in pairs for key, each in said(one, "first", "first").items()}
    found = judged("judge", pairs, verdicts)
    assert found is not None
    assert (found.wins, found.losses, found.flipped) == (0, 0, 1)


def test_a_judge_who_takes_the_longer_one_is_found_out() -> None:
    pairs = [pair(1, "old", "new and long"), pair(2, "old and long", "new")]
    verdicts = said(pairs[0], "second", "first") | said(pairs[1], "first", "second")
    found = judged("judge", pairs, verdicts)
    assert found is not None
    assert (found.wins, found.losses, found.longer_won) == (0.5, 0.5, 1)
    assert found.prompt == PROMPT


def test_equal_replies_are_ties_and_failures_are_not_compared() -> None:
    pairs = [pair(1, "same", "same"), pair(2, None, "new"), pair(3, "old", None)]
    assert comparable(pairs) == []
    assert judged("judge", pairs, {}) is None
    assert [each.candidate for each in judge_samples(pairs, {})] == [0.5]


def test_each_pair_is_asked_about_in_both_orders() -> None:
    rows = ask_judge("judge", "run", [pair(1, "OLD", "NEW")]).questions
    first, second = (row.all_messages[-1].text for row in rows)
    assert first.index("OLD") < first.index("NEW")
    assert second.index("NEW") < second.index("OLD")
    assert {row.params.temperature for row in rows} == {0}
