"""Primary and standby: a warm worker that consumes nothing until no primary is left.

Real processes that are killed, paused and stopped; and, without any, the statement that decides
who takes over.
"""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.turns import read_turn
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.store.fleet.liveness import LIVENESS_LOCK_CLASS
from turnmill.schemas.turns import GenerationParams, Lane, TurnState
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.abort import Abort
from turnmill.workers.upkeep.liveness import take_over
from turnmill.workers.upkeep.standby import warm_up

Eventually = Callable[..., None]


# --- Processes


def start_standby(system: Any, eventually: Eventually, *arguments: str) -> Any:
    """A standby that waits when this returns."""
    worker = system.start("worker", "--standby", *arguments)
    eventually(lambda: worker.says("worker.standing_by") or not worker.is_running, 30)
    assert worker.is_running, worker.log.read_text()
    return worker


def is_consuming(system: Any, worker: Any) -> bool:
    rows = system.database.run(
        "SELECT is_consuming FROM worker_liveness WHERE pid = %s", (worker.pid,)
    )
    return bool(rows and rows[0].is_consuming)


def attempts_of(system: Any, worker: Any) -> int:
    rows = system.database.run(
        "SELECT count(*) AS n FROM attempts a JOIN worker_liveness w ON w.id = a.worker_id "
        "WHERE w.pid = %s",
        (worker.pid,),
    )
    return int(rows[0].n)


def test_a_standby_consumes_nothing_until_the_primary_is_killed(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    primary = system.start_worker("--standby")
    standby = start_standby(system, eventually)
    accept_many(system.database, [system.request(f"turn {n}") for n in range(40)])
    system.wait_until_settled()
    assert (attempts_of(system, primary), attempts_of(system, standby)) == (40, 0)

    interrupted = accept_many(
        system.database, [system.request(f"[[wait=3]] turn {n}") for n in range(4)]
    )
    eventually(lambda: system.count("state = 'running'") == 4)
    primary.kill()
    system.wait_until_settled()
    assert standby.says("worker.took_over")
    turns = [read_turn(system.database, system.tenant_id, turn.turn_id) for turn in interrupted]
    assert {turn.state for turn in turns} == {TurnState.COMPLETED}
    assert attempts_of(system, standby) == 4
    assert system.count("crashes = 1") == 4

    returned = start_standby(system, eventually)
    accept_many(system.database, [system.request(f"turn {n}") for n in range(10)])
    system.wait_until_settled()
    assert attempts_of(system, standby) == 14
    assert not is_consuming(system, returned), "whoever has taken over stays the primary"


def test_a_standby_takes_over_from_a_primary_that_still_drains(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    system.start("relay")
    primary = system.start_worker()
    standby = start_standby(system, eventually)
    slow = accept(system.database, system.request("[[wait=20]] slow"))
    eventually(lambda: system.count("state = 'running'") == 1)
    primary.send(signal.SIGTERM)
    eventually(lambda: primary.says("drain.consuming_stopped"))
    quick = accept(system.database, system.request("quick"))
    eventually(lambda: system.count("state = 'completed'") == 1)
    assert read_turn(system.database, system.tenant_id, quick.turn_id).state == "completed"
    assert read_turn(system.database, system.tenant_id, slow.turn_id).state == "running"
    assert primary.is_running
    assert attempts_of(system, standby) == 1


def test_a_standby_replaces_a_paused_primary_and_both_may_go_on(
    make_system: Callable[..., Any], database_url: str, rabbitmq_vhost_url: str,
    eventually: Eventually,
) -> None:  # fmt: skip
    system = make_system(database_url, rabbitmq_vhost_url)
    system.start("relay")
    primary = system.start_worker("--standby")
    standby = start_standby(system, eventually)
    turn = accept(system.database, system.request("[[wait=3]] paused"))
    eventually(lambda: system.count("state = 'running'") == 1)
    primary.send(signal.SIGSTOP)
    system.wait_until_settled()
    assert attempts_of(system, standby) == 1, "it took the turn over with the place"
    primary.send(signal.SIGCONT)
    eventually(lambda: primary.says("turn.fenced"))
    accept_many(system.database, [system.request(f"turn {n}") for n in range(20)])
    system.wait_until_settled()
    assert read_turn(system.database, system.tenant_id, turn.turn_id).attempt == 2
    assert system.count("state = 'completed'") == 21


def test_a_standby_that_is_stopped_while_it_waits_ends_cleanly(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    primary = system.start_worker("--standby")
    standby = start_standby(system, eventually)
    standby.send(signal.SIGTERM)
    assert standby.wait(timeout_s=20) == 0
    assert not standby.says("worker.took_over")
    assert primary.is_running
    assert is_consuming(system, primary)


# --- Warm


class Counting(EchoEngine):
    def __init__(self) -> None:
        super().__init__(EngineSettings())
        self.chunks: list[Chunk] = []

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        for chunk in super().generate(prompt, params, abort):
            self.chunks.append(chunk)
            yield chunk


def test_a_warm_engine_has_generated_one_token() -> None:
    engine = Counting()
    warm_up(engine)
    assert sum(chunk.token_count for chunk in engine.chunks) == 1
    assert engine.chunks[-1].finish_reason is not None


def test_an_engine_that_fails_to_warm_up_may_still_be_needed() -> None:
    engine = Counting()
    engine.close()
    warm_up(engine)
    assert engine.chunks == []


# --- Who takes over


class Standby:
    """A registered, living worker, as the others see it."""

    def __init__(self, database: Any, model: str, lanes: tuple[Lane, ...], is_primary: bool):
        self.id = new_id()
        self.database = database
        self.connection = database.connect()
        (key,) = self.connection.execute(
            "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots, is_consuming)"
            " VALUES (%s, 'h', 1, %s, 'echo', %s, 1, %s) RETURNING lock_key",
            (self.id, model, list(lanes), is_primary),
        ).fetchone()
        self.connection.execute("SELECT pg_advisory_lock(%s, %s)", (LIVENESS_LOCK_CLASS, key))

    def takes_over(self, lease_s: float = 60.0) -> bool:
        return take_over(self.connection, self.id, lease_s=lease_s)

    def falls_silent(self) -> None:
        self.database.run(
            "UPDATE worker_liveness SET seen_at = seen_at - interval '30 s' WHERE id = %s",
            (self.id,),
        )

    def dies(self) -> None:
        self.connection.close()
        self.falls_silent()


@pytest.fixture
def system_without_broker(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture
def new_standby(system_without_broker: Any) -> Iterator[Callable[..., Standby]]:
    with ExitStack() as stack:

        def make(*lanes: Lane, model: str = "m", is_primary: bool = False) -> Standby:
            chosen = lanes or (Lane.INTERACTIVE, Lane.BATCH)
            made = Standby(system_without_broker.database, model, chosen, is_primary)
            stack.callback(made.connection.close)
            return made

        yield make


def consumers(system: Any) -> set[UUID]:
    rows = system.database.run("SELECT id FROM worker_liveness WHERE is_consuming")
    return {row.id for row in rows}


def test_a_standby_waits_for_a_primary_that_lives_and_not_for_one_that_is_dead(
    new_standby: Callable[..., Standby], eventually: Eventually
) -> None:
    primary, standby = new_standby(is_primary=True), new_standby()
    assert not standby.takes_over()
    primary.dies()
    eventually(standby.takes_over)


def test_a_primary_that_was_silent_for_a_lease_is_gone_though_it_holds_its_lock(
    new_standby: Callable[..., Standby],
) -> None:
    primary, standby = new_standby(is_primary=True), new_standby()
    primary.falls_silent()
    assert not standby.takes_over(lease_s=60)
    assert standby.takes_over(lease_s=15)


def test_a_standby_of_another_model_or_lane_is_no_reason_to_wait(
    new_standby: Callable[..., Standby],
) -> None:
    new_standby(model="other", is_primary=True)
    new_standby(Lane.QUARANTINE, is_primary=True)
    new_standby()
    assert new_standby().takes_over()


def test_a_lane_that_nobody_consumes_is_taken_over_though_another_is_served(
    new_standby: Callable[..., Standby],
) -> None:
    new_standby(Lane.BATCH, is_primary=True)
    assert not new_standby(Lane.BATCH).takes_over()
    assert new_standby(Lane.INTERACTIVE, Lane.BATCH).takes_over()


def test_of_many_standbys_that_try_at_once_one_takes_over(
    new_standby: Callable[..., Standby], system_without_broker: Any
) -> None:
    standbys = [new_standby() for _ in range(8)]
    with ThreadPoolExecutor(len(standbys)) as pool:
        results = list(pool.map(lambda standby: standby.takes_over(), standbys))
    assert results.count(True) == 1
    assert consumers(system_without_broker) == {standbys[results.index(True)].id}
