"""The fault plan: which fault comes when, drawn from a seed, so that a run can be repeated."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of a plan."""

    #: Seconds after the strike before it.
    after_s: float
    name: str
    #: Decides whatever the fault leaves open: which process, how long.
    seed: int


def make_plan(seed: int, weights: Mapping[str, float], every_s: float) -> Iterator[Strike]:
    """Strikes without end, on average one in `every_s` seconds; none if there is no fault.

    Equal arguments make an equal plan.

    `weights` says how often each fault is drawn in proportion to the others.
    """
    chance = random.Random(seed)
    names = sorted(weights)
    while names:
        yield Strike(
            after_s=chance.uniform(0.5, 1.5) * every_s,
            name=chance.choices(names, [weights[name] for name in names])[0],
            seed=chance.randrange(2**32),
        )
