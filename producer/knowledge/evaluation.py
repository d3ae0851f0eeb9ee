"""How often a search finds the answer, by method, measured with people's questions."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple, TypeVar
from uuid import UUID

from turnmill.compression.evaluate.intervals import Figure, bootstrap
from turnmill.producer.knowledge.calibration.questions import Labelled, is_named
from turnmill.producer.knowledge.calibration.run import Ask
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.fusion import DENSE_WEIGHT
from turnmill.schemas.store.knowledge.search import search
from turnmill.schemas.store.knowledge.spaces import Asked

#: Passages of a result that are looked at.
DEPTH = 10

T = TypeVar("T")


class Found(NamedTuple):
    """What one method does, with 95 % intervals of the bootstrap over the questions."""

    method: str
    #: The share of the questions whose answer is the first passage, or among the first five.
    recall_1: Figure
    recall_5: Figure
    #: The mean of 1/rank, 0 beyond the first ten.
    reciprocal_rank: Figure
    #: The median time of a search, the question's vector included, in milliseconds.
    p50_ms: float


def evaluate(
    database: Database, tenant_id: UUID, name: str, labelled: Sequence[Labelled], ask: Ask
) -> Iterator[Found]:
    """Measure the search by words and, where the collection has vectors and their embedder is here,
    by vectors and by both.

    Raises:
        InvalidInput: no question has an answer.
    """
    questions = [each for each in labelled if each.answer]
    if not questions:
        raise InvalidInput("No question has an answer: the column answered_by names it.")
    vectors = [_timed(partial(ask, each.text)) for each in questions]
    methods: dict[str, float | None] = {"BM25": None}
    if all(vector for vector, _ in vectors):
        methods |= {"vectors": 1.0, "fused": DENSE_WEIGHT}
    for method, weight in methods.items():
        ranks, times = [], []
        for question, (vector, embedding_s) in zip(questions, vectors, strict=True):
            asked = (None, 0.0) if weight is None else (vector, weight)
            rank = partial(_rank, database, tenant_id, name, question, *asked)
            found, search_s = _timed(rank)
            ranks.append(found)
            times.append(search_s + (0.0 if weight is None else embedding_s))
        yield Found(
            method,
            bootstrap(ranks, _share(lambda rank: float(rank <= 1))),
            bootstrap(ranks, _share(lambda rank: float(rank <= 5))),
            bootstrap(ranks, _share(lambda rank: 1 / rank)),
            1000 * median(times),
        )


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the seconds that it takes."""
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def _share(worth: Callable[[float], float]) -> Callable[[Sequence[float]], float]:
    return lambda ranks: sum(map(worth, ranks)) / len(ranks)


def _rank(
    database: Database,
    tenant_id: UUID,
    name: str,
    question: Labelled,
    asked: Asked | None,
    weight: float,
) -> float:
    """The rank of the first passage that answers the question, from 1; infinite without one."""
    found = search(database, tenant_id, name, question.text, DEPTH, asked, weight=weight)
    ranks = (rank for rank, each in enumerate(found, start=1) if is_named(question.answer, each))
    return float(next(ranks, "inf"))
