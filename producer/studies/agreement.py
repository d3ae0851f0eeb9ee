"""How far raters agree: Krippendorff's alpha and Cohen's kappa. Without a library.

A table has one row an item; each row maps raters to values. Raters may be missing.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Literal, NamedTuple

from turnmill.compression.evaluate.intervals import Figure, bootstrap

Level = Literal["nominal", "ordinal"]
Row = Mapping[str, int]
#: How often two values meet in an item.
Pairs = Mapping[tuple[int, int], float]


class Kappa(NamedTuple):
    """Two raters' agreement on the items that both rated."""

    raters: tuple[str, str]
    items: int
    #: None where both gave one and the same value throughout: chance alone explains that.
    kappa: float | None


def alpha(rows: Sequence[Row], level: Level = "ordinal") -> float | None:
    """Compute Krippendorff's alpha: 1 is perfect agreement, 0 what chance gives.

    Krippendorff (2011), Computing Krippendorff's Alpha-Reliability. None where it is not defined:
    no item has two ratings, or all ratings that can be compared are equal.
    """
    return _alpha([_coincidences(row) for row in rows if len(row) > 1], level)


def alpha_interval(rows: Sequence[Row], level: Level = "ordinal") -> Figure | None:
    """Compute alpha and its 95 % interval, by the bootstrap over items. None as for `alpha`.

    Samples in which alpha is not defined, because all their ratings are equal, count as perfect
    agreement.
    """
    counted = [_coincidences(row) for row in rows if len(row) > 1]
    if _alpha(counted, level) is None:
        return None

    def of(drawn: Sequence[Pairs]) -> float:
        value = _alpha(drawn, level)
        return 1.0 if value is None else value

    return bootstrap(counted, of)


def kappas(rows: Sequence[Row]) -> list[Kappa]:
    """Compute Cohen's kappa, unweighted, of every two raters with common items."""
    raters = sorted({rater for row in rows for rater in row})
    found = []
    for pair in combinations(raters, 2):
        both = [(row[pair[0]], row[pair[1]]) for row in rows if row.keys() >= set(pair)]
        if both:
            found.append(Kappa(pair, len(both), _kappa(both)))
    return found


def _kappa(both: Sequence[tuple[int, int]]) -> float | None:
    total = len(both)
    first, second = (Counter(column) for column in zip(*both, strict=True))
    chance = sum(first[value] * second[value] for value in first) / total**2
    if chance == 1:
        return None
    return (sum(one == other for one, other in both) / total - chance) / (1 - chance)


def _coincidences(row: Row) -> Pairs:
    """Count the ordered pairs of an item's ratings; those of m raters weigh 1 / (m - 1)."""
    values = list(row.values())
    found: dict[tuple[int, int], float] = {}
    for one, other in permutations(values, 2):
        found[one, other] = found.get((one, other), 0.0) + 1 / (len(values) - 1)
    return found


def _alpha(items: Sequence[Pairs], level: Level) -> float | None:
    pairs: dict[tuple[int, int], float] = {}
    for item in items:
        for pair, weight in item.items():
            pairs[pair] = pairs.get(pair, 0.0) + weight
    totals: dict[int, float] = {}
    for (one, _), weight in pairs.items():
        totals[one] = totals.get(one, 0.0) + weight
    distance = _DISTANCES[level](totals)
    observed = sum(weight * distance(*pair) for pair, weight in pairs.items())
    expected = sum(
        totals[one] * totals[other] * distance(one, other) for one in totals for other in totals
    )
    if not expected:
        return None
    return 1 - (sum(totals.values()) - 1) * observed / expected


Distance = Callable[[int, int], float]


def _nominal(totals: Mapping[int, float]) -> Distance:
    return lambda one, other: float(one != other)


def _ordinal(totals: Mapping[int, float]) -> Distance:
    """Values are as far apart as ratings lie between them."""
    ranked = sorted(totals)

    def distance(one: int, other: int) -> float:
        low, high = min(one, other), max(one, other)
        between = sum(totals[value] for value in ranked if low <= value <= high)
        return (between - (totals[low] + totals[high]) / 2) ** 2

    return distance


_DISTANCES: dict[Level, Callable[[Mapping[int, float]], Distance]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
}
