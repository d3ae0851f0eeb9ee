"""Figures with a confidence interval, by the bootstrap over windows or replies. Torch-free."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from operator import itemgetter
from typing import Annotated, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T")

#: Resamples of each interval. At 1000, the ends move by less than a tenth of the width.
RESAMPLES = 1000

#: The figures of one report have about as many samples each, and then the same draws: those of so
#: many samples are kept, in 8 MB. More are drawn by numpy, where it is installed: resamples of
#: 50,000 take Python minutes.
_KEPT_SAMPLES = 1000


class Pick(Protocol):
    """Takes from a sequence as many of its members, some twice and others not."""

    def __call__(self, samples: Sequence[T], /) -> Sequence[T]: ...


def _or_infinite(value: object) -> object:
    return math.inf if value is None else value


#: JSON has no infinity: it is written as null, and read back.
Number = Annotated[float, BeforeValidator(_or_infinite)]


class Figure(BaseModel):
    """A measured value and the 95 % interval that the bootstrap gives it."""

    model_config = ConfigDict(frozen=True)

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    samples: Sequence[T], statistic: Callable[[Sequence[T]], float], *, seed: int = 0
) -> Figure:
    """Compute a statistic of the samples, and its 2.5 % and 97.5 % points under resampling.

    Samples are drawn with replacement (Efron 1979, the percentile interval). For a paired
    comparison let each sample be a pair: both sides then see the same draws.

    Raises:
        ValueError: there is no sample.
    """
    return _resample(samples, lambda pick: statistic(pick(samples)), seed)


def bootstrap_sums(
    groups: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float]
) -> Figure:
    """Compute a statistic of counts that add up, resampling whole groups of replies.

    A group's counts are the sums over its replies. Replies of one conversation resemble each
    other: drawn one by one, they would make intervals too narrow.

    Raises:
        ValueError: there is no group.
    """
    if len(groups) > _KEPT_SAMPLES and find_spec("numpy"):
        return _bootstrap_many(groups, statistic)
    columns = list(zip(*groups, strict=True))
    return _resample(groups, lambda pick: statistic([sum(pick(each)) for each in columns]), 0)


def _resample(samples: Sequence[object], statistic: Callable[[Pick], float], seed: int) -> Figure:
    """Compute what `statistic` makes of all samples, and of those that each resample picks."""
    if not samples:
        raise ValueError("The bootstrap needs at least one sample.")
    value = statistic(tuple)
    if all(sample == samples[0] for sample in samples):
        # Whatever is drawn is the same.
        return Figure(value=value, low=value, high=value)
    draws = _kept_draws if len(samples) <= _KEPT_SAMPLES else _draws
    return _figure(value, (statistic(pick) for pick in draws(len(samples), seed)))


def _bootstrap_many(
    groups: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float]
) -> Figure:
    """Draw the groups that `_draws` draws: seeded by an array, numpy has Python's sequence."""
    import numpy

    table = numpy.asarray(groups, dtype=float)
    value = statistic(summed(groups))
    if (table == table[0]).all():
        return Figure(value=value, low=value, high=value)
    count = len(groups)
    draw = numpy.random.RandomState([0])

    def resampled() -> float:
        drawn = (draw.random_sample(count) * count).astype(numpy.intp)
        return statistic((numpy.bincount(drawn, minlength=count) @ table).tolist())

    return _figure(value, (resampled() for _ in range(RESAMPLES)))


def _figure(value: float, resampled: Iterable[float]) -> Figure:
    drawn = sorted(resampled)
    edge = round(0.025 * RESAMPLES)
    return Figure(value=value, low=drawn[edge], high=drawn[-edge - 1])


def _draws(count: int, seed: int) -> Iterable[Pick]:
    """Draw resamples of two samples and more."""
    draw = random.Random(seed)
    places = range(count)
    return (itemgetter(*draw.choices(places, k=count)) for _ in range(RESAMPLES))


@lru_cache(maxsize=2)
def _kept_draws(count: int, seed: int) -> Sequence[Pick]:
    return tuple(_draws(count, seed))


def summed(rows: Sequence[Sequence[float]]) -> list[float]:
    """Add up rows of counts, column by column."""
    return [sum(column) for column in zip(*rows, strict=True)]


def ratio(sums: Sequence[float]) -> float:
    """Divide the first of two sums by the second."""
    return sums[0] / sums[1]


def mean(samples: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(samples) / len(samples)
