"""Lanes are paused and resumed while turns arrive and run, on both brokers."""

from collections.abc import Callable
from typing import Any

import pytest

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.operations import lanes
from turnmill.producer.operations.queue import read_open
from turnmill.schemas.errors import NotFound
from turnmill.schemas.store.fleet.lanes import read_pauses
from turnmill.schemas.turns import Lane

Eventually = Callable[..., None]

#: Two seconds of words: such a turn still runs when its lane is paused.
SLOW, TOKEN_S = "[[tokens=100]]", 0.02


def pause(system: Any, lane: Lane = Lane.BATCH, model: str | None = None) -> None:
    lanes.pause(system.database, lane, model, by="ada@ops", reason="a test")


def claimed(system: Any, lane: Lane) -> int:
    return int(system.count(f"lane = '{lane}' AND attempt > 0"))


def test_a_paused_lane_accepts_turns_and_answers_them_once_it_is_resumed(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    system.start_worker()
    pause(system)
    held = accept_many(system.database, [system.request("later", lane=Lane.BATCH)] * 30)
    free = [accept(system.database, system.request("now"))]
    eventually(lambda: system.count("state = 'completed'") == 1)
    assert claimed(system, Lane.BATCH) == 0, "the other lane's turn was answered, these were not"
    lanes.resume(system.database, Lane.BATCH, None)
    system.wait_until_settled()
    system.assert_answered_once_and_in_order([*held, *free])


def test_a_pause_drops_hints_that_the_broker_has_and_lets_running_turns_finish(
    system: Any, eventually: Eventually
) -> None:
    """Eight turns run, and the hints of the others are in the broker already."""
    system.start("relay")
    system.start_worker(TURNMILL_ENGINE__ECHO_TOKEN_S=str(TOKEN_S))
    turns = accept_many(system.database, [system.request(SLOW, lane=Lane.BATCH)] * 40)
    eventually(lambda: system.count("state = 'running'") == 8)
    pause(system)
    eventually(lambda: system.count("state = 'running'") == 0, 60)
    begun = claimed(system, Lane.BATCH)
    assert begun < 40
    assert system.count("state = 'completed'") == begun, "what ran has finished"
    lanes.resume(system.database, Lane.BATCH, None)
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(turns)


def test_the_pause_of_one_model_leaves_the_lane_to_the_others(system: Any) -> None:
    model = system.settings.engine.model_name
    pause(system, Lane.INTERACTIVE, model)
    accept(system.database, system.request("hello"))
    (found,) = read_pauses(system.database)
    assert found.covers(Lane.INTERACTIVE, model)
    assert not found.covers(Lane.INTERACTIVE, "another")
    assert read_open(system.database)[model, Lane.INTERACTIVE].queued == 1


def test_a_pause_is_ended_as_it_was_made_and_a_wrong_resume_names_the_right_one(
    system: Any,
) -> None:
    pause(system, Lane.BATCH, system.settings.engine.model_name)
    with pytest.raises(NotFound, match=r"turnmill lanes resume batch --model smollm2"):
        lanes.resume(system.database, Lane.BATCH, None)
    assert lanes.resume(system.database, Lane.BATCH, system.settings.engine.model_name)
    assert read_pauses(system.database) == []


def test_a_second_pause_without_a_reason_keeps_the_first_one(system: Any) -> None:
    pause(system)
    lanes.pause(system.database, Lane.BATCH, None, by="bob@ops", reason="")
    assert [(each.paused_by, each.reason) for each in read_pauses(system.database)] == [
        ("ada@ops", "a test")
    ]
    lanes.pause(system.database, Lane.BATCH, None, by="bob@ops", reason="until six")
    assert [(each.paused_by, each.reason) for each in read_pauses(system.database)] == [
        ("bob@ops", "until six")
    ]


def test_a_model_that_nothing_uses_is_no_typing_error_that_pauses_nothing(system: Any) -> None:
    with pytest.raises(NotFound, match="No bot, worker or turn uses the model 'smolm'"):
        pause(system, Lane.BATCH, "smolm")
    assert read_pauses(system.database) == []


def test_the_relay_publishes_nothing_of_a_paused_lane_and_misses_none_of_its_hints(
    system: Any, eventually: Eventually
) -> None:
    relay = system.start("relay")
    accept_many(system.database, [system.request("first", lane=Lane.BATCH)] * 5)
    published = "SELECT count(*) AS n FROM outbox WHERE published_at IS NOT NULL"
    eventually(lambda: system.database.run(published)[0].n == 5)
    pause(system)
    accept_many(system.database, [system.request("second", lane=Lane.BATCH)] * 5)
    accept(system.database, system.request("other lane"))
    eventually(lambda: system.database.run(published)[0].n == 6)
    old = "UPDATE outbox SET published_at = published_at - interval '1 hour'"
    system.database.run(f"{old} WHERE published_at IS NOT NULL AND lane = 'batch'")
    worker = system.start_worker()
    eventually(lambda: system.count("state = 'completed'") == 1)
    assert worker.is_running
    assert claimed(system, Lane.BATCH) == 0
    assert not relay.says("hints.lost")
