"""The site of a run: servers, and every process of the system several times over.

The processes are supervised as in production: what dies is started again at once.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from turnmill.infra.chaos.breaking.engine import TOKENS_DIR
from turnmill.infra.chaos.breaking.proxy import Proxy
from turnmill.infra.chaos.channels.channels import Channels
from turnmill.infra.chaos.topologies.postgres_pair import PostgresPair
from turnmill.infra.chaos.topologies.rabbitmq_cluster import RabbitMQCluster
from turnmill.infra.chaos.topologies.sentinel import PRIMARY, SentinelValkey
from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.ports import LOOPBACK, PortClaim, claim_port
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.embedded.supervisor import Backoff, Supervisor
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.infra.migrations import upgrade
from turnmill.schemas.turns import Lane

BROKERS: dict[str, type[EmbeddedServer]] = {
    "rabbitmq": EmbeddedRabbitMQ,
    "rabbitmq-cluster": RabbitMQCluster,
    "valkey": EmbeddedValkey,
    "sentinel": SentinelValkey,
}
DATABASES: dict[str, type[EmbeddedPostgres | PostgresPair]] = {
    "postgres": EmbeddedPostgres,
    "postgres-pair": PostgresPair,
}
QUARANTINE = "quarantine"
_PROGRAM = (sys.executable, "-P", "-m", "turnmill.infra.chaos.program")


@dataclass(frozen=True, slots=True)
class Size:
    """How many processes of each kind run, and how they are set."""

    workers: int = 3
    relays: int = 2
    apis: int = 2
    #: Turns that one worker runs at once.
    concurrency: int = 32
    #: Short, so that a paused worker is found out within a run.
    lease_s: float = 4.0
    #: Seconds per token.
    token_s: float = 0.04
    #: `cluster`: all workers consume; `standby`: one does.
    mode: str = "cluster"
    #: Of a run that has channels.
    deliverers: int = 0


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the database and the broker are; the servers themselves, where the run owns them."""

    database_url: str
    broker_url: str
    database: EmbeddedPostgres | PostgresPair | None = None
    broker: EmbeddedServer | None = None


@contextmanager
def open_networks(servers: Servers) -> Iterator[dict[str, Proxy]]:
    """A proxy in front of each server that has one address; a URL with several needs none."""
    urls = {"broker": servers.broker_url, "database": servers.database_url}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Proxy.before(url))
            for name, url in urls.items()
            if not {",", ";"} & set(url)
        }


@contextmanager
def open_servers(folder: Path, broker: str, database: str) -> Iterator[Servers]:
    """Start what is a kind and not a URL, and bring the tables up to date.

    Raises:
        StackError: a server does not start.
    """
    with ExitStack() as stack:
        store = DATABASES[database](folder / "database") if database in DATABASES else None
        queue = BROKERS[broker](folder / "broker") if broker in BROKERS else None
        for server in (store, queue):
            if server is not None:
                # Nobody needs their data any more.
                stack.callback(server.stop, hurry=True)
                server.start()
        servers = Servers(
            store.url if store else database, queue.url if queue else broker, store, queue
        )
        upgrade(servers.database_url)
        yield servers


@dataclass
class Site:
    """The processes of one run. `with` starts them and stops them."""

    folder: Path
    servers: Servers
    model: str
    size: Size
    #: Networks in front of the "broker" and the "database". The second process of each kind is
    #: behind them; the others are not, so that trouble there strikes a part of the site.
    networks: Mapping[str, Proxy] = field(default_factory=dict)
    channels: Channels | None = None

    def __post_init__(self) -> None:
        self.tokens_dir.mkdir(parents=True)
        self._ports: list[PortClaim] = []
        self._supervisor: Supervisor | None = None

    @property
    def tokens_dir(self) -> Path:
        return self.folder / "tokens"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def application_name(self) -> str:
        """What Postgres calls our sessions, so that only those are ended."""
        return self.model

    @property
    def api_urls(self) -> list[str]:
        return [f"http://{LOOPBACK}:{claim.port}" for claim in self._ports]

    @property
    def workers(self) -> list[str]:
        return [f"worker-{number}" for number in range(1, self.size.workers + 1)]

    @property
    def relays(self) -> list[str]:
        return [f"relay-{number}" for number in range(1, self.size.relays + 1)]

    @property
    def apis(self) -> list[str]:
        return [f"api-{number}" for number in range(1, self.size.apis + 1)]

    @property
    def deliverers(self) -> list[str]:
        return [f"deliverer-{number}" for number in range(1, self.size.deliverers + 1)]

    @property
    def names(self) -> list[str]:
        """Every process of the site."""
        return [*self.apis, *self.relays, *self.workers, QUARANTINE, *self.deliverers]

    def pid_of(self, name: str) -> int | None:
        return self._supervisor.pid_of(name) if self._supervisor else None

    def send(self, name: str, number: signal.Signals) -> int | None:
        """Signal a process; its id, or None when it does not run just now."""
        pid = self.pid_of(name)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def __enter__(self) -> "Site":
        self._ports = [claim_port() for _ in range(self.size.apis)]
        self.logs.mkdir(parents=True, exist_ok=True)
        self._supervisor = Supervisor(
            self._children(), self.logs, backoff=lambda: Backoff(first_s=0.1, longest_s=0.5)
        )
        self._supervisor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self._supervisor is not None:
                self._supervisor.stop()
        finally:
            while self._ports:
                self._ports.pop().release()

    def _children(self) -> list[Child]:
        apis = [
            self._child(
                name,
                "api",
                {"TURNMILL_API__PORT": str(claim.port), "TURNMILL_API__STREAM_HEADERS_S": "0.05"},
                ready=f"{url}/readyz",
            )
            for name, claim, url in zip(self.apis, self._ports, self.api_urls, strict=True)
        ]
        relays = [self._child(name, "relay", {}) for name in self.relays]
        workers = [self._child(name, "worker", {}) for name in self.workers]
        lonely = {
            "TURNMILL_WORKER__LANES": f'["{Lane.QUARANTINE}"]',
            "TURNMILL_WORKER__CONCURRENCY": "1",
        }
        deliverers = [self._child(name, "deliver", {}) for name in self.deliverers]
        quarantine = self._child(QUARANTINE, "worker", lonely)
        return [*apis, *relays, *workers, quarantine, *deliverers]

    def _child(
        self, name: str, command: str, overrides: Mapping[str, str], ready: str | None = None
    ) -> Child:
        return Child(
            name=name,
            title=name,
            command=[*_PROGRAM, command],
            environment={**self._environment(), **overrides, **self._way(name)},
            ready=ready,
            stop_timeout_s=15,
        )

    def _way(self, name: str) -> dict[str, str]:
        """The servers as this process reaches them."""
        urls = {"broker": self.servers.broker_url, "database": self.servers.database_url}
        is_behind = name.endswith("-2")
        return {
            f"TURNMILL_{server.upper()}__URL": (
                self.networks[server].url(url) if is_behind and server in self.networks else url
            )
            for server, url in urls.items()
        }

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PGAPPNAME": self.application_name,
            TOKENS_DIR: str(self.tokens_dir),
            "TURNMILL_DATA": str(self.folder),
            "TURNMILL_BROKER__SENTINEL_PRIMARY": PRIMARY,
            "TURNMILL_ENGINE__NAME": "chaos",
            "TURNMILL_ENGINE__SERVED_NAME": self.model,
            "TURNMILL_ENGINE__ECHO_TOKEN_S": str(self.size.token_s),
            "TURNMILL_WORKER__CONCURRENCY": str(self.size.concurrency),
            "TURNMILL_WORKER__LEASE_S": str(self.size.lease_s),
            "TURNMILL_WORKER__DRAIN_S": "5",
            "TURNMILL_WORKER__MODE": self.size.mode,
            "TURNMILL_DELIVERY__LEASE_S": str(self.size.lease_s),
            "TURNMILL_DELIVERY__TIMEOUT_S": str(self.size.lease_s / 2),
            "TURNMILL_DELIVERY__DRAIN_S": "5",
            "TURNMILL_LOG__FORMAT": "json",
            **(self.channels.environment if self.channels else {}),
        }
