"""The gate's statistics, on synthetic bots whose quality is known."""

import math
import random

import pytest

from tests.judging import Bot, judged, replayed, speaks
from turnmill.producer.evaluation.gate import (
    RULES,
    Sample,
    Verdict,
    decide,
    with_margins,
)
from turnmill.producer.evaluation.outcomes import Outcome, Pair, Question, samples_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import GenerationParams


def test_a_bot_passes_against_itself() -> None:
    """A hundred seeds take longer: tests/integration/evaluation/test_replay.py has them."""
    same = speaks()
    assert [judged(replayed(seed, same, same))[0] for seed in range(3)] == [Verdict.PASSED] * 3


@pytest.mark.parametrize(
    ("worse", "gate"),
    [
        (speaks(noise=0.8), "similarity"),
        (speaks(errs=0.05), "errors"),
        (speaks(refuses=0.3), "abstention"),
        (lambda draw, ideal: " ".join(ideal * 2), "length"),
        (lambda draw, ideal: " ".join(ideal[:4] * 5), "repeats"),
        (lambda draw, ideal: "", "abstention"),
    ],
)
def test_a_worse_bot_fails_at_the_gate_it_is_worse_in(worse: Bot, gate: str) -> None:
    for seed in range(2):
        verdict, gates = judged(replayed(seed, speaks(), worse))
        assert verdict is Verdict.FAILED
        assert gates[gate].verdict is Verdict.FAILED


def test_a_better_bot_passes() -> None:
    verdict, gates = judged(replayed(3, speaks(errs=0.1, refuses=0.2), speaks(noise=0.2)))
    assert verdict is Verdict.PASSED, gates


@pytest.mark.parametrize("candidate", [speaks(), speaks(errs=1.0)])
def test_few_conversations_decide_nothing(candidate: Bot) -> None:
    assert judged(replayed(1, speaks(), candidate, turns=20))[0] is Verdict.UNDECIDED


def test_bots_that_answer_nothing_are_no_proof_of_anything() -> None:
    down = speaks(errs=1.0)
    assert judged(replayed(1, down, down))[0] is Verdict.UNDECIDED
    verdict, gates = judged(replayed(1, speaks(errs=0.99), speaks(errs=0.99)))
    assert verdict is Verdict.UNDECIDED, gates


def test_a_difference_that_more_turns_would_settle_is_undecided() -> None:
    draw = random.Random(1)
    samples = [Sample(str(n), 0.5, 0.5 + draw.gauss(-0.08, 0.3)) for n in range(50)]
    (gate,) = decide({"similarity": samples})
    assert gate.verdict is Verdict.UNDECIDED


def test_intervals_resample_conversations() -> None:
    few = [Sample(str(n), 0.5, 0.5 + (n % 5) / 10) for n in range(25)]
    many = [each for each in few for _ in range(10)]
    widths = [decide({"similarity": each})[0].difference for each in (few, many)]
    assert widths[0].low == pytest.approx(widths[1].low)
    assert widths[0].high == pytest.approx(widths[1].high)


def test_a_margin_can_be_changed_and_unknown_ones_are_refused() -> None:
    rules = {rule.name: rule.margin for rule in with_margins({"similarity": 0.2})}
    assert rules["similarity"] == 0.2
    assert rules["errors"] == next(rule.margin for rule in RULES if rule.name == "errors")
    for wrong in ({"charm": 1.0}, {"errors": -1.0}, {"errors": math.inf}, {"errors": math.nan}):
        with pytest.raises(InvalidInput):
            with_margins(wrong)


def test_replies_are_held_to_the_format_of_the_stored_reply() -> None:
    wanted = ResponseFormat(type="json_object")
    good, bad, cut = (Outcome(text, None) for text in ("{}", "sure!", '{"a": "b'))
    pairs = [
        Pair(Question(new_id(), str(n), (), "{}", GenerationParams(), wanted), good, candidate)
        for n, candidate in enumerate((good, bad, cut, Outcome(None, "format_not_met")))
    ]
    plain = Pair(Question(new_id(), "x", (), "yes", GenerationParams()), good, bad)

    found = samples_of([*pairs, plain])["format"]

    assert [each.candidate for each in found] == [0, 1, 1, 1]
    assert [each.baseline for each in found] == [0, 0, 0, 0]
