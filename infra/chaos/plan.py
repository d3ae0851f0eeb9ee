"""The fault plan: which fault comes when, drawn from a seed, so that a run can be repeated."""

import heapq
import random
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_POLL_S = 0.25
#: Faults that may be under way together.
_HANDS = 4


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

    `weights` says how often each fault is drawn in proportion to the others; 0: never. No fault is
    left out by chance: between two strikes of one, others come about as often as their weights ask.
    """
    chance = random.Random(seed)
    turns = [(chance.random() / weight, name) for name, weight in sorted(weights.items()) if weight]
    heapq.heapify(turns)
    while turns:
        at, name = heapq.heappop(turns)
        heapq.heappush(turns, (at + chance.uniform(0.5, 1.5) / weights[name], name))
        yield Strike(
            after_s=chance.uniform(0.5, 1.5) * every_s, name=name, seed=chance.randrange(2**32)
        )


def follow(
    plan: Iterable[Strike],
    strike: Callable[[Strike], None],
    is_on: Callable[[], bool],
    stops_all: Container[str] = (),
) -> None:
    """Make the strikes of a plan, each in a thread, while `is_on`; return when all have ended.

    Strikes may overlap, but for those named in `stops_all`: while one of them lasts nothing can
    work, so the plan stands still, and continues when it is over.
    """
    with ThreadPoolExecutor(_HANDS, thread_name_prefix="fault") as hands:
        due_at = time.monotonic()
        for each in plan:
            due_at += each.after_s
            while time.monotonic() < due_at:
                if not is_on():
                    return
                time.sleep(min(_POLL_S, max(0.0, due_at - time.monotonic())))
            under_way = hands.submit(strike, each)
            while each.name in stops_all and not under_way.done():
                if not is_on():
                    return
                time.sleep(_POLL_S)
                due_at = time.monotonic()
