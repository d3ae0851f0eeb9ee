"""Which turn joins a batch next, and which one gives its place up.

Interactive turns join first, in the order of their arrival. Where places end, an interactive turn
takes the place of the newest turn of the batch lane; where memory ends, the newest turn gives its
place up. A turn that is paused waits at its rank.
"""

import itertools
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

from turnmill.schemas.turns import Lane
from turnmill.workers.engines.local.scheduling import Generation


@dataclass(eq=False, slots=True)
class Ranked:
    """A turn in a batch, or on its way there."""

    generation: Generation
    #: When the turn came, by count.
    order: int

    @property
    def is_interactive(self) -> bool:
        return self.generation.lane is Lane.INTERACTIVE

    @property
    def rank(self) -> tuple[bool, int]:
        """The lowest joins first, the highest is paused first."""
        return not self.is_interactive, self.order


RankedT = TypeVar("RankedT", bound=Ranked)
RANK = attrgetter("rank")


class Line(Generic[RankedT]):
    """The turns that wait for a place, by rank."""

    def __init__(self) -> None:
        self._turns: list[RankedT] = []
        self._arrivals = itertools.count()

    def next_order(self) -> int:
        """Count one more arrival."""
        return next(self._arrivals)

    def add(self, turn: RankedT) -> None:
        insort(self._turns, turn, key=RANK)

    def remove(self, turn: RankedT) -> None:
        self._turns.remove(turn)

    @property
    def first(self) -> RankedT | None:
        return self._turns[0] if self._turns else None

    def __iter__(self) -> Iterator[RankedT]:
        return iter(self._turns)

    def __len__(self) -> int:
        return len(self._turns)


def may_replace(waiting: Ranked, running: Ranked) -> bool:
    """Whether a turn that waits may take the place of one that runs."""
    return waiting.is_interactive and not running.is_interactive
