"""A model as the judge: both orders, and ties where they disagree."""

from uuid import UUID

import pytest

from turnmill.producer.evaluation.gate import Sample, Verdict, decide, overall
from turnmill.producer.evaluation.judge import (
    PROMPT,
    ask_judge,
    comparable,
    judge_samples,
    judged,
)
from turnmill.producer.evaluation.outcomes import Outcome, Pair, Question
from turnmill.producer.evaluation.replay_page import judge_lines
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
    ],
)
def test_a_preference_counts_if_it_survives_the_exchange_of_the_seats(
    ab: str | None, ba: str | None, score: float
) -> None:
    one = pair(1, "old", "new")
    (sample,) = judge_samples([one], said(one, ab, ba))
    assert (sample.baseline, sample.candidate) == (0.5, score)


@pytest.mark.parametrize(
    ("ab", "ba"), [("the first or the second", "first"), (None, "first"), ("", ""), ("tie", None)]
)
def test_a_pair_without_two_verdicts_is_left_out(ab: str | None, ba: str | None) -> None:
    pairs = [pair(number, "old", "new") for number in range(4)]
    verdicts = said(pairs[0], ab, ba)
    for each in pairs[1:]:
        verdicts |= said(each, "second", "first")
    assert [each.candidate for each in judge_samples(pairs, verdicts)] == [1, 1, 1]
    found = judged("judge", pairs, verdicts)
    assert found is not None
    assert (found.compared, found.wins, found.unreadable) == (3, 1, 0.25)


@pytest.mark.parametrize(
    ("asked", "readable", "equal", "is_enough"),
    [(300, 0, 0, False), (300, 149, 0, False), (300, 150, 0, True), (300, 0, 30, False),
     (15, 15, 0, False), (15, 15, 5, True)],
)  # fmt: skip
def test_a_judge_that_hardly_answers_lets_no_bot_pass(
    asked: int, readable: int, equal: int, is_enough: bool
) -> None:
    pairs = [pair(number, "old", "new") for number in range(asked)]
    verdicts = {
        key: each for one in pairs[:readable] for key, each in said(one, "tie", "tie").items()
    }
    pairs += [pair(asked + number, "same", "same") for number in range(equal)]

    gates = decide(
        {"length": [Sample(str(n), 1.0, 1.0) for n in range(300)],
         "wins": judge_samples(pairs, verdicts)}
    )  # fmt: skip

    verdict = Verdict.PASSED if is_enough else Verdict.UNDECIDED
    assert overall(gates, 300, has_judge=True) is verdict
    found = judged("judge", pairs, verdicts)
    assert found is not None
    assert found.is_enough is is_enough
    assert ("too few to tell" in judge_lines(found)) is not is_enough


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
