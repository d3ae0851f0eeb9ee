"""The plan of `turnmill chaos`: every fault is in it; those that stop everything stand alone."""

import itertools
import threading
import time
from collections import Counter
from functools import reduce
from importlib import import_module

import pytest

from turnmill.infra.chaos.breaking.actions import ACTIONS
from turnmill.infra.chaos.breaking.crash import POINTS, Point
from turnmill.infra.chaos.plan import Strike, follow, make_plan

#: They need a topology of their own, or a scenario that knows what follows.
SCRIPTED = {"fail-over", "kill-primary", "stop-broker"}
#: Longest duration of those that stop everything, seconds; leases are of 4 s.
DURATIONS_S = {"engine-away": 30.0, "kill-all": 5 * 7.0, "lock-table": 20.0}


def test_every_fault_that_needs_no_script_is_in_the_default_plan() -> None:
    assert {name for name, action in ACTIONS.items() if not action.weight} == SCRIPTED


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_every_step_at_which_a_process_may_crash_exists(point: Point) -> None:
    module, _, path = point.step.partition(":")
    assert callable(reduce(getattr, path.split("."), import_module(module)))


def test_an_hour_long_run_draws_every_fault() -> None:
    weights = {name: action.weight for name, action in ACTIONS.items()}
    for seed in range(5):
        drawn = Counter(s.name for s in itertools.islice(make_plan(seed, weights, 4.0), 900))
        assert set(drawn) == set(ACTIONS) - SCRIPTED


def test_no_fault_is_left_out_by_chance() -> None:
    weights = {f"fault {number}": 1.0 for number in range(20)} | {"never": 0.0}
    for seed in range(5):
        drawn = Counter(s.name for s in itertools.islice(make_plan(seed, weights, 4.0), 60))
        assert set(drawn) == set(weights) - {"never"}
        assert max(drawn.values()) <= 6


def test_faults_that_stop_everything_make_the_plan_longer_by_a_quarter_at_most() -> None:
    stopping = {name for name, action in ACTIONS.items() if action.stops_all} - SCRIPTED
    assert stopping == set(DURATIONS_S)
    stopped_s = sum(ACTIONS[name].weight * DURATIONS_S[name] for name in stopping)
    assert stopped_s / sum(action.weight for action in ACTIONS.values()) <= 4.0 / 4


def test_a_fault_that_stops_everything_delays_the_next_one_and_others_overlap() -> None:
    spans: dict[int, tuple[float, float]] = {}
    both = threading.Barrier(2)

    def strike(each: Strike) -> None:
        began_at = time.monotonic()
        if each.seed < 2:
            both.wait(10)
        else:
            time.sleep(0.3)
        spans[each.seed] = began_at, time.monotonic()

    plan = [
        Strike(0.01, name, number)
        for number, name in enumerate(["short", "short", "total", "short"])
    ]
    follow(plan, strike, lambda: True, {"total"})
    assert len(spans) == len(plan), "the first two wait for each other"
    assert spans[3][0] >= spans[2][1]


@pytest.mark.parametrize("stops_all", [(), ("fault",)])
def test_a_plan_ends_when_the_run_does_and_waits_for_what_it_broke(stops_all: tuple[str]) -> None:
    is_over, mended = threading.Event(), threading.Event()

    def strike(each: Strike) -> None:
        is_over.set()
        time.sleep(0.2)
        mended.set()

    plan = make_plan(1, {"fault": 1}, 0.05)
    follow(plan, strike, lambda: not is_over.is_set(), stops_all)
    assert mended.is_set()
