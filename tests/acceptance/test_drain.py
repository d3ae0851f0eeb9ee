"""What a stopping worker promises: it ends in time, and nothing it had begun runs twice.

Its turns last half a minute, so it has to hand them back.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from turnmill.producer.accept import accept_many
from turnmill.producer.turns import read_turn
from turnmill.schemas.broker import hint_queues
from turnmill.schemas.store.fleet.deployment import Deployment
from turnmill.schemas.turns import Lane, TurnState
from turnmill.workers.consumer.app import create_app

Eventually = Callable[..., None]

TURN_COUNT = 8
WORDS, WORD_S = 240, 0.125
DRAIN_S = 3.0
#: From the deadline to the end of the process.
END_S = 2.0
#: From the end of the attempt that handed a turn back to the start of the next.
RESTART_S = 1.0

OVERLAPPING = """
SELECT 1 FROM attempts a JOIN attempts b ON a.turn_id = b.turn_id AND a.number < b.number
WHERE a.ended_at IS NULL OR b.started_at < a.ended_at
"""
HAND_BACKS = """
SELECT extract(epoch FROM a.ended_at - to_timestamp(%s))::float AS after_s
FROM attempts a WHERE a.outcome = 'handed_back'
"""
RESTARTS = """
SELECT extract(epoch FROM b.started_at - a.ended_at)::float AS after_s
FROM attempts a JOIN attempts b ON b.turn_id = a.turn_id AND b.number = a.number + 1
"""


def slack_s() -> float:
    """None on a machine that has the time; enough on one that is busy with other things."""
    return 0.0 if os.getloadavg()[0] <= (os.cpu_count() or 1) else 10.0


def start_turns(system: Any, eventually: Eventually, text: str) -> list[Any]:
    accepted = accept_many(system.database, [system.request(text) for _ in range(TURN_COUNT)])
    eventually(lambda: system.count("state = 'running'") == TURN_COUNT)
    return accepted


def shown_texts(system: Any) -> dict[Any, str]:
    rows = system.database.run(
        "SELECT turn_id, string_agg(text, '' ORDER BY position) AS text FROM chunks GROUP BY 1"
    )
    return {row.turn_id: row.text for row in rows}


def test_a_stopping_worker_ends_in_time_and_its_turns_go_on_elsewhere(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    stopping = system.start_worker(
        TURNMILL_WORKER__DRAIN_S=str(DRAIN_S), TURNMILL_ENGINE__ECHO_TOKEN_S=str(WORD_S)
    )
    accepted = start_turns(system, eventually, f"[[tokens={WORDS}]]")
    system.start_worker()
    eventually(lambda: len(shown_texts(system)) == TURN_COUNT)
    shown = shown_texts(system)
    stopped_at, stopped_clock = time.monotonic(), time.time()
    stopping.send(signal.SIGTERM)
    assert stopping.wait(60) == 0
    limit_s = DRAIN_S + END_S + slack_s()
    assert time.monotonic() - stopped_at <= limit_s
    system.wait_until_settled()
    hand_backs = system.database.run(HAND_BACKS, (stopped_clock,))
    assert len(hand_backs) == TURN_COUNT
    assert max(row.after_s for row in hand_backs) <= limit_s
    restarts = system.database.run(RESTARTS)
    assert len(restarts) == TURN_COUNT
    assert max(row.after_s for row in restarts) <= RESTART_S + slack_s()
    assert system.database.run(OVERLAPPING) == []
    assert system.count("attempt = 2 AND failures = 0 AND crashes = 0") == TURN_COUNT
    words = " ".join(f"w{number}" for number in range(1, WORDS + 1))
    for turn in accepted:
        reply = read_turn(system.database, system.tenant_id, turn.turn_id).reply
        assert reply is not None
        assert reply.content == words
        assert reply.content.startswith(shown[turn.turn_id])
        assert reply.usage.completion_tokens == WORDS


def test_a_drain_longer_than_the_heartbeat_timeout_is_not_redelivered(
    make_system: Callable[..., Any], database_url: str, rabbitmq_vhost_url: str,
    eventually: Eventually,
) -> None:  # fmt: skip
    """The broker closes a connection after two heartbeats, and gives its hints to others."""
    system = make_system(database_url, rabbitmq_vhost_url)
    system.start("relay")
    stopping = system.start_worker(TURNMILL_BROKER__HEARTBEAT_S="2", TURNMILL_WORKER__DRAIN_S="30")
    accepted = start_turns(system, eventually, "[[wait=7]] finish me")
    stopping.send(signal.SIGTERM)
    while stopping.is_running:
        assert hints_waiting(system) == 0
        time.sleep(0.1)
    assert stopping.wait(1) == 0
    assert hints_waiting(system) == 0, "each was acknowledged"
    assert {
        read_turn(system.database, system.tenant_id, turn.turn_id).state for turn in accepted
    } == {TurnState.COMPLETED}
    assert system.count("attempt = 1") == TURN_COUNT


def hints_waiting(system: Any) -> int:
    settings = system.settings
    model = settings.engine.model_name
    (queue,) = hint_queues(settings.broker, [Lane.INTERACTIVE], model, system.deployment)
    with create_app(settings, Deployment(system.deployment)).connection_for_read() as connection:
        return int(queue(connection.channel()).queue_declare(passive=True).message_count)


@pytest.mark.parametrize("broker", ["rabbitmq", "valkey"])
def test_a_worker_ends_in_time_though_its_broker_does_not_answer(
    broker: str,
    request: pytest.FixtureRequest,
    make_system: Callable[..., Any],
    database_url: str,
    eventually: Eventually,
) -> None:
    server = request.getfixturevalue(broker)
    url = request.getfixturevalue("rabbitmq_vhost_url" if broker == "rabbitmq" else "valkey_url")
    system = make_system(database_url, url)
    system.start("relay")
    stopping = system.start_worker(TURNMILL_WORKER__DRAIN_S="0.5")
    start_turns(system, eventually, "[[wait=30]]")
    with paused(server.pid):
        stopped_at = time.monotonic()
        stopping.send(signal.SIGTERM)
        assert stopping.wait(60) == 0
        assert time.monotonic() - stopped_at <= 0.5 + END_S + slack_s()
    assert system.count("state = 'queued' AND failures = 0 AND crashes = 0") == TURN_COUNT


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """A server that keeps its connections and says nothing."""
    server = psutil.Process(pid)
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()
