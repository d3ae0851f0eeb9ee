"""PostgreSQL's clock steps, an hour forward or back: no turn waits for it, and none is lost to it.

With the real Postgres of `stepping.py`. A server that takes over with another clock looks the same.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.integration.workers.claiming import claimed, seen_at
from tests.integration.workers.clock.stepping import HOUR, Eventually, both_ways, step
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.relay.lost import LostHints
from turnmill.producer.relay.outbox import TAKE
from turnmill.schemas.outcomes import Snoozed
from turnmill.schemas.settings import RetentionSettings
from turnmill.schemas.turns import Lane
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.upkeep.pruner import prune
from turnmill.workers.upkeep.rescuer import sweep


@pytest.fixture
def system(stepping_system: Any) -> Any:
    return stepping_system


@pytest.fixture
def leases(system: Any) -> Iterator[Leases]:
    """Of a worker that is registered and then does nothing: it renews no lease."""
    model = system.settings.engine.model_name
    leases = Leases(system.database, system.settings.worker, model=model, engine="echo")
    yield leases


@both_ways
def test_turns_that_were_queued_before_a_step_are_answered_at_once(
    system: Any, step_s: float
) -> None:
    accepted = accept_many(
        system.database,
        [
            system.request(f"turn {n}", lane=lane)
            for n in range(10)
            for lane in (Lane.INTERACTIVE, Lane.BATCH)
        ],
    )
    step(system, step_s)
    system.start("relay")
    system.start_worker()
    system.wait_until_settled(20)
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("attempt > 1") == 0


@both_ways
def test_running_turns_survive_a_step_and_it_is_logged(
    system: Any, step_s: float, eventually: Eventually
) -> None:
    turns = accept_many(
        system.database, [system.request("[[wait=5]] hello", timeout_s=60.0) for _ in range(4)]
    )
    with capture_logs() as logs, InlineWorker(system.settings):
        eventually(lambda: system.count("state = 'running'") == 4)
        for _ in range(2):  # the worker has read the clock
            before = seen_at(system)
            eventually(lambda before=before: seen_at(system) > before)  # type: ignore[misc]
        step(system, step_s)
        system.wait_until_settled(20)
    assert [system.read(turn).state for turn in turns] == ["completed"] * 4
    assert system.count("attempt > 1 OR crashes > 0") == 0
    steps = [log["by_s"] for log in logs if log["event"] == "clock.stepped"]
    assert [round(by_s) for by_s in steps] == [step_s]


def test_a_deadline_knows_of_a_step_forward_that_the_worker_has_not_observed(
    system: Any, leases: Leases
) -> None:
    leases.start()
    first, second = (
        accept(system.database, system.request("hello", timeout_s=60.0)) for _ in range(2)
    )
    leases.close()
    step(system, HOUR)
    left_s = claimed(leases, first).deadline_s
    assert left_s is not None
    assert 30 < left_s <= 61
    step(system, -HOUR)
    assert 30 < (claimed(leases, second).deadline_s or 0) <= 61


def test_a_deadline_is_no_later_than_the_client_said_after_a_step_back(
    system: Any, leases: Leases
) -> None:
    leases.start()
    turn = accept(system.database, system.request("hello", timeout_s=60.0))
    leases.close()
    step(system, -HOUR)
    assert 30 < (claimed(leases, turn).deadline_s or 0) <= 61


@pytest.mark.parametrize("days", [-200, 200])
def test_a_machine_that_accepts_turns_may_have_a_clock_that_is_wrong_by_months(
    system: Any, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is in the ids of turns, which say in which month's partition they lie."""
    right = accept(system.database, system.request("at the right time"))
    monkeypatch.setattr(time, "time_ns", lambda: int((time.time() + days * 24 * HOUR) * 1e9))
    wrong = [
        accept(system.database, system.request(text, conversation_id=right.conversation_id))
        for text in ("one", "two")
    ]
    monkeypatch.undo()
    last = accept(system.database, system.request("three", conversation_id=right.conversation_id))
    system.start("relay")
    system.start_worker()
    system.wait_until_settled(60)
    system.assert_answered_once_and_in_order([right, *wrong, last])
    prune(system.database, RetentionSettings(turns_days=30, attempts_days=30), lambda _: False)
    system.assert_answered_once_and_in_order([right, *wrong, last])


def test_a_deadline_knows_of_a_step_forward(system: Any, eventually: Eventually) -> None:
    """A minute from acceptance is a minute, though the clock shows an hour."""
    with InlineWorker(system.settings) as inline:
        eventually(lambda: inline.worker.leases.clock.latest_s < float("inf"))
        first = accept(system.database, system.request("[[wait=3]] one", timeout_s=60.0))
        second = accept(
            system.database,
            system.request("two", timeout_s=60.0, conversation_id=first.conversation_id),
        )
        eventually(lambda: system.count("state = 'running'") == 1)
        step(system, HOUR)
        system.wait_until_settled(20)
    assert [system.read(turn).state for turn in (first, second)] == ["completed", "completed"]


def test_the_lease_of_a_silent_worker_still_expires_after_a_step_back(
    system: Any, leases: Leases
) -> None:
    turn = accept(system.database, system.request("hello"))
    claimed(leases, turn)
    step(system, -HOUR)
    with InlineWorker(system.settings):
        system.wait_until_settled(20)
    assert (system.read(turn).state, system.count("attempt = 2")) == ("completed", 1)


def test_the_longer_leases_of_a_worker_that_lives_are_left_alone(
    system: Any, leases: Leases
) -> None:
    leases._settings = system.settings.worker.model_copy(update={"lease_s": 60.0})
    leases.start()
    claimed(leases, accept(system.database, system.request("hello")))
    sweep(system.database, system.settings.worker)
    leases.close()
    assert system.count("leased_until > clock_timestamp() + interval '30 s'") == 1


def test_a_worker_that_was_seen_before_a_step_back_may_be_dead(
    make_system: Callable[..., Any], system: Any, leases: Leases
) -> None:
    """Its leases would last long; its lock is gone."""
    leases._settings = system.settings.worker.model_copy(update={"lease_s": 15.0})
    turn = accept(system.database, system.request("hello"))
    leases.start()
    claimed(leases, turn)
    leases.close()
    step(system, -HOUR)
    with InlineWorker(system.settings):
        system.wait_until_settled(10)
    assert (system.read(turn).state, system.count("crashes = 1")) == ("completed", 1)


def test_a_hint_that_was_lost_before_a_step_back_is_published_again(system: Any) -> None:
    accepted = accept_many(system.database, [system.request(f"turn {n}") for n in range(5)])
    system.database.run("UPDATE outbox SET published_at = clock_timestamp()")
    step(system, -HOUR)
    lost_hints = LostHints(system.settings, system.database)
    with InlineWorker(system.settings):
        lost_hints.start()
        system.wait_until_settled(20)
    lost_hints.close()
    system.assert_answered_once_and_in_order(accepted)


def test_a_hint_that_waits_for_its_worker_is_late_after_a_step_back(system: Any) -> None:
    turn = accept(system.database, system.request("hello"))
    system.database.run(
        "UPDATE outbox SET published_at = clock_timestamp(), "
        "own_until = clock_timestamp() + interval '0.2 s'"
    )
    step(system, -HOUR)
    lanes = [lane.value for lane in Lane]
    params = {"window": 8, "batch_size": 8, "warm_lanes": lanes, "warm_s": 60.0, "ttl_s": 0.2}
    rows = system.database.run(TAKE, params | {"lanes": lanes})
    assert [(row.turn_id, row.own_worker_id) for row in rows] == [(turn.turn_id, None)]


def test_the_pruner_deletes_nothing_because_the_clock_stepped_forward(system: Any) -> None:
    turn = accept(system.database, system.request("hello"))
    with InlineWorker(system.settings):
        system.wait_until_settled()
    step(system, 1000 * 24 * HOUR)
    with capture_logs() as logs:
        counts = prune(system.database, RetentionSettings(turns_days=30), lambda _: False)
    assert not [name for name in counts or () if "(made)" not in name]
    assert system.read(turn).state == "completed"
    assert [log["by_s"] for log in logs if log["event"] == "clock.ahead"] == [1000 * 24 * HOUR]


def test_a_turn_that_is_to_be_tried_again_does_not_wait_for_a_clock_that_stepped_back(
    system: Any, leases: Leases
) -> None:
    turn = accept(system.database, system.request("hello"))
    settler = Settler(system.database, max_attempts=5, give_up=threading.Event())
    assert settler.settle(claimed(leases, turn), Snoozed(20.0, "busy"))
    assert leases.claim(turn.turn_id) is None, "it waits for its time"
    step(system, -HOUR)
    assert leases.claim(turn.turn_id) is not None
