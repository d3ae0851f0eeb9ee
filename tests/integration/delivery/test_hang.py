"""Engines that do not let go, and errors that would cost Celery's threads pool a slot for good."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.supervisor import ChildEvent, ChildEventKind, Supervisor
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.turns import read_turn
from turnmill.schemas.turns import TurnState
from turnmill.workers.consumer.drain import HUNG_STATUS

Eventually = Callable[..., None]

#: Seconds of generation, half a second to let go, one crash until quarantine.
IMPATIENT = {
    "TURNMILL_WORKER__TURN_TIMEOUT_S": "4",
    "TURNMILL_WORKER__HANG_S": "0.5",
    "TURNMILL_WORKER__DRAIN_S": "5",
    "TURNMILL_WORKER__QUARANTINE_AFTER": "1",
}


@contextmanager
def supervised_workers(system: Any, logs: Path, **more: str) -> Iterator[list[ChildEvent]]:
    """An ordinary worker and one for quarantine, revived when they end; what became of them."""
    command = [sys.executable, "-m", "turnmill.producer.cli", "worker"]
    environment = {**os.environ, **system.variables, **IMPATIENT, **more}
    lonely = ["--lane", "quarantine", "--concurrency", "1"]
    children = [
        Child(name="worker", command=command, environment=environment),
        Child(name="quarantine", command=[*command, *lonely], environment=environment),
    ]
    events: list[ChildEvent] = []
    supervisor = Supervisor(children, logs, notify=events.append)
    supervisor.start()
    try:
        yield events
    finally:
        supervisor.stop(hurry=True)


def test_a_turn_that_hangs_its_engine_is_parked_and_its_neighbours_are_answered(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    system = make_system(database_url, valkey_url)
    system.start("relay")
    poison = accept(system.database, system.request("[[hang]]"))
    follower = accept(
        system.database, system.request("after", conversation_id=poison.conversation_id)
    )
    neighbours = accept_many(
        system.database, [system.request(f"[[wait=1]] neighbour {n}") for n in range(16)]
    )
    with supervised_workers(system, tmp_path) as events:
        system.wait_until_settled(90)
        ended = read_turn(system.database, system.tenant_id, poison.turn_id)
        assert (ended.state, ended.error_code) == (TurnState.PARKED, "worker_lost")
        for turn in [follower, *neighbours]:
            state = read_turn(system.database, system.tenant_id, turn.turn_id).state
            assert state is TurnState.COMPLETED
        # The neighbours finished, or were handed back unharmed.
        assert system.count("crashes > 0") == 1
    deaths = [event for event in events if event.kind is ChildEventKind.DIED]
    assert deaths[0].child.name == "worker"
    assert {event.exit_code for event in deaths} == {HUNG_STATUS}
    assert b"engine.hung" in (tmp_path / "worker.log").read_bytes()


def test_a_worker_whose_engine_has_died_is_replaced(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, tmp_path: Path,
    eventually: Eventually,
) -> None:  # fmt: skip
    def deaths() -> list[int | None]:
        return [event.exit_code for event in events if event.kind is ChildEventKind.DIED]

    system = make_system(database_url, valkey_url)
    system.start("relay")
    poison = accept(system.database, system.request("[[die]]"))
    with supervised_workers(system, tmp_path) as events:
        system.wait_until_settled(90)
        eventually(deaths)
        follower = accept(system.database, system.request("after"))
        system.wait_until_settled(90)
        # It was alone in the second and the third.
        eventually(lambda: deaths() == [HUNG_STATUS] * 3)
    states = [
        read_turn(system.database, system.tenant_id, turn.turn_id).state
        for turn in (poison, follower)
    ]
    assert states == [TurnState.PARKED, TurnState.COMPLETED]
    parked = read_turn(system.database, system.tenant_id, poison.turn_id)
    assert parked.error_code == "worker_lost"


def test_a_stopping_worker_does_not_wait_for_an_engine_that_hangs(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    system.start("relay")
    worker = system.start_worker(TURNMILL_WORKER__DRAIN_S="0.5")
    accept_many(system.database, [system.request("[[hang]]") for _ in range(3)])
    eventually(lambda: system.count("state = 'running'") == 3)
    worker.send(signal.SIGTERM)
    assert worker.wait(timeout_s=20) == 0
    # Nobody can tell yet that it hangs: what is handed back does not count.
    assert system.count("state = 'queued' AND failures = 0 AND crashes = 0") == 3


def test_turns_that_raise_what_no_engine_should_cost_no_slot(system: Any) -> None:
    system.start("relay")
    worker = system.start_worker("--concurrency", "2", TURNMILL_WORKER__MAX_ATTEMPTS="1")
    bad = accept_many(
        system.database, [system.request(text) for text in ["[[memory]]", "[[exit]]"] * 3]
    )
    system.wait_until_settled()
    good = accept_many(system.database, [system.request(f"good {n}") for n in range(4)])
    system.wait_until_settled()
    assert worker.is_running
    for turns, expected in ((bad, TurnState.PARKED), (good, TurnState.COMPLETED)):
        for turn in turns:
            ended = read_turn(system.database, system.tenant_id, turn.turn_id)
            assert ended.state is expected
