"""The relay on real brokers: every hint once, the most urgent first, never more than the window.

No worker runs here; what the broker holds is taken out by the tests.
"""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
import redis
from amqp.exceptions import InternalError
from kombu import Connection
from structlog.testing import capture_logs

from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ, rabbitmq_program
from turnmill.infra.migrations import upgrade
from turnmill.producer.accept import accept, accept_in, accept_many
from turnmill.producer.relay.outbox import NEXT
from turnmill.producer.relay.process import Relay
from turnmill.producer.relay.publisher import Publisher
from turnmill.producer.tenants import ensure_defaults, save_bot
from turnmill.schemas.broker import hint_queues
from turnmill.schemas.errors import BrokerUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.store.fleet.deployment import DEPLOYMENT_ID
from turnmill.schemas.turns import GenerationParams, Lane, Message, Role, TurnRequest

HINTS = f"""
SELECT turn_id, lane, model, NULL AS own_worker_id, {DEPLOYMENT_ID} AS deployment FROM outbox
"""
Eventually = Callable[..., None]


@pytest.fixture
def start_relay() -> Iterator[Callable[[Settings], Relay]]:
    """Relays in threads of this process, stopped when the test ends."""
    with ExitStack() as stack:

        def start(settings: Settings) -> Relay:
            relay = Relay(settings)
            thread = threading.Thread(target=relay.run)
            thread.start()
            stack.callback(thread.join, 30)
            stack.callback(relay.stop)
            return relay

        yield start


def with_relay(system: Any, **changes: Any) -> Settings:
    changed = system.settings.relay.model_copy(update=changes)
    settings: Settings = system.settings.model_copy(update={"relay": changed})
    return settings


def accept_turns(system: Any, count: int, **fields: Any) -> list[UUID]:
    requests = [system.request(f"secret {n}", **fields) for n in range(count)]
    return [turn.turn_id for turn in accept_many(system.database, requests)]


def published_count(system: Any) -> int:
    rows = system.database.run("SELECT count(*) AS n FROM outbox WHERE published_at IS NOT NULL")
    return int(rows[0].n)


def unpublished_count(system: Any) -> int:
    rows = system.database.run("SELECT count(*) AS n FROM outbox WHERE published_at IS NULL")
    return int(rows[0].n)


def take_hints(
    system: Any, lane: Lane = Lane.INTERACTIVE, model: str | None = None
) -> list[dict[str, Any]]:
    """All messages of a queue, in order, taken out of it; none while it is being declared.

    RabbitMQ tells the second who declares a new quorum queue that it is there before it has a
    process, and closes the connection of who then reads it.
    """
    model = model or system.settings.engine.model_name
    (queue,) = hint_queues(system.settings.broker, [lane], model, system.deployment)
    name = queue.name
    taken: list[dict[str, Any]] = []
    with Connection(system.settings.broker.url.get_secret_value()) as connection:
        channel = connection.channel()
        queue(channel).declare()
        try:
            while (message := channel.basic_get(name, no_ack=True)) is not None:
                taken.append({"headers": message.headers, "body": message.body})
        except InternalError as error:
            if taken or "noproc" not in str(error):
                raise
            return []
        channel.close()
    return taken


def declare_queues(system: Any) -> None:
    """Before a relay that must not find them half declared, and publish what it sent again."""
    for lane in (Lane.INTERACTIVE, Lane.BATCH):
        assert take_hints(system, lane) == []


def turn_ids(hints: list[dict[str, Any]]) -> list[UUID]:
    bodies = [json.loads(hint["body"]) for hint in hints]
    return [UUID(kwargs["turn_id"]) for _, kwargs, _ in bodies]


def test_what_is_accepted_is_published_at_once_in_the_order_of_acceptance(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    start_relay(with_relay(system, sweep_s=600.0, batch_size=1))
    first = accept_turns(system, 1)
    eventually(lambda: published_count(system) == 1)
    rest = accept_turns(system, 9)
    eventually(lambda: published_count(system) == 10)
    hints: list[UUID] = []
    eventually(lambda: hints.extend(turn_ids(take_hints(system))) or len(hints) == 10)
    assert hints == first + rest


def test_what_is_published_together_is_in_the_order_of_acceptance_and_deadlines_first(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    patient = accept_turns(system, 60)
    hasty = accept_turns(system, 3, timeout_s=600)
    declare_queues(system)
    start_relay(with_relay(system, publishers=1))
    eventually(lambda: published_count(system) == 63)
    hints: list[UUID] = []
    eventually(lambda: hints.extend(turn_ids(take_hints(system))) or len(hints) == 63)
    assert hints == hasty + patient


def test_a_hint_holds_ids_and_never_what_was_said(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    (turn_id,) = accept_turns(system, 1)
    declare_queues(system)
    start_relay(system.settings)
    eventually(lambda: published_count(system) == 1)
    hints: list[dict[str, Any]] = []
    eventually(lambda: hints.extend(take_hints(system)) or hints)
    assert b"secret" not in bytes(str(hints), "utf-8")
    _, kwargs, _ = json.loads(hints[0]["body"])
    model = system.settings.engine.model_name
    assert kwargs == {"turn_id": turn_id.hex, "lane": "interactive", "model": model}


def test_the_broker_holds_a_window_of_hints_and_postgres_the_rest(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    accept_turns(system, 30)
    batch = accept_turns(system, 5, lane=Lane.BATCH)
    declare_queues(system)
    start_relay(with_relay(system, window=8, batch_size=3, publishers=2))
    eventually(lambda: published_count(system) == 8 + 5)
    hints: list[UUID] = []
    eventually(lambda: hints.extend(turn_ids(take_hints(system, Lane.BATCH))) or len(hints) == 5)
    assert sorted(hints) == sorted(batch), "each lane has a window of its own"
    hints.clear()
    eventually(lambda: hints.extend(turn_ids(take_hints(system))) or len(hints) == 8)
    assert unpublished_count(system) == 22, "a hint counts until its turn is claimed"
    system.database.run("DELETE FROM outbox WHERE turn_id = ANY(%s)", (hints[:3],))
    eventually(lambda: unpublished_count(system) == 19)
    more: list[UUID] = []
    eventually(lambda: more.extend(turn_ids(take_hints(system))) or len(more) == 3)
    assert not set(more) & set(hints)


def test_two_relays_publish_each_hint_once(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    settings = with_relay(system, batch_size=5, publishers=2)
    start_relay(settings)
    start_relay(settings)
    accepted = [turn_id for _ in range(20) for turn_id in accept_turns(system, 10)]
    eventually(lambda: published_count(system) == 200)
    hints: list[UUID] = []
    eventually(lambda: hints.extend(turn_ids(take_hints(system))) or len(hints) >= 200)
    assert sorted(hints) == sorted(accepted)


def test_the_nearest_deadline_goes_first(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    patient = accept_turns(system, 3)
    later, sooner = accept_turns(system, 1, timeout_s=500), accept_turns(system, 1, timeout_s=50)
    start_relay(with_relay(system, batch_size=1))
    eventually(lambda: published_count(system) == 5)
    hints: list[UUID] = []
    eventually(lambda: hints.extend(turn_ids(take_hints(system))) or len(hints) == 5)
    assert hints == sooner + later + patient


def test_a_hint_that_is_not_due_yet_stays(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    snoozed, due = accept_turns(system, 2)
    system.database.run(
        "UPDATE outbox SET is_immediate = false, due_at = clock_timestamp() + interval '25 s' "
        "WHERE turn_id = %s",
        (snoozed,),
    )
    start_relay(with_relay(system, sweep_s=0.05))
    eventually(lambda: published_count(system) == 1)
    assert unpublished_count(system) == 1
    system.database.run(
        "UPDATE outbox SET due_at = clock_timestamp() WHERE turn_id = %s", (snoozed,)
    )
    eventually(lambda: published_count(system) == 2)
    hints: list[UUID] = []
    eventually(lambda: hints.extend(turn_ids(take_hints(system))) or len(hints) == 2)
    assert hints == [due, snoozed]


def test_a_hint_is_published_when_it_is_due_and_not_at_the_next_sweep(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    start_relay(with_relay(system, sweep_s=600))
    accept_turns(system, 1)
    eventually(lambda: published_count(system) == 1)
    with system.database.cursor() as cursor:
        accept_in(cursor, [system.request("later")], delay_s=1.0)
    assert unpublished_count(system) == 1
    eventually(lambda: published_count(system) == 2, 30)
    (row,) = system.database.run(
        "SELECT min(published_at - due_at) AS early FROM outbox WHERE NOT is_immediate"
    )
    assert row.early.total_seconds() >= 0


def test_turns_of_a_model_that_its_bot_has_left_are_still_published(
    system: Any, start_relay: Callable[..., Relay], eventually: Eventually
) -> None:
    accepted = accept_turns(system, 3)
    old = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, old, "new-model", "", GenerationParams())
    accepted_later = accept_turns(system, 2)
    hints: dict[str, list[UUID]] = {old: [], "new-model": []}
    for model in hints:
        # RabbitMQ may not find a quorum queue that two connections declare at the same moment.
        assert take_hints(system, model=model) == []
    start_relay(system.settings)

    def all_are_there() -> bool:
        if published_count(system) < 5:
            return False
        for model, ids in hints.items():
            ids.extend(turn_ids(take_hints(system, model=model)))
        return sum(map(len, hints.values())) == 5

    eventually(all_are_there)
    assert sorted(hints[old]) == sorted(accepted)
    assert sorted(hints["new-model"]) == sorted(accepted_later)


def test_a_relay_that_starts_before_the_tables_exist_works_once_they_do(
    empty_database_url: str,
    valkey_url: str,
    start_relay: Callable[..., Relay],
    eventually: Eventually,
) -> None:
    settings = load_settings(
        database={"url": empty_database_url},
        broker={"url": valkey_url},
        engine={"name": "echo"},
        relay={"sweep_s": 0.05},
    )
    database = Database(settings.database)
    with capture_logs() as lines:
        start_relay(settings)
        eventually(lambda: "turnmill db upgrade" in str(lines))
    upgrade(empty_database_url)
    tenant_id = ensure_defaults(database, settings)
    accept(
        database,
        TurnRequest(
            tenant_id=tenant_id,
            bot=settings.engine.model_name,
            messages=(Message(role=Role.USER, content="hello"),),
        ),
    )
    eventually(lambda: database.run("SELECT 1 FROM outbox WHERE published_at IS NOT NULL"))
    database.close()


def test_a_publisher_connects_anew_after_its_connection_was_lost(system: Any) -> None:
    accept_turns(system, 2)
    rows = system.database.run(HINTS)
    publisher = Publisher(system.settings)
    try:
        publisher.publish(rows[:1])
        publisher.close()
        publisher.publish(rows[1:])
    finally:
        publisher.close()
    assert len(take_hints(system)) == 2


def test_a_broker_that_holds_its_confirms_back_refuses_nobody_and_gets_its_hints_later(
    make_system: Callable[..., Any],
    rabbitmq: EmbeddedRabbitMQ,
    rabbitmq_vhost_url: str,
    database_url: str,
    start_relay: Callable[..., Relay],
    eventually: Eventually,
) -> None:
    """A memory alarm: RabbitMQ stops reading from whoever publishes, without a word."""
    system = make_system(database_url, rabbitmq_vhost_url)
    start_relay(system.settings)
    accept_turns(system, 1)
    eventually(lambda: published_count(system) == 1)
    set_memory_limit(rabbitmq, "absolute", "1MB")
    try:
        with capture_logs() as lines:
            accepted = accept_turns(system, 5)
            eventually(lambda: "relay.stalled" in str(lines), 30)
            assert "rabbitmq-diagnostics alarms" in str(lines)
    finally:
        set_memory_limit(rabbitmq, "0.6")
    assert system.count("state = 'queued'") == 6
    eventually(lambda: published_count(system) == 6, 30)
    hints: set[UUID] = set()
    eventually(lambda: hints.update(turn_ids(take_hints(system))) or hints >= set(accepted), 30)


def test_a_valkey_without_memory_is_quoted(
    make_system: Callable[..., Any], valkey_url: str, database_url: str
) -> None:
    system = make_system(database_url, valkey_url)
    accept_turns(system, 1)
    relay = Relay(system.settings)
    publisher = relay._free.get()
    rows = relay._take(publisher)
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(BrokerUnavailable, match=r"OutOfMemoryError.*maxmemory"):
                publisher.publish(rows)
        finally:
            client.config_set("maxmemory", 0)
    publisher.close()
    relay._database.close()


def set_memory_limit(server: EmbeddedRabbitMQ, *limit: str) -> None:
    program = rabbitmq_program().with_name("rabbitmqctl")
    subprocess.run(
        [str(program), "set_vm_memory_high_watermark", *limit],
        env=server.environment(),
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_a_relay_has_its_statements_planned_once_and_by_indexes(system: Any) -> None:
    accept_turns(system, 1)
    relay = Relay(system.settings)
    publisher = relay._free.get()
    for _ in range(8):  # psycopg prepares a statement that it has executed five times
        relay._take(publisher)
    (planned,) = relay._database.run(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
        "WHERE statement LIKE '%marked AS%'"
    )
    assert planned.generic_plans > 0
    assert planned.custom_plans == 0
    lines = relay._database.run(f"EXPLAIN {NEXT}", {"lanes": ["interactive", "batch"]})
    assert not [line for (line,) in lines if "Seq Scan on outbox" in line]
    relay._database.close()
    publisher.close()
