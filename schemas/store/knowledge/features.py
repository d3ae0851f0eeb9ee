"""What the result of a search says of whether it answers the question."""

from collections.abc import Sequence
from math import log1p, sqrt
from statistics import fmean

from turnmill.schemas.store.knowledge.lexemes import lexemes
from turnmill.schemas.store.knowledge.search import Passage

#: Passages of a result that are looked at. Gates are fitted to this number.
DEPTH = 10

#: Names and values. Which names there are depends on the search: `cosine` is one of vectors.
Features = dict[str, float]


def features(question: str, found: Sequence[Passage]) -> Features:
    """Describe what a search found, the best first; no features if it found nothing.

    No text is among them. Scores are told as shares of the best one, because BM25 is comparable
    within one search only; its size counts by its logarithm.
    """
    if not found:
        return {}
    found = found[:DEPTH]
    scores = [each.score for each in found]
    coverages = [each.coverage for each in found]
    values = {
        "score": log1p(max(scores[0], 0.0)),
        "margin": _lead(scores, scores[1:2]),
        "gap": _lead(scores, scores[1:5]),
        "deviation": _deviation(scores),
        "coverage": coverages[0],
        "coverage_lead": coverages[0] - max(coverages[1:], default=0.0),
        "words": log1p(len({*lexemes(question)})),
        "hits": log1p(len(found)),
    }
    cosines = [each.cosine for each in found if each.cosine is not None]
    if cosines:
        values["cosine"] = max(cosines)
        values["cosine_lead"] = max(cosines) - fmean(cosines)
    return values


def _lead(scores: Sequence[float], others: Sequence[float]) -> float:
    """How far the best is ahead of others, as a share of it."""
    if scores[0] <= 0:
        return 0.0
    return (scores[0] - (fmean(others) if others else 0.0)) / scores[0]


def _deviation(scores: Sequence[float]) -> float:
    """How many standard deviations the best is above the mean."""
    mean = fmean(scores)
    spread = sqrt(fmean((each - mean) ** 2 for each in scores))
    return (scores[0] - mean) / spread if spread > 0 else 0.0
