"""The gate's statistics, on synthetic bots whose quality is known."""

import math
import random

import pytest

from tests.judging import Bot, judged, replayed, speaks
from turnmill.producer.evaluation.gate import (
    RULES,
    Gate,
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


def errors(seed: int, baseline: float, candidate: float) -> Gate:
    """What the gate makes of two bots that fail at these rates, over 300 turns."""
    draw = random.Random(seed)
    samples = [
        Sample(str(n // 2), draw.random() < baseline, draw.random() < candidate) for n in range(300)
    ]
    return decide({"errors": samples})[0]


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_bot_that_fails_at_times_does_not_fail_against_itself(rate: float) -> None:
    found = [errors(seed, rate, rate).verdict for seed in range(100)]
    assert found.count(Verdict.FAILED) <= 5
    assert found.count(Verdict.PASSED) >= 60


@pytest.mark.parametrize(("rate", "most"), [(0.0, 0), (0.02, 3), (0.05, 8)])
def test_five_points_of_errors_more_pass_by_chance_alone(rate: float, most: int) -> None:
    """Chance makes 15 failures more of 300 look like 3 or fewer in 0.1, 1 and 4 of 100 draws."""
    found = [errors(seed, rate, rate + 0.05).verdict for seed in range(100)]
    assert found.count(Verdict.PASSED) <= most
    assert found.count(Verdict.FAILED) >= 50


def test_a_hard_difference_beyond_the_margin_that_may_be_chance_is_undecided() -> None:
    def gate(of: int, worse: int, better: int) -> Gate:
        values = [(0, 1)] * worse + [(1, 0)] * better + [(0, 0)] * (of - worse - better)
        return decide({"errors": [Sample(str(n), *each) for n, each in enumerate(values)]})[0]

    assert gate(300, 13, 10).verdict is Verdict.PASSED
    assert gate(300, 14, 10).verdict is Verdict.UNDECIDED
    assert gate(300, 14, 0).verdict is Verdict.FAILED
    assert gate(10, 10, 0).verdict is Verdict.UNDECIDED


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
