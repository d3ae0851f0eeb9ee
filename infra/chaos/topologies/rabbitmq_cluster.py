"""Three RabbitMQ nodes on loopback that form one cluster: quorum queues outlive any one of them.

https://www.rabbitmq.com/docs/cluster-formation (classic config),
https://www.rabbitmq.com/docs/quorum-queues
"""

import os
import signal
from contextlib import suppress
from typing import Any, ClassVar

from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import server_uid
from turnmill.infra.embedded.ports import LOOPBACK, listens
from turnmill.infra.embedded.rabbitmq import USER, epmd_program, node_environment, rabbitmq_program
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.schemas.errors import BrokerUnavailable, StackError
from turnmill.schemas.observability.management import Refused, manage

SIZE = 3
_READY_TIMEOUT_S = 180.0

_CONFIG = """\
listeners.tcp.default = {host}:{port}
management.tcp.ip = {host}
management.tcp.port = {management}
default_user = {user}
default_pass = {password}
cluster_formation.peer_discovery_backend = classic_config
cluster_partition_handling = pause_minority
"""


class RabbitMQCluster(EmbeddedServer):
    """`url` names all nodes, joined by `;` as kombu wants them."""

    name: ClassVar[str] = "rabbitmq-cluster"

    @property
    def url(self) -> str:
        password = self.folder.secret(self.name)
        return ";".join(
            f"amqp://{USER}:{password}@{LOOPBACK}:{self._port_of(f'amqp-{n}')}//" for n in _NUMBERS
        )

    @property
    def management_url(self) -> str:
        """The first node's management API."""
        return self._management_url(1)

    @property
    def pid(self) -> int | None:
        """The first node's."""
        return self._pid_of(1)

    def children(self) -> list[Child]:
        mapper = Child(
            name="epmd",
            title="Erlang port mapper",
            command=[epmd_program(), "-port", str(self._port_of("epmd")), "-address", LOOPBACK],
            ready=lambda pid: listens(self._port_of("epmd")),
            ready_every_s=0.05,
            uid=server_uid(),
        )
        return [mapper, *(self._node(number) for number in _NUMBERS)]

    def leader_of(self, queue: str) -> int:
        """The number of the node that leads a quorum queue. Raises `StackError`."""
        found = self._ask(f"queues/%2F/{queue}")
        return int(found["leader"].removeprefix("rab").partition("@")[0])

    def kill_node(self, number: int) -> None:
        """`kill -9`; its supervisor starts it again, and it rejoins after some seconds."""
        if (pid := self._pid_of(number)) is not None:
            os.kill(pid, signal.SIGKILL)

    def _pid_of(self, number: int) -> int | None:
        return self._supervisor.pid_of(f"node-{number}") if self._supervisor else None

    def _prepare(self) -> None:
        rabbitmq_program()
        self._claim_port("epmd")
        self.folder.give_to_server(self.folder.server_folder(self.name))
        for number in _NUMBERS:
            for use in ("amqp", "management", "dist"):
                self._claim_port(f"{use}-{number}")
            text = _CONFIG.format(
                host=LOOPBACK,
                port=self._port_of(f"amqp-{number}"),
                management=self._port_of(f"management-{number}"),
                user=USER,
                password=self.folder.secret(self.name),
            )
            nodes = [f"cluster_formation.classic_config.nodes.{n} = {_node(n)}" for n in _NUMBERS]
            content = text + "\n".join(nodes) + "\n"
            self.folder.write_private(f"node-{number}.conf", content, uid=server_uid())
        plugins = "[rabbitmq_management].\n"
        self.folder.write_private("rabbitmq.plugins", plugins, uid=server_uid())

    def _node(self, number: int) -> Child:
        """All are started together; the last one waits until the cluster is whole."""
        home = self.folder.path / self.name
        ports = {"dist": self._port_of(f"dist-{number}"), "epmd": self._port_of("epmd")}
        return Child(
            name=f"node-{number}",
            title=f"RabbitMQ node {number}",
            command=[str(rabbitmq_program())],
            ready=(lambda pid: self._is_whole()) if number == SIZE else None,
            ready_timeout_s=_READY_TIMEOUT_S,
            environment=node_environment(
                _node(number),
                home,
                config=self.folder.path / f"node-{number}.conf",
                plugins=self.folder.path / "rabbitmq.plugins",
                ports=ports,
            ),
            folder=home,
            uid=server_uid(),
            stop_timeout_s=20,
        )

    def _is_whole(self) -> bool:
        try:
            return [node["running"] for node in self._ask("nodes")] == [True] * SIZE
        except StackError:
            return False

    def _ask(self, path: str) -> Any:
        """The first answer of a node's management API to a GET. Raises `StackError`."""
        for number in _NUMBERS:
            with suppress(BrokerUnavailable, Refused):
                return manage(self._management_url(number), "GET", path, timeout_s=3)
        raise StackError(f"No node of the cluster answers {path}.")

    def _management_url(self, number: int) -> str:
        password = self.folder.secret(self.name)
        return f"http://{USER}:{password}@{LOOPBACK}:{self._port_of(f'management-{number}')}"


def _node(number: int) -> str:
    return f"rab{number}@localhost"


_NUMBERS = range(1, SIZE + 1)
