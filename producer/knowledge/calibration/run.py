"""Calibrate a collection's gate: how sure it must be for the precision that its owner wants."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.knowledge.calibration.fitting import (
    Example,
    Scored,
    Unreachable,
    calibrate,
    measure,
)
from turnmill.producer.knowledge.calibration.questions import (
    Labelled,
    is_named,
    make_questions,
)
from turnmill.producer.knowledge.lookup import find_collection
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.features import DEPTH, features
from turnmill.schemas.store.knowledge.gate import Gate, Measured, shown
from turnmill.schemas.store.knowledge.search import Passage, search
from turnmill.schemas.store.knowledge.spaces import Asked

DEFAULT_PRECISION = 0.9

#: Passages that questions can be made of: of fewer, no threshold means anything.
MIN_PASSAGES = 20
#: People's questions: so many choose the threshold alone. Fewer are fitted to, beside those made.
MIN_LABELLED = 30

#: Where vectors are searched, too: made questions are then easier to tell apart than people's, so
#: that the lower bound of the precision must be as wanted (`choose_threshold`).
_MARGIN = 1.645

_NOW = "SELECT clock_timestamp() AS now"

_SAVE = "UPDATE collections SET gate = %s WHERE id = %s"

IsOwn = Callable[[Passage], bool]
Ask = Callable[[str], Asked | None]


def by_words(question: str) -> None:
    """Search without vectors."""


class _Now(NamedTuple):
    now: datetime


def calibrate_collection(
    database: Database,
    tenant_id: UUID,
    name: str,
    wanted: float = DEFAULT_PRECISION,
    labelled: Sequence[Labelled] = (),
    *,
    ask: Ask = by_words,
) -> Gate:
    """Fit and store a collection's gate. One that there was stays where none can be fitted.

    `ask`: a question's vector, as turns have it; None: they are searched for by words alone.

    Raises:
        NotFound: there is no such collection.
        InvalidInput: it has too few passages, or no threshold has the wanted precision.
    """
    collection = find_collection(database, tenant_id, name)
    [(now,)] = database.fetch(_Now, _NOW)
    made = make_questions(database, collection.collection_id)
    count = len({each.group for each in made})
    if count < MIN_PASSAGES:
        raise InvalidInput(
            f"'{name}' has {count} passages that questions can be made of, and a calibration needs "
            f"{MIN_PASSAGES}. Until then a rule of thumb decides: a fifth of the question's words."
        )

    def find(text: str, meaning: str | None = None) -> list[Passage]:
        return search(database, tenant_id, name, text, 2 * DEPTH, ask(meaning or text))

    examples = [
        example
        for each in made
        for example in _with_and_without(
            each.text, find(each.text, each.meaning), each.source.has_made, each.group
        )
    ]
    judges = list(_of_people(labelled, find))
    is_labelled = len(labelled) >= MIN_LABELLED
    has_vectors = any("cosine" in each.features for each in examples)
    fitted = (
        calibrate(examples, wanted, judges)
        if is_labelled
        else calibrate([*examples, *judges], wanted, margin=_MARGIN if has_vectors else 0.0)
    )
    if isinstance(fitted, Unreachable):
        raise InvalidInput(
            f"No threshold of '{name}' has a precision of {wanted * 100:g}%: {fitted.said}. Its "
            "passages are too much alike, the questions have too few of their words, or there are "
            "too few questions. Ask for less: --precision"
        )
    gate = Gate(
        logistic=fitted.logistic,
        threshold=fitted.threshold,
        wanted=wanted,
        measured=fitted.measured,
        is_labelled=is_labelled,
        calibrated_at=now,
        passage_count=collection.passage_count,
    )
    database.run(_SAVE, (Jsonb(gate.model_dump(mode="json")), collection.collection_id))
    return gate


def measure_gate(
    database: Database,
    tenant_id: UUID,
    name: str,
    labelled: Sequence[Labelled],
    *,
    ask: Ask = by_words,
) -> Measured:
    """Measure the gate that a collection has with people's questions.

    Raises:
        NotFound: there is no such collection.
        InvalidInput: it is not calibrated.
    """
    gate = find_collection(database, tenant_id, name).gate
    if gate is None:
        raise InvalidInput(f"'{name}' is not calibrated, so there is no gate to measure.")

    def find(text: str) -> list[Passage]:
        return search(database, tenant_id, name, text, 2 * DEPTH, ask(text))

    scored = [
        Scored(gate.logistic.probability(each.features), each.is_answered, 0)
        for each in _of_people(labelled, find)
    ]
    return measure(scored, [each for each in scored if each.probability >= gate.threshold])


def _with_and_without(
    text: str, found: Sequence[Passage], is_own: IsOwn, group: int
) -> Iterator[Example]:
    """A question with its passage, and the same where that is left out: it has no answer then."""
    shown_to_turn = shown(found[:DEPTH], passed=True)
    yield Example(features(text, found), any(map(is_own, shown_to_turn)), group)
    rest = [each for each in found if not is_own(each)]
    yield Example(features(text, rest), False, group)


def _of_people(
    labelled: Iterable[Labelled], find: Callable[[str], list[Passage]]
) -> Iterator[Example]:
    for group, (text, answer) in enumerate(labelled):
        found = find(text)
        if answer:
            yield from _with_and_without(text, found, partial(is_named, answer), group)
        else:
            yield Example(features(text, found), False, group)
