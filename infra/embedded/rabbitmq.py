"""An installed RabbitMQ, run as one private node: for tests, benchmarks and trying things out.

RabbitMQ comes in no wheel. Where its package is installed, this runs a node of its own beside any
system one: own folder, own loopback ports, own port mapper, no systemd. The package's wrapper in
/usr/sbin is bypassed, because it changes the user and drops the environment.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import server_uid
from turnmill.infra.embedded.ports import LOOPBACK, listens
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.schemas.errors import BrokerUnavailable, StackError
from turnmill.schemas.observability.management import Refused, manage

USER = "turnmill"
_NODE = "rabbit@localhost"
_DEBIAN_GLOB = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"

_CONFIG = """\
listeners.tcp.default = {host}:{port}
management.tcp.ip = {host}
management.tcp.port = {management}
default_user = {user}
default_pass = {password}
"""


class EmbeddedRabbitMQ(EmbeddedServer):
    name: ClassVar[str] = "rabbitmq"

    @property
    def url(self) -> str:
        return self.vhost_url("/")

    @property
    def management_url(self) -> str:
        return f"http://{self._login}@{LOOPBACK}:{self._port_of('rabbitmq_management')}"

    def vhost_url(self, vhost: str) -> str:
        return f"amqp://{self._login}@{LOOPBACK}:{self.port}/{vhost}"

    def add_vhost(self, vhost: str) -> str:
        """Create an empty virtual host; returns its URL. Raises as `manage` does."""
        manage(self.management_url, "PUT", f"vhosts/{vhost}", {})
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        manage(self.management_url, "PUT", f"permissions/{vhost}/{USER}", rights)
        return self.vhost_url(vhost)

    def delete_vhost(self, vhost: str) -> None:
        manage(self.management_url, "DELETE", f"vhosts/{vhost}")

    def children(self) -> list[Child]:
        mapper = Child(
            name="epmd",
            title="Erlang port mapper",
            command=[epmd_program(), "-port", self._epmd_port, "-address", LOOPBACK],
            ready=lambda pid: listens(self._port_of("epmd")),
            ready_every_s=0.05,
            uid=server_uid(),
        )
        node = Child(
            name=self.name,
            title="RabbitMQ",
            command=[str(rabbitmq_program())],
            ready=lambda pid: self._is_listening(),
            ready_timeout_s=120,
            environment=self.environment(),
            folder=self._home,
            uid=server_uid(),
            stop_timeout_s=20,
        )
        return [mapper, node]

    @property
    def _home(self) -> Path:
        return self.folder.path / self.name

    @property
    def _login(self) -> str:
        return f"{USER}:{self.folder.secret(self.name)}"

    @property
    def _epmd_port(self) -> str:
        return str(self._port_of("epmd"))

    def _prepare(self) -> None:
        rabbitmq_program()
        for port in ("rabbitmq_management", "rabbitmq_distribution", "epmd"):
            self._claim_port(port)
        self.folder.give_to_server(self.folder.server_folder(self.name))
        text = _CONFIG.format(
            host=LOOPBACK,
            port=self.port,
            management=self._port_of("rabbitmq_management"),
            user=USER,
            password=self.folder.secret(self.name),
        )
        self.folder.write_private("rabbitmq.conf", text, uid=server_uid())
        plugins = "[rabbitmq_management].\n"
        self.folder.write_private("rabbitmq.plugins", plugins, uid=server_uid())

    def environment(self) -> dict[str, str]:
        ports = {"dist": self._port_of("rabbitmq_distribution"), "epmd": self._port_of("epmd")}
        return node_environment(
            _NODE,
            self._home,
            config=self.folder.path / "rabbitmq.conf",
            plugins=self.folder.path / "rabbitmq.plugins",
            ports=ports,
        )

    def _is_listening(self) -> bool:
        try:
            manage(self.management_url, "GET", f"health/checks/port-listener/{self.port}")
        except (BrokerUnavailable, Refused):
            return False
        return True


def node_environment(
    node: str, home: Path, *, config: Path, plugins: Path, ports: Mapping[str, int]
) -> dict[str, str]:
    """What makes the start script run a private node. `ports`: "dist", its own, and "epmd"."""
    own = {
        "HOME": str(home),
        "ERL_EPMD_PORT": str(ports["epmd"]),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_DIST_PORT": str(ports["dist"]),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(home / f"{node}.pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none"
        ),
        # Become the node instead of a shell that waits for it: one process to watch and kill.
        "RUNNING_UNDER_SYSTEMD": "true",
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
    return {**inherited, **own}


def rabbitmq_program() -> Path:
    """The start script itself, not a distribution's wrapper around it."""
    packaged = sorted(Path("/").glob(_DEBIAN_GLOB))
    if packaged:
        return packaged[-1]
    return Path(_program("rabbitmq-server"))


def epmd_program() -> str:
    """Erlang's port mapper. Raises `StackError`."""
    return _program("epmd")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise StackError(f"{name} is not installed. On Debian: apt-get install rabbitmq-server")
    return str(Path(path).resolve())
