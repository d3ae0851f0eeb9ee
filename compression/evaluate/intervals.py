"""Figures with a confidence interval, by the bootstrap over windows or replies. Torch-free."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T")

#: Resamples of each interval. At 1000, the ends move by less than a tenth of the width.
RESAMPLES = 1000


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
    if not samples:
        raise ValueError("The bootstrap needs at least one sample.")
    if all(sample == samples[0] for sample in samples):
        # Whatever is drawn is the same.
        value = statistic(samples)
        return Figure(value=value, low=value, high=value)
    draw = random.Random(seed)
    drawn = sorted(statistic(draw.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    edge = round(0.025 * RESAMPLES)
    return Figure(value=statistic(samples), low=drawn[edge], high=drawn[-edge - 1])


def bootstrap_sums(
    groups: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float]
) -> Figure:
    """Compute a statistic of counts that add up, resampling whole groups of replies.

    A group's counts are the sums over its replies. Replies of one conversation resemble each
    other: drawn one by one, they would make intervals too narrow.

    Raises:
        ValueError: there is no group.
    """

    def of_sums(drawn: Sequence[Sequence[float]]) -> float:
        return statistic(summed(drawn))

    return bootstrap(groups, of_sums)


def summed(rows: Sequence[Sequence[float]]) -> list[float]:
    """Add up rows of counts, column by column."""
    return [sum(column) for column in zip(*rows, strict=True)]


def ratio(sums: Sequence[float]) -> float:
    """Divide the first of two sums by the second."""
    return sums[0] / sums[1]


def mean(samples: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(samples) / len(samples)
