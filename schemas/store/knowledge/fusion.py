"""One order out of two: by words (BM25) and by meaning (cosine).

A weighted sum of scores that are brought to 0 … 1 within the candidates of one search. Fusing by
ranks with equal weights finds less than the better of the two
(https://doi.org/10.1145/3596512 finds the same).
"""

from collections.abc import Mapping

#: Of the cosine; the rest is of BM25.
DENSE_WEIGHT = 0.6


def fuse(
    words: Mapping[int, float], cosines: Mapping[int, float], weight: float
) -> dict[int, float]:
    """The fused score of each passage that either search found.

    A passage without a word of the question has a BM25 of 0. A passage without a vector yet counts
    by its words alone: it stands no lower for being new.
    """
    most = max(words.values(), default=0.0) or 1.0
    low, high = min(cosines.values(), default=0.0), max(cosines.values(), default=0.0)
    span = (high - low) or 1.0
    shares = {each: words.get(each, 0.0) / most for each in {*words, *cosines}}
    return shares | {
        each: weight * (cosine - low) / span + (1 - weight) * shares[each]
        for each, cosine in cosines.items()
    }
