"""The gate between two bots: what may get worse, by how much, and whether that is shown.

Intervals are 95 % intervals of the difference, by the bootstrap over conversations. Hard gates
compare shares as they are, and pass within the margin. Beyond it they fail where the interval
excludes 0: a bot that fails at times differs from itself by more than the margin, by chance. Soft
gates show non-inferiority: the interval lies above the margin. To find no significant difference
would not do: the fewer the turns, the easier it would be to pass.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.intervals import Figure, bootstrap_sums, ratio
from turnmill.compression.evaluate.text_scores import sums_of
from turnmill.schemas.errors import InvalidInput

#: Of fewer conversations the bootstrap's intervals are too narrow to be believed.
FEWEST_CONVERSATIONS = 20


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    #: The turns are too few to tell.
    UNDECIDED = "undecided"


class Rule(NamedTuple):
    """What one gate allows the candidate to be worse by."""

    name: str
    margin: float
    is_hard: bool = False
    #: Whether more is better (1), or less (-1).
    sign: int = 1
    #: Neither more nor less may be too much.
    is_two_sided: bool = False


#: Errors, format and abstention are shares of turns, similarity is chrF to the stored reply (0 to
#: 1), meaning what an embedder says of the same (0 is chance, 1 is equal), length the logarithm of
#: the words, repeats a share of word sequences, wins 0, ½ or 1.
RULES = (
    Rule("errors", 0.01, is_hard=True, sign=-1),
    Rule("format", 0.01, is_hard=True, sign=-1),
    Rule("abstention", 0.05, is_hard=True, sign=-1),
    Rule("similarity", 0.08),
    Rule("meaning", 0.08),
    Rule("length", math.log(1.3), is_two_sided=True),
    Rule("repeats", 0.05, sign=-1),
    Rule("wins", 0.1),
)


class Sample(NamedTuple):
    """One turn's value of both bots."""

    conversation: str
    baseline: float
    candidate: float


class Gate(BaseModel):
    """What one gate found."""

    model_config = ConfigDict(frozen=True)

    name: str
    is_hard: bool
    margin: float
    turns: int
    baseline: float
    candidate: float
    #: The mean difference, candidate less baseline; of a share of bad things, less is better.
    difference: Figure
    verdict: Verdict


def with_margins(margins: Mapping[str, float]) -> tuple[Rule, ...]:
    """Return the rules, some with other margins. Raises `InvalidInput`."""
    known = {rule.name for rule in RULES}
    for name, margin in margins.items():
        if name not in known:
            raise InvalidInput(
                f"There is no gate '{name[:80]}'. Known are {', '.join(sorted(known))}."
            )
        if not 0 <= margin < math.inf:
            raise InvalidInput(f"The margin of {name} must be a number that is not negative.")
    return tuple(rule._replace(margin=margins.get(rule.name, rule.margin)) for rule in RULES)


def decide(
    samples: Mapping[str, Sequence[Sample]], rules: Sequence[Rule] = RULES
) -> tuple[Gate, ...]:
    """Decide each gate that has samples, in the order of the rules."""
    return tuple(_gate(rule, samples[rule.name]) for rule in rules if samples.get(rule.name))


def overall(gates: Sequence[Gate], conversations: int, *, has_judge: bool = False) -> Verdict:
    """Return the verdict over all gates: one that failed is enough, if there is enough to see.

    A judge that was asked must have decided something: without its gate no bot passes.
    """
    verdicts = {gate.verdict for gate in gates}
    if has_judge and "wins" not in {gate.name for gate in gates}:
        verdicts.add(Verdict.UNDECIDED)
    if not gates or conversations < FEWEST_CONVERSATIONS:
        return Verdict.UNDECIDED
    if Verdict.FAILED in verdicts:
        return Verdict.FAILED
    # Bots that answer nothing are equal in all that is hard, and nothing was compared.
    was_compared = any(not gate.is_hard for gate in gates)
    return Verdict.PASSED if was_compared and verdicts == {Verdict.PASSED} else Verdict.UNDECIDED


def _gate(rule: Rule, samples: Sequence[Sample]) -> Gate:
    groups = [each.conversation for each in samples]
    counts = [(each.candidate - each.baseline, 1.0) for each in samples]
    difference = bootstrap_sums(sums_of(counts, groups), ratio)
    return Gate(
        name=rule.name,
        is_hard=rule.is_hard,
        margin=rule.margin,
        turns=len(samples),
        baseline=sum(each.baseline for each in samples) / len(samples),
        candidate=sum(each.candidate for each in samples) / len(samples),
        difference=difference,
        verdict=_verdict(rule, difference, len(set(groups))),
    )


def _verdict(rule: Rule, difference: Figure, conversations: int) -> Verdict:
    margin = rule.margin
    # Sums of fractions may miss a margin of nothing by rounding.
    if rule.is_hard and rule.sign * difference.value >= -margin - 1e-9:
        return Verdict.PASSED
    if conversations < FEWEST_CONVERSATIONS:
        return Verdict.UNDECIDED
    ends = (difference.low, difference.high)
    low, high = ends if rule.sign > 0 else (-ends[1], -ends[0])
    if rule.is_hard:
        return Verdict.FAILED if high < 0 else Verdict.UNDECIDED
    if high <= -margin or (rule.is_two_sided and low >= margin):
        return Verdict.FAILED
    if low > -margin and (high < margin or not rule.is_two_sided):
        return Verdict.PASSED
    return Verdict.UNDECIDED
