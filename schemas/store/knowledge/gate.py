"""The gate of a collection: whether what a search found answers the question.

A logistic regression on features of the result, fitted to the collection itself by
`turnmill knowledge calibrate`. A collection without a calibration has a rule of thumb.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from math import exp, inf
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.features import Features, features
from turnmill.schemas.store.knowledge.search import Passage

#: Passages that a turn is shown, at most.
MAX_SHOWN = 5
#: How much of a fused score a passage must have that does not have so many words.
MIN_FUSED = 0.5
#: How much of a question's words, each by how rare it is, a passage must have to be shown. Without
#: a calibration such a passage is taken for an answer; half of it is enough to ask what was meant.
MIN_COVERAGE = 0.2
#: Of the threshold: from there on a result is near enough to ask what was meant. Below it lie
#: questions about other matters that share the common words of a small collection.
NEAR_SHARE = 0.1


class Zone(StrEnum):
    """What a search's result is worth."""

    KNOWN = "known"  # it answers the question
    UNSURE = "unsure"  # it is about the same, and may not answer the question
    UNKNOWN = "unknown"  # it has nothing to do with the question


class Judged(NamedTuple):
    """A verdict of a gate."""

    zone: Zone
    #: That the passages answer the question; None without a calibration.
    probability: float | None


class Logistic(BaseModel):
    """A logistic regression on standardized features."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]
    means: tuple[float, ...]
    #: Standard deviations.
    scales: tuple[float, ...]
    #: The intercept first.
    weights: tuple[float, ...]

    def standardize(self, values: Mapping[str, float]) -> list[float]:
        """The features behind a 1 for the intercept."""
        columns = zip(self.names, self.means, self.scales, strict=True)
        return [1.0, *((values[name] - mean) / scale for name, mean, scale in columns)]

    def probability(self, values: Mapping[str, float]) -> float:
        """The probability of features; 0 of none. Raises `KeyError`: one is missing."""
        if not values:
            return 0.0
        row = self.standardize(values)
        return sigmoid(sum(a * b for a, b in zip(self.weights, row, strict=True)))


class Measured(BaseModel):
    """How a gate does on questions that it was not fitted to."""

    model_config = ConfigDict(frozen=True)

    #: Questions with an answer in the collection, and without one.
    answerable: int
    unanswerable: int
    #: Of the questions that pass: the share whose answer is shown, with its 95 % interval (Wilson).
    precision: float
    precision_low: float
    precision_high: float
    #: The precision where as many questions have no answer as have one. Null in gates of releases
    #: that did not measure it.
    balanced: float | None = None
    #: Of the answerable questions: the share that passes.
    coverage: float
    #: Area under the ROC curve.
    auroc: float


class Gate(BaseModel):
    """A calibrated gate, as its collection keeps it."""

    model_config = ConfigDict(frozen=True)

    logistic: Logistic
    #: From this probability on a question passes.
    threshold: float
    #: The precision that the owner wants.
    wanted: float
    measured: Measured
    #: Whether the measure is of questions that people labelled, or of such as were made.
    is_labelled: bool = False
    calibrated_at: datetime
    #: Passages of the collection then.
    passage_count: int

    @property
    def is_outdated(self) -> bool:
        """Whether an earlier release fitted it to vectors of words that mean nothing together, and
        to scores in the fused order.
        """
        return "cosine" in self.logistic.names and "agreement" not in self.logistic.names

    def judge(self, values: Features, found: Sequence[Passage]) -> Judged:
        try:
            probability = self.logistic.probability(values)
        except KeyError:  # fitted to another kind of search
            return judge_by_rule(found)
        if probability >= self.threshold:
            is_known = bool(shown(found, passed=True))  # else the model would answer from nothing
            zone = Zone.KNOWN if is_known else judge_by_rule(found).zone
            return Judged(zone, probability)
        is_near = probability >= self.threshold * NEAR_SHARE and bool(shown(found))
        return Judged(Zone.UNSURE if is_near else Zone.UNKNOWN, probability)


def judge(gate: Gate | None, question: str, found: Sequence[Passage]) -> Judged:
    """Judge what a search of `DEPTH` passages found."""
    return judge_by_rule(found) if gate is None else gate.judge(features(question, found), found)


def judge_by_rule(found: Sequence[Passage]) -> Judged:
    """Judge by the share of the question's words alone: a rule of thumb."""
    if shown(found):
        return Judged(Zone.KNOWN, None)
    return Judged(Zone.UNSURE if near(found) else Zone.UNKNOWN, None)


def shown(found: Sequence[Passage], *, passed: bool = False) -> list[Passage]:
    """What of a result a turn is shown: the best, as far as they share words with the question.
    `passed`: it answers the question, so passages count that share none and are about as near in
    meaning as the nearest. (Some passage is always the nearest.)
    """
    least = MIN_FUSED if passed else inf
    return [
        each
        for each in found[:MAX_SHOWN]
        if each.coverage >= MIN_COVERAGE or (each.fused or 0.0) >= least
    ]


def near(found: Sequence[Passage]) -> list[Passage]:
    """What of a result the user may have meant, where it does not answer the question."""
    by_rule = [each for each in found[:MAX_SHOWN] if each.coverage >= MIN_COVERAGE / 2]
    return shown(found) or by_rule


class CollectionGate(NamedTuple):
    """A collection and its gate."""

    collection_id: UUID
    #: `Gate` as JSON.
    gate: dict[str, object] | None


def read_gate(database: Database, tenant_id: UUID, name: str) -> tuple[UUID | None, Gate | None]:
    """The id of a tenant's collection and its gate; None for what there is not.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    statement = (
        "SELECT id AS collection_id, gate FROM collections WHERE tenant_id = %s AND name = %s"
    )
    rows = database.fetch(CollectionGate, statement, (tenant_id, name))
    return (rows[0].collection_id, parse_gate(rows[0].gate)) if rows else (None, None)


def parse_gate(stored: dict[str, object] | None) -> Gate | None:
    """Read what is stored; None if another release wrote it in another shape."""
    if stored is None:
        return None
    try:
        return Gate.model_validate(stored)
    except ValidationError:
        return None


def sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))
