"""The rate of a batch: near the truth at every moment, and unknown before it can be."""

import itertools
import random
from collections.abc import Iterator

import pytest

from turnmill.producer.batches.pace import pace_of
from turnmill.schemas.store.batches.moves import BIN_S, PACE_S, EndedBin


def bins_at(now: float, endings: list[float]) -> list[EndedBin]:
    """What the database would say at a moment."""
    grouped: dict[int, list[float]] = {}
    for at in endings:
        if now - PACE_S < at <= now:
            grouped.setdefault(int(at // BIN_S), []).append(at)
    return [
        EndedBin(now - min(times), now - max(times), len(times), 10 * len(times))
        for _, times in sorted(grouped.items(), reverse=True)
    ]


def arrivals(chance: random.Random, rate: float, start: float, end: float) -> Iterator[float]:
    at = start
    while (at := at + chance.expovariate(rate)) < end:
        yield at


def test_nothing_is_said_before_it_is_known() -> None:
    assert pace_of([]) is None
    assert pace_of([EndedBin(0.2, 0.0, 19, 0)]) is None
    assert pace_of([EndedBin(4.0, 0.0, 400, 0)]) is None, "one batch of an engine says little"
    assert pace_of([EndedBin(30.0, 0.0, 4, 0)]) is None


@pytest.mark.parametrize("rate", [0.05, 0.3, 2.0, 40.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_rate_is_right_within_a_factor_of_two_and_does_not_jump(rate: float, seed: int) -> None:
    chance = random.Random(seed)
    endings = list(arrivals(chance, rate, 100.0, 2000.0 if rate < 10 else 200.0))
    said: list[float] = []
    for now in range(100, int(endings[-1]), 3):
        if pace := pace_of(bins_at(now, endings)):
            said.append(pace.turns_per_s)
            assert pace.tokens_per_s == pytest.approx(10 * pace.turns_per_s, rel=0.2)
    wrong = [each for each in said if not rate / 2 < each < rate * 2]
    assert said and len(wrong) <= 0.02 * len(said)
    jumps = [b / a for a, b in itertools.pairwise(said) if not 0.6 < b / a < 1.7]
    assert len(jumps) <= 0.01 * len(said)


def test_turns_that_end_in_bursts_have_a_steady_rate() -> None:
    """An engine that answers 32 at once, every 40 s."""
    endings = [100.0 + 40 * burst + n / 100 for burst in range(30) for n in range(32)]
    said = [p.turns_per_s for now in range(400, 1200, 4) if (p := pace_of(bins_at(now, endings)))]
    assert len(said) == 200
    assert all(0.4 < each < 1.6 for each in said)


def test_the_rate_sinks_when_nothing_ends_any_more() -> None:
    endings = [100 + n / 10 for n in range(1000)]
    said = [p.turns_per_s for now in (200, 230, 300, 600) if (p := pace_of(bins_at(now, endings)))]
    assert said[0] == pytest.approx(10, rel=0.1)
    assert said == sorted(said, reverse=True) and said[-1] < 5
    assert pace_of(bins_at(900, endings)) is None


#: Turns a second, one load after the other; each lasts until the rate must be right, and longer.
LOADS = [
    [40.0, 4.0, 40.0],
    [100.0, 1.0, 10.0],
    [2.0, 0.3, 5.0],
    [1.0, 200.0, 1.0],
]
#: After a change of load the rate is right once so many turns ended and so much time passed.
SETTLED_TURNS, SETTLED_S = 35, 30.0


@pytest.mark.parametrize("loads", LOADS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_the_time_left_follows_a_change_of_load_and_does_not_jump(
    loads: list[float], seed: int
) -> None:
    chance, total, at = random.Random(seed), 1_000_000, 1000.0
    endings: list[float] = []
    right: list[tuple[float, float, float]] = []
    for rate in loads:
        settles_s = max(SETTLED_S, SETTLED_TURNS / rate)
        right.append((at + settles_s, at + 3 * settles_s, rate))
        endings += arrivals(chance, rate, at, at + 3 * settles_s)
        at += 3 * settles_s
    left: dict[float, float] = {}
    for now in (1000.0 + each for each in range(int(at - 1000))):
        if pace := pace_of(bins_at(now, [each for each in endings if each > now - PACE_S])):
            done = sum(each <= now for each in endings)
            left[now] = (total - done) / pace.turns_per_s
    for begin, end, rate in right:
        said = [left[now] * rate / total for now in left if begin <= now < end]
        wrong = [each for each in said if not 0.5 < each < 2]
        assert said and len(wrong) <= 0.02 * len(said), (rate, wrong)
    # From one second to the next, also where the load changes by a factor of two hundred.
    jumps = [
        left[now] / left[now - 1]
        for now in left
        if now - 1 in left and not 0.5 < left[now] / left[now - 1] < 2
    ]
    assert len(jumps) <= 0.01 * len(left), jumps
