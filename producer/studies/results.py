"""What a study found: ratings as they were given, agreement, and means or preferences by source."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.compression.evaluate.intervals import Figure, bootstrap_sums, mean, ratio
from turnmill.producer.studies.agreement import Kappa, alpha_interval, kappas
from turnmill.producer.studies.model import Study
from turnmill.schemas.postgres.database import Database

_RATINGS = """
SELECT i.id AS item_id, i.position, n.name AS rater, r.dimension, r.value, i.left_is_a, i.repeat_of,
    i.source, a.seconds, a.comment, a.completed_at
FROM study_ratings r
JOIN study_items i ON i.id = r.item_id
JOIN study_raters n ON n.id = r.rater_id
JOIN study_assignments a ON a.item_id = r.item_id AND a.rater_id = r.rater_id
WHERE i.study_id = %s AND a.completed_at IS NOT NULL
ORDER BY i.position, n.name, r.dimension
"""


class _RatingRow(NamedTuple):
    """A row of `_RATINGS`."""

    item_id: UUID
    position: int
    rater: str
    dimension: str
    value: int
    left_is_a: bool | None
    repeat_of: UUID | None
    source: dict[str, str]
    seconds: float | None
    comment: str | None
    completed_at: datetime


@dataclass(frozen=True, slots=True)
class GivenRating:
    """One person's rating of one dimension of one item.

    `value` is 1 to 5; of a pair -1: `a` is better, 0: neither, 1: `b`, wherever they were shown.
    """

    item_id: str
    rater: str
    dimension: str
    value: int
    is_repeat: bool
    #: The item that it shows again.
    repeat_of: str | None
    source: dict[str, str]
    seconds: float | None
    comment: str | None
    rated_at: datetime


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far raters agree in one dimension."""

    dimension: str
    #: Items with at least two raters.
    items: int
    #: Krippendorff's alpha, ordinal; None where it is not defined.
    alpha: Figure | None
    kappas: list[Kappa]
    #: Items that a rater saw twice, and the share that got the same value again.
    repeats: int
    same_again: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """The mean rating of one source, or the share of pairs that prefer `b`."""

    dimension: str
    source: str
    items: int
    figure: Figure


def read_ratings(database: Database, study: Study) -> list[GivenRating]:
    """Return the ratings of completed items, in the order of the items."""
    return [_given(row) for row in database.fetch(_RatingRow, _RATINGS, (study.study_id,))]


def agreement_of(study: Study, ratings: Sequence[GivenRating]) -> list[Agreement]:
    """Compute the agreement in each dimension. Repeats do not count as further raters."""
    return [
        _agreement(name, [each for each in ratings if each.dimension == name])
        for name in study.dimensions
    ]


def findings_of(study: Study, ratings: Sequence[GivenRating]) -> list[Finding]:
    """Compute the mean of each dimension and source; of pairs, how often `b` is preferred.

    A tie counts as half a preference. Intervals resample items: the ratings of one resemble each
    other. Repeats do not count.
    """
    found = []
    first = [each for each in ratings if not each.is_repeat]
    for dimension in study.dimensions:
        rated = [each for each in first if each.dimension == dimension]
        for source in sorted({_source(study, each) for each in rated}):
            own = [each for each in rated if _source(study, each) == source]
            sums = _sums(study, own)
            figure = bootstrap_sums(sums, ratio)
            found.append(Finding(dimension, source, len(sums), figure))
    return found


def _agreement(dimension: str, ratings: Sequence[GivenRating]) -> Agreement:
    rows: dict[str, dict[str, int]] = {}
    for each in ratings:
        if not each.is_repeat:
            rows.setdefault(each.item_id, {})[each.rater] = each.value
    shared = [row for row in rows.values() if len(row) > 1]
    same = list(_same_again(ratings, rows))
    return Agreement(
        dimension, len(shared), alpha_interval(shared) if shared else None, kappas(shared),
        len(same), mean(same) if same else None,
    )  # fmt: skip


def _same_again(ratings: Iterable[GivenRating], rows: dict[str, dict[str, int]]) -> Iterator[float]:
    for each in ratings:
        first = rows.get(each.repeat_of or "", {}).get(each.rater)
        if first is not None:
            yield float(first == each.value)


def _sums(study: Study, ratings: Sequence[GivenRating]) -> list[tuple[float, float]]:
    """Add up the ratings of each item."""
    is_pair = study.kind == "pairwise"
    sums: dict[str, tuple[float, float]] = {}
    for each in ratings:
        total, count = sums.get(each.item_id, (0.0, 0.0))
        # -1, 0, 1 become 0, one half and one.
        sums[each.item_id] = (total + ((each.value + 1) / 2 if is_pair else each.value), count + 1)
    return list(sums.values())


def _source(study: Study, rating: GivenRating) -> str:
    names = [
        str(rating.source.get(key) or fallback) for key, fallback in (("bot", "a"), ("bot_b", "b"))
    ]
    return f"{names[1]} over {names[0]}" if study.kind == "pairwise" else names[0]


def _given(row: _RatingRow) -> GivenRating:
    return GivenRating(
        item_id=row.item_id.hex,
        rater=row.rater,
        dimension=row.dimension,
        value=-row.value if row.left_is_a is False else row.value,
        is_repeat=row.repeat_of is not None,
        repeat_of=row.repeat_of.hex if row.repeat_of else None,
        source=row.source,
        seconds=row.seconds,
        comment=row.comment,
        rated_at=row.completed_at,
    )
