"""The turns that a worker ended lately are counted over both windows, and forgotten after them."""

from turnmill.workers.upkeep.ended import Ended


def test_turns_are_counted_over_a_minute_and_over_five_and_then_forgotten() -> None:
    now = 1000.0
    ended = Ended(lambda: now)
    for _ in range(3):
        ended.note("batch")
    now += 50
    ended.note("batch")
    ended.note("interactive")
    assert ended.lately() == {"batch": [4, 4], "interactive": [1, 1]}
    now += 30
    assert ended.lately() == {"batch": [1, 4], "interactive": [1, 1]}
    now += 250
    assert ended.lately() == {"batch": [0, 1], "interactive": [0, 1]}
    now += 100
    assert ended.lately() == {}


def test_a_worker_that_has_ended_nothing_says_so() -> None:
    assert Ended().lately() == {}
