"""Real servers for the tests: PostgreSQL, Valkey and RabbitMQ, started here and stopped here.

Each is started once, when the first test asks for it; what a test sees of it is its own (a
database, a virtual host, an emptied key space). A server that is missing on this machine skips
its tests at home and fails them in CI.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NoReturn, TypeVar

import psycopg
import pytest
import redis

from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.schemas.errors import StackError

ServerT = TypeVar("ServerT", bound=EmbeddedServer)
_TEMPLATE = "turnmill_template"
_numbers = count(1)


def require_service(reason: str) -> NoReturn:
    """A server is missing: skip at home, fail in CI, where nothing may go untested."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


def _serve(server: ServerT) -> Iterator[ServerT]:
    try:
        server.start()
    except StackError as error:
        require_service(f"No {server.name}: {error}")
    try:
        yield server
    finally:
        server.stop(hurry=True)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(condition, timeout_s)`: wait until it holds, and fail when it never does."""

    def wait(
        condition: Callable[[], object], timeout_s: float = 20.0, every_s: float = 0.02
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"did not happen within {timeout_s:g} s")
            time.sleep(every_s)

    return wait


@pytest.fixture(scope="session")
def make_server_folder() -> Iterator[Callable[[], Path]]:
    """New folders that the servers' account can enter; pytest's own are closed to it under root."""
    folders: list[Path] = []

    def make() -> Path:
        folders.append(Path(tempfile.mkdtemp(prefix="turnmill-test-")))
        folders[-1].chmod(0o755)
        return folders[-1]

    yield make
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server_folder(make_server_folder: Callable[[], Path]) -> Path:
    return make_server_folder()


@pytest.fixture(scope="session")
def postgres(make_server_folder: Callable[[], Path]) -> Iterator[EmbeddedPostgres]:
    yield from _serve(EmbeddedPostgres(make_server_folder(), durable=False))


@pytest.fixture(scope="session")
def valkey(make_server_folder: Callable[[], Path]) -> Iterator[EmbeddedValkey]:
    yield from _serve(EmbeddedValkey(make_server_folder()))


@pytest.fixture(scope="session")
def rabbitmq(make_server_folder: Callable[[], Path]) -> Iterator[EmbeddedRabbitMQ]:
    yield from _serve(EmbeddedRabbitMQ(make_server_folder()))


@pytest.fixture(scope="session")
def postgres_url(postgres: EmbeddedPostgres) -> str:
    """An empty database with all rights on its server."""
    return postgres.url


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> str:
    """A migrated database that others are copied from."""
    from turnmill.infra.migrations import upgrade

    with psycopg.connect(postgres_url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {_TEMPLATE}")
        upgrade(_beside(postgres_url, _TEMPLATE))
        link.execute(f"ALTER DATABASE {_TEMPLATE} ALLOW_CONNECTIONS false")
    return _TEMPLATE


@pytest.fixture
def database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    yield from _new_database(postgres_url, f"TEMPLATE {migrated_template}")


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database of the test's own, before any migration."""
    yield from _new_database(postgres_url, "TEMPLATE template0")


@pytest.fixture
def valkey_url(valkey: EmbeddedValkey) -> str:
    """An empty Valkey."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq: EmbeddedRabbitMQ) -> str:
    """The default virtual host, shared by the session."""
    return rabbitmq.url


@pytest.fixture
def rabbitmq_vhost_url(rabbitmq: EmbeddedRabbitMQ) -> Iterator[str]:
    """A virtual host of the test's own."""
    name = f"test{next(_numbers)}"
    yield rabbitmq.add_vhost(name)
    rabbitmq.delete_vhost(name)


@pytest.fixture(params=["rabbitmq", "valkey"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """An empty broker; the test runs once with each kind."""
    fixture = {"rabbitmq": "rabbitmq_vhost_url", "valkey": "valkey_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


def _new_database(server_url: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name} {template}")
        yield _beside(server_url, name)
        link.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _beside(server_url: str, database: str) -> str:
    return f"{server_url.rpartition('/')[0]}/{database}"
