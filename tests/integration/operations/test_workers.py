"""Workers are listed, and drained from afar, on both brokers."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from turnmill.producer.accept import accept_many
from turnmill.producer.operations.workers import (
    WorkerRow,
    WorkerState,
    ask_to_drain,
    find_worker,
    list_workers,
)
from turnmill.schemas.errors import InvalidInput, NotFound

Eventually = Callable[..., None]

#: A turn of a hundred words then takes ten seconds, longer than the drain.
TOKEN_S = 0.1


def rows(system: Any) -> list[WorkerRow]:
    return list_workers(system.database, system.settings.worker.lease_s)


def only(system: Any) -> WorkerRow:
    (row,) = rows(system)
    return row


def test_a_worker_drained_from_afar_finishes_hands_back_and_ends_with_status_0(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    drained = system.start_worker(
        TURNMILL_WORKER__DRAIN_S="1", TURNMILL_ENGINE__ECHO_TOKEN_S=str(TOKEN_S)
    )
    turns = accept_many(
        system.database,
        [*[system.request("[[tokens=100]]")] * 4, *[system.request("short")] * 2],
    )
    eventually(lambda: system.count("state = 'running'") >= 4)
    asked = only(system)
    assert asked.state is WorkerState.CONSUMING
    ask_to_drain(system.database, asked, by="ada@ops")
    eventually(lambda: only(system).state is WorkerState.DRAINING)
    assert only(system).drain_asked_by == "ada@ops"
    assert drained.wait(30) == 0
    eventually(lambda: only(system).state is WorkerState.ENDED)
    assert system.count("state = 'running'") == 0
    assert system.count("crashes > 0") == 0
    system.start_worker()
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(turns)


def test_a_standby_is_drained_too(system: Any, eventually: Eventually) -> None:
    primary = system.start_worker()
    standby = system.start("worker", "--standby")
    eventually(lambda: standby.says("worker.standing_by"), 30)
    (waiting,) = [row for row in rows(system) if row.pid == standby.pid]
    assert waiting.state is WorkerState.IDLE
    ask_to_drain(system.database, waiting, by="ada@ops")
    assert standby.wait(30) == 0
    assert primary.is_running


def test_a_dead_worker_says_so(system: Any, eventually: Eventually) -> None:
    worker = system.start_worker()
    row = only(system)
    worker.kill()
    eventually(lambda: only(system).state is WorkerState.DEAD)
    with pytest.raises(NotFound, match=rf"process {row.pid} on \S+ is dead; .*nothing to drain"):
        ask_to_drain(system.database, only(system), by="ada@ops")


def test_a_stopped_process_is_silent_and_not_consuming(system: Any, eventually: Eventually) -> None:
    worker = system.start_worker()
    worker.send(signal.SIGSTOP)
    eventually(lambda: only(system).state is WorkerState.SILENT)
    worker.send(signal.SIGCONT)
    eventually(lambda: only(system).state is WorkerState.CONSUMING)


def test_a_worker_is_found_by_the_start_of_its_id(system: Any) -> None:
    system.start_worker()
    row = only(system)
    assert find_worker(system.database, row.shown_id[:20], 2.0).id == row.id
    assert find_worker(system.database, row.id.hex, 2.0).id == row.id
    with pytest.raises(NotFound, match="turnmill workers list"):
        find_worker(system.database, "worker_ffff", 2.0)
    with pytest.raises(InvalidInput, match="not the start of a worker's id"):
        find_worker(system.database, "nobody", 2.0)
