"""The worker's registration: a row that others see, and an advisory lock that dies with it.

With a real Postgres and no broker. A hand, a restore or another program may take either away.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from turnmill.producer.accept import accept
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.store.fleet.liveness import LIVENESS_LOCK_CLASS
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.leases import Leases

Eventually = Callable[..., None]

_HOLDERS = """
SELECT l.pid FROM pg_locks l JOIN worker_liveness w ON w.lock_key = l.objid::bigint
WHERE locktype = 'advisory' AND classid = %s AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


@pytest.fixture
def leases(system: Any) -> Iterator[Leases]:
    """Of a worker that is not started yet."""
    model = system.settings.engine.model_name
    leases = Leases(system.database, system.settings.worker, model=model, engine="echo")
    yield leases
    leases.close()


def holders(system: Any) -> list[int]:
    """The backends that hold the lock of a registered worker."""
    return [row.pid for row in system.database.run(_HOLDERS, (LIVENESS_LOCK_CLASS,))]


def delete_rows(system: Any) -> None:
    system.database.run("DELETE FROM worker_liveness")


def test_a_worker_whose_row_is_deleted_again_and_again_keeps_its_turn(
    system: Any, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("[[wait=3]] hello"))
    with InlineWorker(system.settings):
        eventually(lambda: system.count("state = 'running'") == 1)
        while system.count("state = 'running'"):
            delete_rows(system)
            eventually(lambda: len(holders(system)) == 1)
    assert read_turn(system.database, system.tenant_id, turn.turn_id).state == "completed"
    assert system.count("attempt = 1 AND crashes = 0") == 1


def test_the_row_that_replaces_a_deleted_one_says_the_same_of_its_worker(
    system: Any, leases: Leases, eventually: Eventually
) -> None:
    row = "SELECT id, host, pid, model, engine, lanes, slots, is_consuming FROM worker_liveness"
    leases.start()
    leases.stop_consuming()
    eventually(lambda: not system.database.run(row)[0].is_consuming)
    before = system.database.run(row)
    delete_rows(system)
    eventually(lambda: system.database.run(row))
    assert system.database.run(row) == before
    held = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND classid = %s"
    assert system.database.run(held, (LIVENESS_LOCK_CLASS,))[0].n == 1, "the old lock is released"


def test_a_worker_whose_lock_another_backend_holds_registers_with_one_that_it_can_hold(
    system: Any, leases: Leases, eventually: Eventually
) -> None:
    with system.database.connect() as other:
        for key in range(1, 4):
            other.execute("SELECT pg_advisory_lock(%s, %s)", (LIVENESS_LOCK_CLASS, key))
        leases.start()
        eventually(lambda: set(holders(system)) - {other.info.backend_pid})
        assert other.info.backend_pid not in holders(system)


def test_a_worker_whose_heartbeat_cannot_reconnect_claims_nothing(
    system: Any, leases: Leases, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when PostgreSQL has no connection left: the pool of the worker still has its own."""
    leases.start()
    eventually(lambda: holders(system))
    turn = accept(system.database, system.request("hello"))

    def refuse(**_: Any) -> None:
        raise DatabaseUnavailable("sorry, too many clients already")

    with monkeypatch.context() as patch:
        patch.setattr(system.database, "connect", refuse)
        with psycopg.connect(
            system.settings.database.url.get_secret_value(), autocommit=True
        ) as link:
            link.execute("SELECT pg_terminate_backend(%s)", (holders(system)[0],))
        eventually(lambda: leases.reconnected_s < 0)
        with pytest.raises(DatabaseUnavailable):
            leases.claim(turn.turn_id)
    assert system.count("state = 'queued' AND attempt = 0") == 1
    eventually(lambda: leases.reconnected_s >= 0)
    assert leases.claim(turn.turn_id) is not None
