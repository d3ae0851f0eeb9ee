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
    by_words = sorted(found, key=lambda each: -each.score)
    scores = [each.score for each in by_words]
    coverages = [each.coverage for each in by_words]
    values = {
        "score": log1p(max(scores[0], 0.0)),
        "margin": _lead(scores, scores[1:2]),
        "gap": _lead(scores, scores[1:5]),
        "deviation": _deviation(scores),
        "coverage": coverages[0],
        "coverage_lead": coverages[0] - max(coverages[1:], default=0.0),
        "words": log1p(len({*lexemes(question)})),
        "hits": log1p(sum(score > 0 for score in scores)),
    }
    return values | _of_vectors(by_words)


def _of_vectors(by_words: Sequence[Passage]) -> Features:
    """What vectors say, and whether words say the same; nothing where a search has none.

    The order of words and that of vectors are looked at each by itself. In the fused order a
    passage that is only near stands before others with more words, and their scores tell nothing.
    """
    by_cosine = sorted(
        (each for each in by_words if each.cosine is not None),
        key=lambda each: -(each.cosine or 0.0),
    )
    if not by_cosine:
        return {}
    cosines = [each.cosine or 0.0 for each in by_cosine]
    nearest, best = by_cosine[0], by_words[0]
    own = cosines[-1] if best.cosine is None else best.cosine
    return {
        "cosine": cosines[0],
        "cosine_lead": cosines[0] - fmean(cosines),
        "cosine_margin": cosines[0] - max(cosines[1:2], default=0.0),
        "cosine_deviation": _deviation(cosines),
        "agreement": float(nearest is best),
        "cosine_of_best": own - cosines[0],
        "coverage_of_nearest": nearest.coverage,
        "score_of_nearest": nearest.score / best.score if best.score > 0 else 0.0,
    }


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
