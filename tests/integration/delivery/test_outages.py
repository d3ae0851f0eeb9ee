"""Outages: the broker away, PostgreSQL away, a turn that kills its workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.migrations import upgrade
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.turns import read_turn
from turnmill.schemas.turns import Lane, TurnState

Eventually = Callable[..., None]


@pytest.mark.parametrize("broker", ["rabbitmq", "valkey"])
def test_turns_accepted_while_the_broker_is_down_are_answered_when_it_is_back(
    broker: str,
    request: pytest.FixtureRequest,
    make_system: Callable[..., Any],
    database_url: str,
) -> None:
    server = request.getfixturevalue(broker)
    url = request.getfixturevalue("rabbitmq_vhost_url" if broker == "rabbitmq" else "valkey_url")
    system = make_system(database_url, url)
    system.start("relay")
    system.start_worker()
    server.stop()
    try:
        accepted = [accept(system.database, system.request(f"turn {n}")) for n in range(20)]
        assert system.count("state = 'queued'") == len(accepted)
    finally:
        server.start()
    system.wait_until_settled(90)
    for number, turn in enumerate(accepted):
        reply = read_turn(system.database, system.tenant_id, turn.turn_id).reply
        assert reply is not None
        assert reply.content == f"turn {number}"


def test_turns_in_work_survive_a_restart_of_postgres(
    make_system: Callable[..., Any],
    make_server_folder: Callable[[], Path],
    valkey_url: str,
    eventually: Eventually,
) -> None:
    with EmbeddedPostgres(make_server_folder()) as postgres:
        upgrade(postgres.url)
        system = make_system(postgres.url, valkey_url)
        system.start("relay")
        system.start_worker()
        accepted = accept_many(
            system.database,
            [system.request(f"[[wait=3]] turn {n}", lane=Lane.BATCH) for n in range(12)],
        )
        eventually(lambda: system.count("state = 'running'") == 8)
        postgres.stop()
        postgres.start()
        eventually(system.has_database)
        system.wait_until_settled(60)
        turns = [read_turn(system.database, system.tenant_id, t.turn_id) for t in accepted]
        assert {turn.state for turn in turns} == {TurnState.COMPLETED}
        assert system.database.run("SELECT count(*) AS n FROM replies")[0].n == len(accepted)
        system.database.close()


def test_a_turn_that_kills_its_workers_is_parked_and_its_neighbours_are_answered(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    system.start("relay")
    poison = accept(system.database, system.request("[[wait=0.3]] [[crash]]"))
    follower = accept(
        system.database, system.request("after", conversation_id=poison.conversation_id)
    )
    neighbours = accept_many(
        system.database, [system.request(f"[[wait=0.2]] neighbour {n}") for n in range(6)]
    )
    # Not `start_worker`: it may be dead by the time that one looks.
    workers = {"normal": system.start("worker")}
    ordinary: tuple[str, ...] = ()
    lonely = ("--lane", "quarantine", "--concurrency", "1")
    workers["quarantine"] = system.start_worker(*lonely)

    def settled() -> bool:
        for name, arguments in (("normal", ordinary), ("quarantine", lonely)):
            if not workers[name].is_running:
                workers[name] = system.start("worker", *arguments)
        return system.count("state IN ('waiting', 'queued', 'running')") == 0

    eventually(settled, 90, 0.1)
    ended = read_turn(system.database, system.tenant_id, poison.turn_id)
    assert (ended.state, ended.error_code) == (TurnState.PARKED, "worker_lost")
    for turn in [follower, *neighbours]:
        state = read_turn(system.database, system.tenant_id, turn.turn_id).state
        assert state is TurnState.COMPLETED
