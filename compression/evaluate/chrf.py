"""chrF: the F-score of character n-grams (Popović 2015), which needs no tokenizer. Torch-free.

Counts of texts can be added up, so the score of any selection of texts is cheap. sacrebleu gives
the same score, but only for a whole corpus.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

#: Characters of the longest n-grams, and how much more recall weighs than precision: sacrebleu's.
ORDER = 6
BETA = 2


def count_ngrams(reply: str, reference: str) -> list[int]:
    """Return for each order the n-grams of the reply, of the reference, and of both.

    White space does not count. The reply's n-grams of an order that the reference is too short for
    do not count either.
    """
    counts: list[int] = []
    for have, want in zip(_ngrams(reply), _ngrams(reference), strict=True):
        counts += [have.total() if want else 0, want.total(), _in_both(have, want)]
    return counts


def chrf(counts: Sequence[float]) -> float:
    """Compute the score, 0 to 100, of counts that were added up."""
    orders = [counts[index : index + 3] for index in range(0, len(counts), 3)]
    known = [(have, want, both) for have, want, both in orders if have and want]
    if not known:
        return 0.0
    precision = sum(both / have for have, _, both in known) / len(known)
    recall = sum(both / want for _, want, both in known) / len(known)
    weighted = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / weighted if weighted else 0.0


def similarity(reply: str, reference: str) -> float:
    """Compute the chrF of one reply, 0 to 1."""
    return chrf(count_ngrams(reply, reference)) / 100


#: Several replies to one question are compared with one reference.
@lru_cache(maxsize=2)
def _ngrams(text: str) -> tuple[Counter[str], ...]:
    """Count the n-grams of each order."""
    text = "".join(text.split())
    ends = [range(order, len(text) + 1) for order in range(1, ORDER + 1)]
    # Lists: from generators it takes half as long again.
    return tuple(
        Counter([text[end - order : end] for end in each]) for order, each in enumerate(ends, 1)
    )


def _in_both(have: Counter[str], want: Counter[str]) -> int:
    """`(have & want).total()`, in a third of its time: few of the longer ones are in both."""
    return sum([min(have[each], want[each]) for each in have.keys() & want.keys()])
