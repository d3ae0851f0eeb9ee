"""Two replicas of the API with every channel, and what a test of one channel sees of them."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from turnmill.producer.api.app import Server
from turnmill.producer.tenants import create_key, ensure_defaults
from turnmill.schemas.content import text_of
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.store.tables import metadata
from turnmill.schemas.tenants import Scope

from .peers.base import Peer, Sent

#: Tables that the replicas have read or filled when they started.
_KEPT = {"tenants", "api_keys", "bots", "deployment"}


class Replicas:
    """A database, and two replicas of the API that serve one channel of each kind."""

    def __init__(self, peers: Mapping[str, Peer], settings: Settings, urls: list[str]) -> None:
        self._peers = peers
        self.settings = settings
        self.urls = urls
        self.database = Database(settings.database)
        tenant_id = ensure_defaults(self.database, settings)
        self._key = create_key(self.database, tenant_id, "test", Scope)
        self.http = httpx.Client(timeout=30)

    def close(self) -> None:
        self.http.close()
        self.database.close()

    def site(self, channel: str) -> "Site":
        """Delete what earlier tests sent, and show one channel."""
        tables = [table.name for table in metadata.sorted_tables if table.name not in _KEPT]
        self.database.run(f"TRUNCATE {', '.join(tables)}")
        return Site(self._peers[channel], channel, self)

    def event_counts(self, channel: str) -> dict[str, float]:
        """How many events of a channel had each outcome, by the first replica's metrics."""
        answer = self.http.get(
            f"{self.urls[0]}/metrics", headers={"Authorization": f"Bearer {self._key}"}
        )
        prefix = f'turnmill_channel_events_total{{channel="{channel}",outcome="'
        lines = [line for line in answer.text.splitlines() if line.startswith(prefix)]
        pairs = (line.removeprefix(prefix).split('"} ') for line in lines)
        return {name: float(value) for name, value in pairs}


class Site:
    """The replicas, as `peer` sees them: one channel, and no events yet."""

    def __init__(self, peer: Peer, channel: str, replicas: Replicas) -> None:
        self.peer = peer
        self.settings = replicas.settings
        self.database = replicas.database
        self.http = replicas.http
        self._replicas = replicas
        self._channel = channel
        self.urls = [f"{url}/channels/{channel}" for url in replicas.urls]
        self._counted = replicas.event_counts(channel)

    def post(self, sent: Sent, replica: int = 0, **headers: str) -> httpx.Response:
        given = {name: value.encode("latin-1") for name, value in (sent.headers | headers).items()}
        url = self.urls[replica]
        return self.http.post(url, content=sent.body, headers=given, params=sent.query)

    def send(self, payload: object, replica: int = 0) -> httpx.Response:
        """Sign and send what the platform would."""
        return self.post(self.peer.sign(self.peer.encode(payload)), replica)

    def inputs(self) -> list[str]:
        """The texts of the users' messages, in order."""
        rows = self.database.run("SELECT input FROM turns ORDER BY id")
        return [text_of(message["content"]) for row in rows for message in row.input]

    def count(self, table: str) -> int:
        return int(self.database.run(f"SELECT count(*) AS n FROM {table}")[0].n)

    def outcomes(self) -> dict[str, float]:
        """What became of this test's events at the first replica."""
        counts = self._replicas.event_counts(self._channel).items()
        new = {name: value - self._counted.get(name, 0) for name, value in counts}
        return {name: value for name, value in new.items() if value}


@contextmanager
def running_replicas(
    peers: Mapping[str, Peer], database_url: str, folder: Path, eventually: Callable[..., None]
) -> Iterator[Replicas]:
    """Serve one channel for each peer, named after its kind."""
    file = folder / "turnmill.toml"
    file.write_text("[bots.helper]\n" + "".join(_section(*each) for each in peers.items()))
    variables = {
        _variable(kind, name): value
        for kind, peer in peers.items()
        for name, value in peer.variables.items()
    }
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in variables.items():
            environment.setenv(name, value)
        settings = load_settings(
            data=folder,
            config=file,
            database={"url": database_url, "connect_timeout_s": 2},
            engine={"name": "echo", "model": "echo"},
        )
        urls = [stack.enter_context(_serving(settings, eventually)) for _ in range(2)]
        replicas = Replicas(peers, settings, urls)
        stack.callback(replicas.close)
        for url in urls:
            # What FastAPI prepares at the first call is not made for two apps in one process.
            assert replicas.http.get(f"{url}/channels/nobody").status_code == 404
        eventually(lambda: replicas.database.run("SELECT 1 FROM bots WHERE name = 'helper'"))
        yield replicas


def _section(kind: str, peer: Peer) -> str:
    """The section of a channel. Peers share names of variables; each gets its own."""
    section = peer.section
    for name in peer.variables:
        section = section.replace(f'"{name}"', f'"{_variable(kind, name)}"')
    return f'[channels.{kind}]\nkind = "{kind}"\nbot = "helper"\n{section}\n'


def _variable(kind: str, name: str) -> str:
    return f"{kind.upper()}_{name}"


@contextmanager
def _serving(settings: Settings, eventually: Callable[..., None]) -> Iterator[str]:
    """An API in a thread; its URL."""
    server = Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
