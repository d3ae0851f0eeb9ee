"""The faults of a storm. Each breaks one thing on a running site and mends what must be mended.

An action returns what it hit; it may take as long as the thing stays broken, for several
actions run at the same time. A new fault is one function and one line in `ACTIONS`.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import psutil
import psycopg

from turnmill.infra.chaos.breaking.clock import STEP
from turnmill.infra.chaos.breaking.engine import CHILD, away_switch
from turnmill.infra.chaos.breaking.faults import (
    drop_broker_connections,
    forget_workers,
    kill_backends,
    lock_table,
    memory_alarm,
    wipe_broker,
)
from turnmill.infra.chaos.breaking.foreign import publish_foreign
from turnmill.infra.chaos.breaking.proxy import Proxy
from turnmill.infra.chaos.site import Site
from turnmill.infra.chaos.topologies.postgres_pair import PostgresPair
from turnmill.infra.chaos.topologies.rabbitmq_cluster import RabbitMQCluster
from turnmill.infra.chaos.topologies.sentinel import SentinelValkey
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.routes import queue_name
from turnmill.schemas.settings import DatabaseSettings, SecretUrl
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.schemas.turns import Lane

#: A paused process is paused this much longer than a lease.
_PAUSE_S = (0.5, 3.0)
_OUTAGE_S = 60.0
#: How long engines are away: longer than the attempts of a turn with their pauses.
_AWAY_S = (10.0, 30.0)
#: How long a channel's platform is out of order: deliveries fail several times.
_OUT_S = (5.0, 15.0)
_KILLS = 5
#: Messages that are not ours, in one strike.
_FOREIGN = 40
_LOCK_S = 20.0
_TABLES = ("turns", "attempts", "outbox", "worker_liveness")
#: What an operator's tool may take to be sure that a PostgreSQL primary is gone.
_DECISION_S = 1.0
#: Longer than a lease, so that a silent network costs turns.
_NETWORK_S = (1.0, 8.0)

_PRIMARY = """
SELECT pid FROM worker_liveness
WHERE model = %s AND is_consuming AND lanes <> ARRAY[%s] ORDER BY seen_at DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Action:
    strike: Callable[[Site, random.Random], str]
    #: How often it is drawn, in proportion to the others; 0: only by a scenario's script.
    weight: float
    #: What the run must own or have for it; "any": nothing.
    needs: str = "any"
    #: Nothing can work while it lasts: no other fault is begun meanwhile.
    stops_all: bool = False


def available_actions(site: Site) -> dict[str, Action]:
    """The actions that this site can bear: servers given as URLs are not ours to kill."""
    broker, database = site.servers.broker, site.servers.database
    has = {
        "any": True,
        "database": isinstance(database, EmbeddedPostgres),
        "broker": isinstance(broker, EmbeddedRabbitMQ | EmbeddedValkey),
        "topology": isinstance(database, PostgresPair)
        or isinstance(broker, RabbitMQCluster | SentinelValkey),
        "networks": bool(site.networks),
        "channels": site.channels is not None,
    }
    return {name: action for name, action in ACTIONS.items() if has[action.needs]}


def _signalled(kind: str, number: signal.Signals) -> Callable[[Site, random.Random], str]:
    def strike(site: Site, chance: random.Random) -> str:
        name = _any_of(site, kind, chance)
        site.send(name, number)
        return name

    return strike


def _paused(kind: str) -> Callable[[Site, random.Random], str]:
    """SIGSTOP until after the lease: to everybody else the process looks dead, and is not."""

    def strike(site: Site, chance: random.Random) -> str:
        name = _any_of(site, kind, chance)
        pid = site.send(name, signal.SIGSTOP)
        time.sleep(site.size.lease_s + chance.uniform(*_PAUSE_S))
        # Unless something has killed it meanwhile, and its successor runs.
        if pid is not None and site.pid_of(name) == pid:
            site.send(name, signal.SIGCONT)
        return name

    return strike


def _any_of(site: Site, kind: str, chance: random.Random) -> str:
    names: list[str] = getattr(site, kind)
    return chance.choice(names)


def _end_sessions(site: Site, chance: random.Random) -> str:
    """Every connection of ours to Postgres, liveness locks and all."""
    kill_backends(site.servers.database_url, site.application_name)
    return "all sessions"


def _drop_broker_connections(site: Site, chance: random.Random) -> str:
    drop_broker_connections(_broker(site))
    return "all connections"


def _wipe_broker(site: Site, chance: random.Random) -> str:
    wipe_broker(_broker(site))
    return _broker(site).name


def _alarm_broker(site: Site, chance: random.Random) -> str:
    with memory_alarm(_broker(site)):
        time.sleep(chance.uniform(*_NETWORK_S))
    return _broker(site).name


def _cut_off(proxy: Proxy, chance: random.Random) -> None:
    proxy.refuse()
    proxy.reset()


def _network(trouble: Callable[[Proxy, random.Random], None]) -> Action:
    """Trouble on one of the networks that some processes are behind, and then none."""

    def strike(site: Site, chance: random.Random) -> str:
        name = chance.choice(sorted(site.networks))
        proxy = site.networks[name]
        trouble(proxy, chance)
        time.sleep(chance.uniform(*_NETWORK_S))
        proxy.heal()
        return f"network to the {name}"

    return Action(strike, 1, needs="networks")


def _kill_database(site: Site, chance: random.Random) -> str:
    """Its supervisor starts it again, after a moment."""
    assert isinstance(site.servers.database, EmbeddedPostgres)
    _kill(site.servers.database.pid)
    return "postgres"


def _queue(site: Site, lane: Lane) -> str:
    settings = DatabaseSettings(url=SecretUrl(site.servers.database_url))
    with closing(Database(settings)) as database:
        return queue_name(lane, site.model, read_deployment(database).id)


def _fail_over(site: Site, chance: random.Random) -> str:
    """Kill what leads, where something else can take its place."""
    broker, database = site.servers.broker, site.servers.database
    if isinstance(broker, RabbitMQCluster):
        leader = broker.leader_of(_queue(site, Lane.BATCH))
        broker.kill_node(leader)
        return f"RabbitMQ node {leader}"
    if isinstance(broker, SentinelValkey):
        broker.kill_primary()
        return "Valkey primary"
    assert isinstance(database, PostgresPair)
    database.kill_primary()
    time.sleep(_DECISION_S)
    database.promote()
    return "PostgreSQL primary"


def _kill_broker(site: Site, chance: random.Random) -> str:
    _kill(_broker(site).pid)
    return _broker(site).name


def _kill_primary(site: Site, chance: random.Random) -> str:
    """The one worker that consumes, where the others stand by."""
    with psycopg.connect(site.servers.database_url, connect_timeout=3) as link:
        row = link.execute(_PRIMARY, (site.model, Lane.QUARANTINE)).fetchone()
    assert row is not None, "nobody consumes"
    os.kill(row[0], signal.SIGKILL)
    return "primary"


def _stop_broker(site: Site, chance: random.Random) -> str:
    """A minute without it."""
    _broker(site).stop()
    time.sleep(_OUTAGE_S)
    _broker(site).start()
    return _broker(site).name


def _broker(site: Site) -> EmbeddedServer:
    assert site.servers.broker is not None
    return site.servers.broker


def _kill(pid: int | None) -> None:
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def _take_engine_away(site: Site, chance: random.Random) -> str:
    """All engines at once, as when the one server that they ask restarts with its model."""
    switch = away_switch(site.tokens_dir)
    switch.touch()
    time.sleep(chance.uniform(*_AWAY_S))
    switch.unlink(missing_ok=True)
    return "all engines"


def _kill_engine(site: Site, chance: random.Random) -> str:
    """The engine's process, not the worker's."""
    name = _any_of(site, "workers", chance)
    worker = psutil.Process(site.pid_of(name))
    for child in worker.children():
        if child.name() == CHILD:
            child.kill()
    return name


def _kill_all(site: Site, chance: random.Random) -> str:
    """Everything that is ours, five times: what a machine does that reboots in a loop."""
    for _ in range(_KILLS):
        for name in site.names:
            site.send(name, signal.SIGKILL)
        time.sleep(site.size.lease_s + chance.uniform(*_PAUSE_S))
    return f"all processes, {_KILLS} times"


def _platform_outage(site: Site, chance: random.Random) -> str:
    assert site.channels is not None
    with site.channels.platform.outage():
        time.sleep(chance.uniform(*_OUT_S))
    return "the platform"


def _publish_foreign(site: Site, chance: random.Random) -> str:
    queue = _queue(site, chance.choice((Lane.INTERACTIVE, Lane.BATCH)))
    publish_foreign(site.servers.broker_url, queue, _FOREIGN, chance)
    return queue


def _forget_workers(site: Site, chance: random.Random) -> str:
    return f"{forget_workers(site.servers.database_url, site.model)} workers"


def _lock_table(site: Site, chance: random.Random) -> str:
    table = chance.choice(_TABLES)
    lock_table(site.servers.database_url, table, _LOCK_S)
    return table


ACTIONS: dict[str, Action] = {
    "kill-worker": Action(_signalled("workers", signal.SIGKILL), 8),
    "pause-worker": Action(_paused("workers"), 3),
    "drain-worker": Action(_signalled("workers", signal.SIGTERM), 2),
    "kill-relay": Action(_signalled("relays", signal.SIGKILL), 2),
    "pause-relay": Action(_paused("relays"), 1),
    "kill-api": Action(_signalled("apis", signal.SIGKILL), 1),
    "drain-api": Action(_signalled("apis", signal.SIGTERM), 1),
    "end-sessions": Action(_end_sessions, 2),
    "kill-database": Action(_kill_database, 0.5, needs="database"),
    "kill-broker": Action(_kill_broker, 0.5, needs="broker"),
    "wipe-broker": Action(_wipe_broker, 1, needs="broker"),
    "alarm-broker": Action(_alarm_broker, 1, needs="broker"),
    "drop-connections": Action(_drop_broker_connections, 2, needs="broker"),
    "delay-network": _network(lambda proxy, chance: proxy.delay(chance.uniform(0.02, 0.3), 0.1)),
    "reset-network": _network(lambda proxy, chance: proxy.reset()),
    "refuse-network": _network(_cut_off),
    "silence-network": _network(lambda proxy, chance: proxy.half_open()),
    "step-clock": Action(_signalled("names", STEP), 2),
    "forget-workers": Action(_forget_workers, 1),
    "engine-away": Action(_take_engine_away, 0.5, stops_all=True),
    "kill-engine": Action(_kill_engine, 2),
    "kill-all": Action(_kill_all, 0.25, stops_all=True),
    "foreign-messages": Action(_publish_foreign, 1),
    "lock-table": Action(_lock_table, 0.5, stops_all=True),
    "kill-deliverer": Action(_signalled("deliverers", signal.SIGKILL), 8, needs="channels"),
    "pause-deliverer": Action(_paused("deliverers"), 3, needs="channels"),
    "drain-deliverer": Action(_signalled("deliverers", signal.SIGTERM), 2, needs="channels"),
    "platform-outage": Action(_platform_outage, 2, needs="channels"),
    "fail-over": Action(_fail_over, 0, needs="topology"),
    "kill-primary": Action(_kill_primary, 0),
    "stop-broker": Action(_stop_broker, 0, needs="broker", stops_all=True),
}
