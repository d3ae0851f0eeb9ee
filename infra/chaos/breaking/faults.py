"""Single faults for a live system. Each acts on a server that is in use, and none needs a hook
in what it breaks.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import redis
from psycopg import sql

from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ, rabbitmq_program
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.schemas.observability.management import Refused, manage

_CONTROL_TIMEOUT_S = 60.0
MANAGEMENT_TRIES = 50

_END_SESSIONS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend'
  AND pid <> pg_backend_pid() AND (%(name)s::text IS NULL OR application_name = %(name)s)
"""


def kill_backends(database_url: str, application_name: str | None = None) -> int:
    """End the sessions of a database, all or those of one application; how many there were.

    Raises `psycopg.OperationalError`.
    """
    with psycopg.connect(database_url, connect_timeout=3, autocommit=True) as link:
        row = link.execute(_END_SESSIONS, {"name": application_name}).fetchone()
    return int(row[0]) if row else 0


def lock_table(database_url: str, table: str, seconds: float) -> None:
    """Hold a table's strongest lock, as a migration or a VACUUM FULL does.

    Raises `psycopg.OperationalError`.
    """
    with psycopg.connect(database_url, connect_timeout=3) as link:
        link.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table))
        )
        link.execute("SELECT pg_sleep(%s)", (seconds,))


def forget_workers(database_url: str, model: str) -> int:
    """Delete the rows of live workers, as a restored backup does; how many there were.

    Raises `psycopg.OperationalError`.
    """
    with psycopg.connect(database_url, connect_timeout=3) as link:
        return link.execute("DELETE FROM worker_liveness WHERE model = %s", (model,)).rowcount


def drop_broker_connections(server: EmbeddedServer) -> None:
    """Close every client's connection from the broker's side."""
    if isinstance(server, EmbeddedRabbitMQ):
        # By their user: the list of connections is some seconds old.
        _manage(server, "DELETE", f"connections/username/{urlsplit(server.url).username}")
        return
    with redis.Redis.from_url(server.url) as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def wipe_broker(server: EmbeddedServer, url: str | None = None) -> None:
    """Forget every hint and queue while clients stay connected: FLUSHALL, delete_queue.

    What is exclusive to one connection cannot be deleted by another, and holds no hints.

    `url` names the virtual host of a RabbitMQ; the default one when left out.
    """
    if isinstance(server, EmbeddedRabbitMQ):
        vhost = quote(urlsplit(url or server.url).path[1:] or "/", safe="")
        for queue in _manage(server, "GET", f"queues/{vhost}?columns=name,exclusive"):
            if queue["exclusive"]:
                continue
            _manage(server, "DELETE", f"queues/{vhost}/{quote(queue['name'], safe='')}")
        return
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def restart_empty(server: EmbeddedServer) -> None:
    """Stop the broker, remove all it kept, and start it on the same port."""
    server.stop()
    shutil.rmtree(server.folder.path / server.name)
    server.start()


@contextmanager
def memory_alarm(server: EmbeddedServer) -> Iterator[None]:
    """A broker short of memory: RabbitMQ stops reading from publishers, Valkey refuses writes."""
    if isinstance(server, EmbeddedRabbitMQ):
        control(server, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            yield
        finally:
            control(server, "set_vm_memory_high_watermark", "0.6")
        return
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


@contextmanager
def consumer_timeout(server: EmbeddedRabbitMQ, seconds: float) -> Iterator[None]:
    """RabbitMQ takes an unacknowledged hint for a dead consumer's after so long, and closes its
    channel. Holds for channels opened inside the block.
    """
    before = (_read(server, "consumer_timeout"), _read(server, "channel_tick_interval"))
    milliseconds = str(int(seconds * 1000))
    # It only looks at each tick, by default once in a minute.
    _configure(server, milliseconds, milliseconds)
    try:
        yield
    finally:
        _configure(server, *before)


def _manage(server: EmbeddedRabbitMQ, method: str, path: str) -> Any:
    """One call of RabbitMQ's management API; what is already gone may be deleted again.

    RabbitMQ answers 500 when what it deletes ends by itself meanwhile: then it is asked again.
    """
    tries_left = MANAGEMENT_TRIES
    while True:
        try:
            return manage(server.management_url, method, path, timeout_s=10)
        except Refused as refusal:
            tries_left -= 1
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            if refusal.status != HTTPStatus.INTERNAL_SERVER_ERROR or not tries_left:
                raise
        time.sleep(0.1)


def control(server: EmbeddedRabbitMQ, *words: str) -> str:
    """What `rabbitmqctl` prints for these words."""
    program = rabbitmq_program().with_name("rabbitmqctl")
    result = subprocess.run(
        [str(program), "--quiet", *words],
        env=server.environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=_CONTROL_TIMEOUT_S,
    )
    return result.stdout.strip()


def _read(server: EmbeddedRabbitMQ, name: str) -> str:
    return control(server, "eval", f"element(2, application:get_env(rabbit, {name})).")


def _configure(server: EmbeddedRabbitMQ, timeout: str, tick: str) -> None:
    control(
        server,
        "eval",
        f"application:set_env(rabbit, consumer_timeout, {timeout}), "
        f"application:set_env(rabbit, channel_tick_interval, {tick}).",
    )
