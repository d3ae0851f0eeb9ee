"""Fit a logistic regression, and choose the threshold that an owner's precision needs.

Plain Python: there are some sixteen features and at most some thousand questions.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import floor, sqrt
from statistics import fmean, pstdev
from typing import NamedTuple

from turnmill.schemas.store.knowledge.features import Features
from turnmill.schemas.store.knowledge.gate import Logistic, Measured, sigmoid

#: Weight of the ridge: keeps weights finite where the labels can be separated without a mistake.
_RIDGE = 1.0
_MAX_STEPS = 25
_FOLDS = 5
#: Of a normal distribution, for an interval of 95 %.
_Z = 1.96


class Example(NamedTuple):
    """A question's result, and whether it holds the answer."""

    #: None at all: nothing was found.
    features: Features
    is_answered: bool
    #: What was made of the same passage is never fitted to and measured by at once.
    group: int


class Scored(NamedTuple):
    probability: float
    is_answered: bool
    fold: int


class Fitted(NamedTuple):
    logistic: Logistic
    threshold: float
    measured: Measured


class Unreachable(NamedTuple):
    """No threshold has the wanted precision."""

    most: float
    #: Whether it is the lower bound of a precision, and not a share as it was measured.
    is_bound: bool

    @property
    def said(self) -> str:
        """The highest precision, for people: rounded down, so that it can be asked for."""
        percents = floor(round(self.most * 100, 6))
        return f"{percents}% at most {'are sure' if self.is_bound else 'were measured'}"


def fit(examples: Sequence[Example]) -> Logistic:
    """Fit by Newton's method, with a ridge penalty.

    Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", section 4.4.1:
    iteratively reweighted least squares.
    """
    examples = [each for each in examples if each.features]
    names = tuple(sorted(set.intersection(*({*each.features} for each in examples))))
    columns = [[each.features[name] for each in examples] for name in names]
    start = Logistic(
        names=names,
        means=tuple(map(fmean, columns)),
        scales=tuple(pstdev(column) or 1.0 for column in columns),
        weights=(0.0,) * (len(names) + 1),
    )
    rows = [start.standardize(each.features) for each in examples]
    labels = [float(each.is_answered) for each in examples]
    weights = list(start.weights)
    for _ in range(_MAX_STEPS):
        step = _newton_step(rows, labels, weights)
        weights = [weight - change for weight, change in zip(weights, step, strict=True)]
        if max(map(abs, step)) < 1e-6:
            break
    return start.model_copy(update={"weights": tuple(weights)})


def _newton_step(
    rows: Sequence[Sequence[float]], labels: Sequence[float], weights: Sequence[float]
) -> list[float]:
    size = len(weights)
    penalties = [0.0] + [_RIDGE] * (size - 1)
    gradient = [penalty * weight for penalty, weight in zip(penalties, weights, strict=True)]
    hessian = [[penalties[i] if i == j else 0.0 for j in range(size)] for i in range(size)]
    for row, label in zip(rows, labels, strict=True):
        p = sigmoid(sum(a * b for a, b in zip(weights, row, strict=True)))
        # Never 0: the matrix stays invertible.
        curvature = max(p * (1 - p), 1e-9)
        for i, value in enumerate(row):
            gradient[i] += (p - label) * value
            scaled = curvature * value
            line = hessian[i]
            for j in range(i + 1):
                line[j] += scaled * row[j]
    for i in range(size):
        for j in range(i):
            hessian[j][i] = hessian[i][j]
    return _solve(hessian, gradient)


def _solve(matrix: list[list[float]], values: list[float]) -> list[float]:
    """Solve a positive definite system by Gauss-Jordan elimination."""
    size = len(values)
    lines = [[*line, value] for line, value in zip(matrix, values, strict=True)]
    for i in range(size):
        lines[i] = [each / lines[i][i] for each in lines[i]]
        for j in range(size):
            if j != i and lines[j][i]:
                factor = lines[j][i]
                lines[j] = [a - factor * b for a, b in zip(lines[j], lines[i], strict=True)]
    return [line[-1] for line in lines]


def calibrate(
    examples: Sequence[Example],
    wanted: float,
    judges: Sequence[Example] = (),
    *,
    margin: float = 0.0,
) -> Fitted | Unreachable:
    """Fit to all examples, and measure by cross-validation.

    The threshold is chosen by the scores that each fifth of the questions has from a fit to the
    other four. It is measured fifth by fifth, too, with thresholds chosen on the other four.
    With `judges`, people's questions, these alone choose the threshold and are measured; they are
    fitted to as well. `margin`: as `choose_threshold` has it.
    """
    scored = _cross_validate(examples, judges)
    threshold = choose_threshold(scored, wanted, margin)
    if threshold is None:
        most = max((bound for _, bound in _bounds(scored, margin)), default=0.0)
        return Unreachable(most, is_bound=margin > 0)
    chosen = {
        fold: choose_threshold([each for each in scored if each.fold != fold], wanted, margin)
        for fold in range(_FOLDS)
    }
    passed = [
        each for each in scored
        if (least := chosen[each.fold]) is not None and each.probability >= least
    ]  # fmt: skip
    measured = measure(scored, passed)
    if measured.precision_high < wanted:  # a few lucky ones at the top
        return Unreachable(measured.precision_low, is_bound=True)
    return Fitted(fit([*examples, *judges]), threshold, measured)


def _cross_validate(examples: Sequence[Example], judges: Sequence[Example]) -> list[Scored]:
    scored = []
    for fold in range(_FOLDS):
        others = [each for each in (*examples, *judges) if each.group % _FOLDS != fold]
        logistic = fit(others)
        scored += [
            Scored(logistic.probability(each.features), each.is_answered, fold)
            for each in judges or examples
            if each.group % _FOLDS == fold
        ]
    return scored


def choose_threshold(scored: Sequence[Scored], wanted: float, margin: float = 0.0) -> float | None:
    """The lowest threshold above which the share of answered questions is as wanted.

    `margin`: of a normal distribution. With 1.645 it is not the share but its one-sided lower bound
    that must be as wanted. The bound is of one threshold and of independent questions: the lowest
    of many thresholds is below what is wanted more often than in 5 %, and much more often where
    several questions are made of each passage. A guarantee takes an exact bound for all thresholds
    at once, which few questions never reach: Geifman and El-Yaniv 2017, "Selective Classification
    for Deep Neural Networks", https://arxiv.org/abs/1705.08500
    """
    return min((each for each, bound in _bounds(scored, margin) if bound >= wanted), default=None)


def _bounds(scored: Sequence[Scored], margin: float) -> Iterator[tuple[float, float]]:
    """Each threshold, the highest first, with the lower bound of its precision."""
    hits = count = 0
    ranked = sorted(scored, key=lambda each: -each.probability)
    for probability, equal in groupby(ranked, key=lambda each: each.probability):
        labels = [each.is_answered for each in equal]
        hits, count = hits + sum(labels), count + len(labels)
        yield probability, wilson(hits, count, margin)[0]


def measure(scored: Sequence[Scored], passed: Sequence[Scored]) -> Measured:
    """Measure what passed of all that was asked."""
    answerable = sum(each.is_answered for each in scored)
    unanswerable = len(scored) - answerable
    hits = sum(each.is_answered for each in passed)
    low, high = wilson(hits, len(passed))
    coverage = hits / answerable if answerable else 0.0
    mistaken = (len(passed) - hits) / unanswerable if unanswerable else 0.0
    return Measured(
        answerable=answerable,
        unanswerable=unanswerable,
        precision=hits / len(passed) if passed else 0.0,
        precision_low=low,
        precision_high=high,
        balanced=coverage / (coverage + mistaken) if passed else 0.0,
        coverage=coverage,
        auroc=auroc(scored),
    )


def wilson(hits: int, count: int, z: float = _Z) -> tuple[float, float]:
    """Wilson's score interval of a share (1927), https://doi.org/10.1080/01621459.1927.10502953"""
    if count == 0:
        return 0.0, 1.0
    share, square = hits / count, z * z / count
    middle = share + square / 2
    half = z * sqrt(share * (1 - share) / count + square / (4 * count))
    return max((middle - half) / (1 + square), 0.0), min((middle + half) / (1 + square), 1.0)


def auroc(scored: Sequence[Scored]) -> float:
    """The chance that an answered question scores above another one; equal scores count half."""
    below, wins = 0, 0.0
    for _, equal in groupby(sorted(scored), key=lambda each: each.probability):
        labels = [each.is_answered for each in equal]
        lost = labels.count(False)
        wins += labels.count(True) * (below + lost / 2)
        below += lost
    answered = len(scored) - below
    return wins / (answered * below) if answered and below else 0.5
