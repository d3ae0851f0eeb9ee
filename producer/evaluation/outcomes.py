"""What two bots made of the same questions, and what is measured of it for the gates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from turnmill.compression.evaluate.chrf import similarity
from turnmill.producer.evaluation.gate import Sample
from turnmill.producer.evaluation.traits import is_refusal, length_of, repeated_share
from turnmill.schemas.batches import copy_id
from turnmill.schemas.formats.checking import find_fault
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import GenerationParams, Message


@dataclass(frozen=True, slots=True)
class Question:
    """A stored turn: what was said up to it, and what was replied then."""

    turn_id: UUID
    conversation: str
    messages: tuple[Message, ...]
    reply: str
    #: What both bots are asked for; all else is each bot's own.
    asked: GenerationParams
    #: What the stored reply was held to, whether the turn asked for it or its bot.
    format: ResponseFormat | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a bot made of a question. `text` is None where it failed."""

    text: str | None
    error_code: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, and what both bots made of it now."""

    question: Question
    baseline: Outcome
    candidate: Outcome


def pair_up(
    questions: Sequence[Question],
    baseline: Mapping[str, Outcome],
    candidate: Mapping[str, Outcome],
) -> list[Pair]:
    """Put both outcomes beside each question."""
    lost = Outcome(None, "lost")
    named = {copy_id(each.turn_id): each for each in questions}
    return [
        Pair(each, baseline.get(name, lost), candidate.get(name, lost))
        for name, each in named.items()
    ]


def samples_of(pairs: Sequence[Pair]) -> dict[str, list[Sample]]:
    """Measure both outcomes of each pair, by the name of the gate.

    What a reply shows is compared where both bots replied; failures count as errors alone.
    """
    replied = [each for each in pairs if None not in (each.baseline.text, each.candidate.text)]
    formatted = [each for each in pairs if each.question.format]
    return {
        "errors": [_sample(each, _has_failed) for each in pairs],
        "format": [_sample(each, _misses_format) for each in formatted],
        "abstention": [_sample(each, _abstains) for each in replied],
        "similarity": [_sample(each, _similarity) for each in replied],
        "length": [_sample(each, _log_length) for each in replied],
        "repeats": [_sample(each, _repeats) for each in replied],
    }


def _sample(pair: Pair, measure: Callable[[Question, Outcome], float]) -> Sample:
    question = pair.question
    return Sample(
        question.conversation,
        float(measure(question, pair.baseline)),
        float(measure(question, pair.candidate)),
    )


def _has_failed(_: Question, outcome: Outcome) -> bool:
    return outcome.text is None


def _misses_format(question: Question, outcome: Outcome) -> bool:
    assert question.format is not None
    return outcome.text is None or find_fault(question.format, outcome.text) is not None


def _abstains(_: Question, outcome: Outcome) -> bool:
    return not (outcome.text or "").strip() or is_refusal(outcome.text or "")


def _similarity(question: Question, outcome: Outcome) -> float:
    return similarity(outcome.text or "", question.reply)


def _log_length(_: Question, outcome: Outcome) -> float:
    return math.log1p(length_of(outcome.text or ""))


def _repeats(_: Question, outcome: Outcome) -> float:
    return repeated_share(outcome.text or "")
