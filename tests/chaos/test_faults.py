"""Faults on a live system: connections cut, sessions ended, brokers wiped, hints held too long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turnmill.infra.chaos.breaking.faults import (
    consumer_timeout,
    drop_broker_connections,
    kill_backends,
    memory_alarm,
    restart_empty,
    wipe_broker,
)
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.producer.accept import accept_many
from turnmill.schemas.turns import AcceptedTurn, Lane

Eventually = Callable[..., None]


@pytest.fixture
def server(request: pytest.FixtureRequest, system: Any) -> EmbeddedServer:
    """The broker that the system is on."""
    is_amqp = system.settings.broker.is_amqp
    broker: EmbeddedServer = request.getfixturevalue("rabbitmq" if is_amqp else "valkey")
    return broker


def accept_turns(system: Any, count: int, text: str) -> list[AcceptedTurn]:
    return accept_many(
        system.database, [system.request(f"{text} {n}", lane=Lane.BATCH) for n in range(count)]
    )


def test_a_wiped_broker_gets_every_hint_again_and_is_consumed_again(
    system: Any, server: EmbeddedServer, eventually: Eventually
) -> None:
    system.start("relay")
    system.start_worker()
    accepted = accept_turns(system, 40, "[[wait=0.5]] before")
    eventually(lambda: system.count("state = 'running'") == 8)
    wipe_broker(server, system.settings.broker.url.get_secret_value())
    system.wait_until_settled()
    wipe_broker(server, system.settings.broker.url.get_secret_value())
    accepted += accept_turns(system, 8, "after")
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)


def test_connections_cut_at_the_servers_under_load_lose_and_double_nothing(
    system: Any, server: EmbeddedServer, eventually: Eventually
) -> None:
    system.start("relay")
    for _ in range(2):
        system.start_worker()
    accepted = []
    for number in range(4):
        accepted += accept_turns(system, 30, f"[[wait=0.1]] round {number}")
        eventually(lambda at=number: system.count("state = 'completed'") > 30 * at)
        if number % 2:
            assert kill_backends(system.settings.database.url.get_secret_value()) > 0
            eventually(system.has_database)
        else:
            drop_broker_connections(server)
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)


def test_a_broker_restarted_empty_and_short_of_memory_gets_its_hints_in_the_end(
    make_system: Callable[..., Any], database_url: str, server_folder: Path, eventually: Eventually
) -> None:
    with EmbeddedValkey(server_folder) as valkey:
        system = make_system(database_url, valkey.url)
        system.start("relay")
        system.start_worker()
        accepted = accept_turns(system, 40, "[[wait=0.5]] before")
        eventually(lambda: system.count("state = 'running'") == 8)
        restart_empty(valkey)
        system.wait_until_settled()
        with memory_alarm(valkey):
            accepted += accept_turns(system, 4, "short of memory")
        system.wait_until_settled()
        system.assert_answered_once_and_in_order(accepted)


def test_a_worker_consumes_on_after_rabbitmqs_consumer_timeout(
    make_system: Callable[..., Any],
    database_url: str,
    rabbitmq: EmbeddedRabbitMQ,
    rabbitmq_vhost_url: str,
    eventually: Eventually,
) -> None:
    system = make_system(database_url, rabbitmq_vhost_url)
    with consumer_timeout(rabbitmq, 1):
        system.start("relay")
        worker = system.start_worker()
        accepted = accept_turns(system, 10, "[[wait=3]] longer than the timeout")
        eventually(lambda: worker.says("PRECONDITION_FAILED"), 30)
        accepted += accept_turns(system, 4, "after")
        system.wait_until_settled()
    assert worker.is_running
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("attempt > 1") == 0
