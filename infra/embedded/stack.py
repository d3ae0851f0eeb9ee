"""The whole of Turnmill on one machine: two servers, one migration, and our own processes.

Everything durable is in the data folder, so that a stack that is stopped, or killed, comes back
as it was. While it runs, `stack.json` there tells every other command where things listen. A
database or broker that the environment names is used instead of an embedded one.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import DataFolder, FolderLock
from turnmill.infra.embedded.ports import (
    LOOPBACK,
    PortClaim,
    claim_port,
    is_free,
    is_ours,
    listens,
)
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.embedded.supervisor import ChildEvent, ChildEventKind, Supervisor
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.schemas.channels.configuration import load_configuration
from turnmill.schemas.errors import StackError
from turnmill.schemas.observability.targets import remove_dead_targets
from turnmill.schemas.process.surroundings import PREFIX, without_strangers
from turnmill.schemas.settings import (
    CONFIG_FILE,
    STACK_FILE,
    DeliverySettings,
    WorkerSettings,
)
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS
from turnmill.schemas.turns import Lane
from turnmill.schemas.urls import address, reachable

#: In the order of their start; stopped in reverse, so that a draining worker's readers
#: still find the API.
COMPONENTS = ("api", "relay", "deliver", "worker", "quarantine", "flower")

#: `-P`: whatever lies in the current folder must not be imported.
PROGRAM = (sys.executable, "-P", "-m", "turnmill.producer.cli")

DATABASE_URL, BROKER_URL = f"{PREFIX}DATABASE__URL", f"{PREFIX}BROKER__URL"
_PREFERRED_PORTS = {"api": range(8000, 8020), "flower": range(5555, 5575)}

#: The first start of a worker may have to download and convert its model.
_MODEL_TIMEOUT_S = 3600.0

#: The worker's row appears when its model is loaded; its lock tells it from a dead worker
#: that had the same process id.
_LIVE_WORKER = f"""
SELECT 1 FROM worker_liveness
WHERE pid = %s AND host = %s AND lock_key IN ({HELD_LOCKS})
"""


class Stack:
    """`start`, `wait`, and `request_stop` from a signal handler; or `with Stack(folder)`."""

    def __init__(
        self,
        folder: Path | str,
        *,
        components: Sequence[str] = COMPONENTS,
        environment: Mapping[str, str] | None = None,
        progress: Callable[[str], None] | None = None,
        notify: Callable[[ChildEvent], None] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """`progress` is told each step in words; `notify` is told all that happens to children."""
        self.folder = DataFolder(folder)
        inherited = without_strangers({**os.environ, **(environment or {})})
        self._environment = {**inherited, f"{PREFIX}DATA": str(self.folder.path)}
        self._components = [name for name in COMPONENTS if name in components]
        self._progress = progress
        self._notify = notify
        self._program = program
        self._postgres = None if DATABASE_URL in inherited else EmbeddedPostgres(folder)
        self._valkey = None if BROKER_URL in inherited else EmbeddedValkey(folder)
        self._lock: FolderLock | None = None
        self._ports: dict[str, PortClaim] = {}
        self._supervisor: Supervisor | None = None
        self._stop_requested = False

    def start(self) -> bool:
        """Start everything. True: it is up; False: a stop was requested meanwhile.

        Raises `StackError`, with nothing left running, when it cannot.
        """
        try:
            self._open()
            supervisor = Supervisor(self._children(), self.folder.logs(), notify=self._on_event)
            self._supervisor = supervisor
            if self._stop_requested:
                supervisor.request_stop()
            is_up = supervisor.start()
        except BaseException:
            self.stop()
            raise
        if not is_up:
            self.stop()
        return is_up

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a requested stop is complete; False when the time is over first."""
        if self._supervisor is not None:
            try:
                if not self._supervisor.wait(timeout_s):
                    return False
            finally:
                if self._supervisor.has_ended:
                    self._close()
        return True

    def request_stop(self, *, hurry: bool = False) -> None:
        """Returns at once; safe in signal handlers. `hurry` cuts the worker's drain short."""
        self._stop_requested = True
        if self._supervisor is not None:
            self._supervisor.request_stop(hurry=hurry)

    def stop(self, *, hurry: bool = False) -> None:
        """Stop everything in reverse order; returns when nothing is left."""
        try:
            if self._supervisor is not None:
                self._supervisor.stop(hurry=hurry)
        finally:
            self._close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def database_url(self) -> str:
        if self._postgres is None:
            return self._environment[DATABASE_URL]
        return self._postgres.app_url

    @property
    def broker_url(self) -> str:
        return self._valkey.url if self._valkey else self._environment[BROKER_URL]

    @property
    def api_url(self) -> str:
        return self._url_of("api")

    @property
    def flower_url(self) -> str:
        return self._url_of("flower")

    @property
    def flower_password(self) -> str:
        name = f"{PREFIX}FLOWER__PASSWORD"
        return self._environment.get(name) or self.folder.secret("flower")

    @property
    def settings(self) -> dict[str, object]:
        """What `stack.json` tells other commands; the environment still has the last word."""
        settings: dict[str, object] = {
            "api": {"port": self._ports["api"].port},
            "flower": {"port": self._ports["flower"].port, "password": self.flower_password},
        }
        if engine := {
            name: self._environment[variable]
            for name in ("model", "served_name")
            if (variable := f"{PREFIX}ENGINE__{name.upper()}") in self._environment
        }:
            settings["engine"] = engine
        if self._postgres:
            settings["database"] = {"url": self.database_url}
        if self._valkey:
            settings["broker"] = {"url": self._valkey.url}
        return settings

    def log_of(self, name: str) -> Path:
        return self.folder.path / "logs" / f"{name}.log"

    def pid_of(self, name: str) -> int | None:
        return self._supervisor.pid_of(name) if self._supervisor else None

    @property
    def _servers(self) -> list[EmbeddedServer]:
        return [server for server in (self._postgres, self._valkey) if server is not None]

    def _open(self) -> None:
        self.folder.create()
        self._lock = self.folder.lock("stack")
        try:
            self._open_all()
        except BaseException:
            # Nothing has run yet, so a folder that was made for this start holds nothing.
            self._close()
            self.folder.forget()
            raise

    def _open_all(self) -> None:
        for server in self._servers:
            server.open()
        for name in _PREFERRED_PORTS:
            self._ports[name] = self._claim_port(name)
        content = {"pid": os.getpid(), "settings": self.settings}
        self.folder.write_private(STACK_FILE, json.dumps(content, indent=2))

    def _close(self) -> None:
        """Give everything back. Only the owner of the lock may remove `stack.json`."""
        for server in self._servers:
            server.close()
        while self._ports:
            self._ports.popitem()[1].release()
        if self._lock is not None:
            (self.folder.path / STACK_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _claim_port(self, name: str) -> PortClaim:
        """The port that the environment gives, where 0 is any; or else the same as last time."""
        section = f"{PREFIX}{name.upper()}"
        host, given = self._host_of(name), int(self._environment.get(f"{section}__PORT", 0))
        if not is_ours(host):
            raise StackError(f"{section}__HOST is {host}, which is no address of this machine.")
        if given and not is_free(given, host):
            raise StackError(f"{section}__PORT is {given}, but another program listens there.")
        kept = self.folder.kept_port(name)
        wanted = [given] if given else [*filter(None, [kept]), *_PREFERRED_PORTS[name]]
        claim = claim_port(*wanted, host=host)
        if not given:
            self.folder.keep_port(name, claim.port)
            # Its process reads the environment first.
            self._environment[f"{section}__PORT"] = str(claim.port)
        return claim

    def _host_of(self, name: str) -> str:
        return self._environment.get(f"{PREFIX}{name.upper()}__HOST", LOOPBACK)

    def _url_of(self, name: str) -> str:
        return f"http://{address(reachable(self._host_of(name)), self._ports[name].port)}"

    def _children(self) -> list[Child]:
        servers = [child for server in self._servers for child in server.children()]
        upgrade = self._own("db-upgrade", "the database migration", "db", "upgrade", runs_once=True)
        parts = {
            "api": lambda: self._own(
                "api", "the API", ready=f"{self.api_url}/readyz", ready_timeout_s=60
            ),
            "relay": lambda: self._own("relay", "the relay"),
            "deliver": lambda: self._own(
                "deliver", "the delivery worker", stop_timeout_s=self._drain_s("delivery") + 5
            ),
            "worker": lambda: self._worker("worker", "the worker", {}),
            "quarantine": lambda: self._worker("quarantine", "the quarantine worker", _QUARANTINE),
            "flower": lambda: self._own("flower", "Flower", ready=self._has_flower),
        }
        names = [name for name in self._components if name != "deliver" or self._has_channels()]
        return [*servers, upgrade, *(parts[name]() for name in names)]

    def _has_channels(self) -> bool:
        """Raises `SettingsError` if `turnmill.toml` is wrong."""
        given = self._environment.get(f"{PREFIX}CONFIG")
        path = Path(given) if given else self.folder.path / CONFIG_FILE
        return bool(load_configuration(path if given or path.exists() else None).channels)

    def _drain_s(self, section: str) -> float:
        default = {"worker": WorkerSettings().drain_s, "delivery": DeliverySettings().drain_s}
        return float(self._environment.get(f"{PREFIX}{section.upper()}__DRAIN_S", default[section]))

    def _own(self, name: str, title: str, *words: str, **options: Any) -> Child:
        """One of our processes; its command is its name, unless words are given."""
        command = [*self._program, *(words or (name,))]
        options.setdefault("environment", self._environment)
        return Child(name=name, title=title, command=command, **options)

    def _worker(self, name: str, title: str, overrides: Mapping[str, str]) -> Child:
        return self._own(
            name,
            title,
            "worker",
            environment={**self._environment, **overrides},
            ready=self._is_live_worker,
            ready_timeout_s=_MODEL_TIMEOUT_S,
            stop_timeout_s=self._drain_s("worker") + 5,
        )

    def _is_live_worker(self, pid: int) -> bool:
        try:
            with psycopg.connect(self.database_url, connect_timeout=2) as link:
                row = link.execute(_LIVE_WORKER, (pid, socket.gethostname())).fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None

    def _has_flower(self, pid: int) -> bool:
        return listens(self._ports["flower"].port, reachable(self._host_of("flower")))

    def _on_event(self, event: ChildEvent) -> None:
        if self._progress is not None and event.kind in _STEPS:
            self._progress(f"{_STEPS[event.kind]} {event.child.title}")
        if event.kind in (ChildEventKind.DIED, ChildEventKind.STOPPED):
            remove_dead_targets(self.folder.path)
        if self._notify is not None:
            self._notify(event)


#: Turns that killed their workers run alone.
_QUARANTINE = {
    f"{PREFIX}WORKER__LANES": json.dumps([Lane.QUARANTINE]),
    f"{PREFIX}WORKER__CONCURRENCY": "1",
}
_STEPS = {ChildEventKind.STARTING: "Starting", ChildEventKind.STOPPING: "Stopping"}
