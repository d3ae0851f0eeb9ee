"""A PostgreSQL primary and its synchronous standby, both out of the embedded wheel.

Nothing promotes a standby by itself: an operator's tool does, and here the caller does. Every
commit waits for both, so a promotion loses nothing that was promised.

https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION
"""

import json
import os
import signal
import time
from pathlib import Path

import psycopg

from turnmill.infra.embedded.folder import SECRETS_FILE
from turnmill.infra.embedded.ports import LOOPBACK
from turnmill.infra.embedded.postgres import DATABASE, USER, EmbeddedPostgres
from turnmill.schemas.errors import StackError

_NAME = "turnmill_standby"
_ATTACH_TIMEOUT_S = 30.0
_IS_SYNCHRONOUS = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"


class _Standby(EmbeddedPostgres):
    """A copy of a primary that follows it until it is promoted."""

    def __init__(self, folder: Path, primary: EmbeddedPostgres) -> None:
        # A standby gives its cluster's name to the primary.
        super().__init__(folder, settings={"cluster_name": _NAME})
        self._primary = primary
        primary.folder.create()
        self.folder.create()
        secrets = {self.name: primary.folder.secret(self.name)}
        self.folder.write_private(SECRETS_FILE, json.dumps(secrets))

    def _create(self, target: Path) -> None:
        source = ["-h", LOOPBACK, "-p", str(self._primary.port), "-U", USER]
        options = ["-D", str(target), "-R", "-X", "stream", "-C", "-S", _NAME, "-c", "fast"]
        password = self.folder.secret(self.name)
        self._run(["pg_basebackup", *source, *options], PGPASSWORD=password)

    def _has_database(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class PostgresPair:
    """`url` names both and leads to the one that takes writes."""

    name = "postgres-pair"

    def __init__(self, folder: Path) -> None:
        self.primary = EmbeddedPostgres(folder / "primary")
        self.standby = _Standby(folder / "standby", self.primary)

    @property
    def url(self) -> str:
        password = self.primary.folder.secret(self.primary.name)
        hosts = ",".join(f"{LOOPBACK}:{port}" for port in self._ports)
        return f"postgresql://{USER}:{password}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    def start(self) -> None:
        self.primary.start()
        self.standby.start()
        self._ports = [self.primary.port, self.standby.port]
        with psycopg.connect(self.primary.url, autocommit=True) as link:
            link.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{_NAME}'")
            link.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + _ATTACH_TIMEOUT_S
            while link.execute(_IS_SYNCHRONOUS).fetchone() is None:
                if time.monotonic() > deadline:
                    raise StackError("The standby does not follow its primary.")
                time.sleep(0.05)

    def stop(self, *, hurry: bool = False) -> None:
        self.standby.stop(hurry=hurry)
        self.primary.stop(hurry=hurry)

    def kill_primary(self) -> None:
        """`kill -9`, and nobody starts it again: two primaries would be worse than none."""
        if (pid := self.primary.pid) is not None:
            os.kill(pid, signal.SIGKILL)
        self.primary.stop(hurry=True)

    def promote(self) -> None:
        """Make the standby the primary; it has no standby of its own then."""
        with psycopg.connect(self.standby.url, autocommit=True) as link:
            link.execute("SELECT pg_promote(true, 60)")
