"""Agreement: the krippendorff package is the judge, and raters of known noise are judged."""

import random
from typing import Any

import pytest

from turnmill.producer.studies.agreement import Level, alpha, alpha_interval, kappas


def table(seed: int, noise: float, *, items: int = 120, missing: float = 0.3) -> list[Any]:
    """Three raters who mistake the true value with this probability, some of them absent."""
    draw = random.Random(seed)
    rows = []
    for _ in range(items):
        truth = draw.randint(1, 5)
        given = {
            rater: draw.randint(1, 5) if draw.random() < noise else truth
            for rater in ("ada", "bo", "cy")
            if draw.random() > missing
        }
        rows.append(given)
    return rows


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_that_of_the_krippendorff_package(seed: int, noise: float, level: Level) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    rows = table(seed, noise)
    nan = float("nan")
    data = [[row.get(rater, nan) for row in rows] for rater in ("ada", "bo", "cy")]

    theirs = krippendorff.alpha(data, level_of_measurement=level)

    assert alpha(rows, level) == pytest.approx(theirs)


def test_more_noise_is_less_agreement_and_pure_noise_is_none() -> None:
    found = [alpha_interval(table(1, noise)) for noise in (0.0, 0.3, 0.6, 1.0)]
    values = [each.value for each in found if each]

    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    last = found[-1]
    assert last is not None
    assert last.low < 0 < last.high


def test_the_interval_covers_the_alpha_of_many_raters() -> None:
    truth = alpha(table(0, 0.4, items=5000, missing=0))
    intervals = [alpha_interval(table(seed, 0.4, missing=0)) for seed in range(1, 21)]

    covered = sum(each.low <= (truth or 0) <= each.high for each in intervals if each)

    assert covered >= 16


@pytest.mark.parametrize("rows", [[], [{"ada": 1}], [{"ada": 3, "bo": 3}, {"ada": 3, "bo": 3}]])
def test_alpha_of_equal_or_lonely_ratings_is_not_defined(rows: list[Any]) -> None:
    """The package raises an error there."""
    assert alpha(rows) is None
    assert alpha_interval(rows) is None


def test_kappa_is_cohens() -> None:
    """The example of Cohen (1960) as Wikipedia has it: 20, 5, 10, 15 of 50, kappa 0.4."""
    rows = [{"ada": a, "bo": b} for a, b, n in ((1, 1, 20), (1, 0, 5), (0, 1, 10), (0, 0, 15))
            for _ in range(n)]  # fmt: skip

    (found,) = kappas([*rows, {"ada": 1}])

    assert found.raters == ("ada", "bo")
    assert found.items == 50
    assert found.kappa == pytest.approx(0.4)


def test_kappa_of_raters_who_gave_one_value_only_is_not_defined() -> None:
    (found,) = kappas([{"ada": 5, "bo": 5}] * 3)
    assert found.kappa is None
