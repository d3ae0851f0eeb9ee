"""One order out of two: by words (BM25) and by meaning (cosine).

A weighted sum of scores that are brought to 0 … 1 within the candidates of one search. Fusing by
ranks with equal weights finds less than the better of the two
(https://doi.org/10.1145/3596512 finds the same).
"""

from collections.abc import Mapping

from turnmill.schemas.store.knowledge.words import Ranked

#: Of the cosine; the rest is of BM25.
DENSE_WEIGHT = 0.6


def fuse(
    words: Mapping[int, Ranked], cosines: Mapping[int, float], weight: float
) -> dict[int, float]:
    """The fused score of each passage that either search found.

    A passage without a word of the question has a BM25 of 0. For a passage without a vector yet,
    its share of the question's words stands in for the cosine. Its BM25 does not: that of a weak
    match is 1 too, where no other passage has a word of the question.
    """
    most = max((each.score for each in words.values()), default=0.0) or 1.0
    low, high = min(cosines.values(), default=0.0), max(cosines.values(), default=0.0)
    span = (high - low) or 1.0
    near = {each: (cosine - low) / span for each, cosine in cosines.items()}
    near = {each: ranked.coverage for each, ranked in words.items()} | near
    shares = {each: ranked.score / most for each, ranked in words.items()}
    return {
        each: weight * nearness + (1 - weight) * shares.get(each, 0.0)
        for each, nearness in near.items()
    }
