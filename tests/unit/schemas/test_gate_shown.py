"""A gate passes nothing that the model would not be shown."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from turnmill.schemas.store.knowledge.features import features
from turnmill.schemas.store.knowledge.fusion import DENSE_WEIGHT, fuse
from turnmill.schemas.store.knowledge.gate import Gate, Logistic, Measured, Zone
from turnmill.schemas.store.knowledge.search import Passage
from turnmill.schemas.store.knowledge.words import Ranked

MEASURED = Measured(
    answerable=1, unanswerable=1, precision=1, precision_low=1, precision_high=1, coverage=1,
    auroc=1,
)  # fmt: skip
#: Sure of everything.
GATE = Gate(
    logistic=Logistic(names=("a",), means=(0,), scales=(1,), weights=(9, 0)),
    threshold=0.5, wanted=0.9, measured=MEASURED, calibrated_at=datetime.now(UTC), passage_count=1,
)  # fmt: skip

#: Passages with one common word of the question, and with most of its words.
WEAK, STRONG = Ranked(1, score=0.9, coverage=0.05), Ranked(1, score=7.0, coverage=0.9)


def passage(ranked: Ranked, fused: float) -> Passage:
    return Passage(
        uuid4(), "a.md", "A", 1, "", "", None, ranked.score, ranked.coverage, None, fused
    )


def test_a_result_of_which_nothing_is_shown_is_not_known() -> None:
    judged = GATE.judge({"a": 0.0}, [])
    assert judged.zone is Zone.UNKNOWN
    assert judged.probability == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("cosines", [{}, {2: 0.8}, {2: 0.8, 3: 0.7}])
def test_the_only_word_match_is_not_sure_for_being_the_only_one(cosines: dict[int, float]) -> None:
    """It is new, and has no vector yet."""
    fused = fuse({1: WEAK}, cosines, DENSE_WEIGHT)
    assert GATE.judge({"a": 0.0}, [passage(WEAK, fused[1])]).zone is Zone.UNKNOWN
    if len(cosines) > 1:
        assert fused[1] < fused[2]


def test_a_new_passage_with_most_words_stands_before_what_is_only_near() -> None:
    fused = fuse({1: STRONG, 4: Ranked(4, 0.9, 0.05)}, {2: 0.8, 3: 0.7}, DENSE_WEIGHT)
    assert max(fused, key=lambda each: fused[each]) == 1
    assert GATE.judge({"a": 0.0}, [passage(STRONG, fused[1])]).zone is Zone.KNOWN


def test_what_words_say_does_not_depend_on_the_fused_order() -> None:
    """A passage that is only near stands first, and the gate sees the one with the words."""
    near = Passage(uuid4(), "a.md", "A", 1, "", "", None, 0.0, 0.0, 0.9, 0.7)
    best = Passage(uuid4(), "a.md", "A", 1, "", "", None, 7.0, 0.8, 0.6, 0.6)
    weak = Passage(uuid4(), "a.md", "A", 1, "", "", None, 1.0, 0.1, 0.5, 0.2)
    fused = features("What is it?", [near, best, weak])
    by_words = [each._replace(cosine=None, fused=None) for each in (best, weak, near)]
    words = features("What is it?", by_words)
    assert {name: fused[name] for name in words} == words
    assert words["coverage"] == 0.8
    assert fused["cosine"] == 0.9
    assert (fused["agreement"], fused["coverage_of_nearest"]) == (0.0, 0.0)
    assert fused["cosine_of_best"] == pytest.approx(-0.3)


def test_a_gate_of_an_earlier_release_for_vectors_is_outdated() -> None:
    def gate(*names: str) -> Gate:
        return GATE.model_copy(update={"logistic": Logistic(
            names=names, means=(0,) * len(names), scales=(1,) * len(names),
            weights=(0,) * (len(names) + 1))})  # fmt: skip

    assert gate("cosine", "score").is_outdated
    assert not gate("agreement", "cosine", "score").is_outdated
    assert not gate("score").is_outdated


def test_words_and_vectors_are_weighed() -> None:
    words = {1: Ranked(1, 4.0, 0.5), 2: Ranked(2, 2.0, 0.2)}
    assert fuse(words, {1: 0.2, 2: 0.6, 3: 0.4}, 0.75) == pytest.approx(
        {1: 0.25, 2: 0.75 + 0.125, 3: 0.375}
    )
    assert fuse({}, {}, 0.5) == {}
