"""The system as its own processes: a relay and workers, started and killed by the tests."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.turns import Lane, Message, Role, TurnRequest

#: Short, so that a test of what happens after a lease does not last a minute.
LEASE_S = 2.0


class Process:
    """One `turnmill` command."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: IO[bytes]) -> None:
        self.log = Path(log.name)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "turnmill.producer.cli", *arguments],
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)
            self._popen.kill()
        self._popen.wait()

    def wait(self, timeout_s: float) -> int:
        return self._popen.wait(timeout_s)

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None


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

    def start(self, *arguments: str, **environment: str) -> Process:
        number = len(list(self._folder.iterdir()))
        log = self._stack.enter_context((self._folder / f"{number}-{arguments[0]}.log").open("wb"))
        variables = {
            "TURNMILL_DATA": str(self._folder),
            "TURNMILL_DATABASE__URL": self.settings.database.url,
            "TURNMILL_BROKER__URL": self.settings.broker.url,
            "TURNMILL_ENGINE__NAME": self.settings.engine.name,
            "TURNMILL_WORKER__LEASE_S": str(self.settings.worker.lease_s),
            "TURNMILL_WORKER__CONCURRENCY": str(self.settings.worker.concurrency),
        }
        process = Process(list(arguments), variables | environment, log)
        self._stack.callback(process.kill)
        return process

    def start_worker(self, *arguments: str, **environment: str) -> Process:
        """A worker that consumes when this returns."""
        worker = self.start("worker", *arguments, **environment)
        self._eventually(
            lambda: b"worker.consuming" in worker.log.read_bytes() or not worker.is_running, 30
        )
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

    def count(self, condition: str) -> int:
        """Turns for which an SQL condition holds."""
        rows = self.database.run(f"SELECT count(*) AS n FROM turns WHERE {condition}")
        return int(rows[0].n)

    def wait_until_settled(self, timeout_s: float = 60.0) -> None:
        self._eventually(
            lambda: self.count("state IN ('waiting', 'queued', 'running')") == 0, timeout_s, 0.05
        )


@pytest.fixture
def make_system(eventually: Callable[..., None]) -> Iterator[Callable[[str, str], System]]:
    with ExitStack() as stack:

        def make(database_url: str, broker_url: str, **worker: Any) -> System:
            settings = load_settings(
                database={"url": database_url},
                broker={"url": broker_url},
                engine={"name": "echo"},
                worker={"lease_s": LEASE_S, "concurrency": 8, **worker},
            )
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="turnmill-test-"))
            return System(settings, stack, Path(folder), eventually)

        yield make


@pytest.fixture
def system(make_system: Callable[..., System], database_url: str, broker_url: str) -> System:
    """On each broker in turn; nothing is started yet."""
    return make_system(database_url, broker_url)
