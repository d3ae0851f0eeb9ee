"""Group questions that ask about the same, in any script."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log

from turnmill.schemas.store.knowledge.lexemes import lexemes

#: Questions are of one group from this similarity to its first on. Of "How do I return a kettle?",
#: "Can a kettle be returned?" is far away, and "How can I return my kettle?" is not.
NEAR = 0.5
#: Of a question's lexemes, the rarest: near questions share one of them.
_KEYS = 6

Weigh = Callable[[str], float]


def weigher(frequencies: Mapping[str, int], passage_count: int) -> Weigh:
    """How much a lexeme says: the rarer in its collection the more; one it lacks counts as rare."""
    return lambda lexeme: log(1 + max(passage_count, 1) / frequencies.get(lexeme, 1))


def group(questions: Sequence[str], weigh: Weigh) -> list[list[int]]:
    """Group questions by the first that each is near to (leader clustering); their places."""
    groups: list[list[int]] = []
    leaders: list[frozenset[str]] = []
    by_lexeme: defaultdict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        own = frozenset(lexemes(question))
        keys = sorted(own, key=lambda lexeme: (-weigh(lexeme), lexeme))[:_KEYS]
        near = {number for key in keys for number in by_lexeme[key]}
        found = next((n for n in sorted(near) if similarity(own, leaders[n], weigh) >= NEAR), None)
        if found is not None:
            groups[found].append(place)
            continue
        for lexeme in own:
            by_lexeme[lexeme].append(len(groups))
        groups.append([place])
        leaders.append(own)
    return groups


def similarity(one: Iterable[str], other: Iterable[str], weigh: Weigh) -> float:
    """Weighted Jaccard index: the weight of what both have, as a share of what either has."""
    one, other = {*one}, {*other}
    whole = sum(map(weigh, one | other))
    return sum(map(weigh, one & other)) / whole if whole else 0.0
