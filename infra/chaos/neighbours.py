"""Neighbours of a storm: a second deployment on the same broker, and a model on the same database
whose name differs from ours only where a careless queue name would not.

Each has its own processes, its own client and its own verdict. No fault is aimed at them.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from turnmill.infra.chaos.checker import Verdict, check
from turnmill.infra.chaos.client import Client, Load
from turnmill.infra.chaos.observed import observe
from turnmill.infra.chaos.record import Record, read_record
from turnmill.infra.chaos.site import Servers, Site, Size
from turnmill.infra.chaos.turns import TurnSubmitter
from turnmill.infra.migrations import upgrade
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Count
from turnmill.schemas.settings import DatabaseSettings, EngineSettings, SecretUrl, Settings

#: A neighbour's turns, conversations and rate are this part of ours.
_PART = 20
_SIZE = Size(workers=1, relays=1, apis=0, concurrency=8)
_DATABASE = "neighbour"
_OPEN = """
SELECT count(*) AS n FROM turns WHERE model = %s AND state IN ('waiting', 'queued', 'running')
"""


def neighbours(folder: Path, servers: Servers, model: str, load: Load) -> Iterator["Neighbour"]:
    """The neighbours of a storm; both share its broker, one its database."""
    part = replace(
        load,
        turns=max(load.turns // _PART, 1),
        conversations=max(load.conversations // _PART, 1),
        rate=load.rate / _PART,
        streamed=0.0,
        poison=(),
    )
    elsewhere = replace(servers, database_url=_second_database(servers.database_url))
    yield Neighbour("deployment", folder, elsewhere, model, part)
    yield Neighbour("model", folder, servers, model.replace("-", ":"), part)


def _second_database(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {_DATABASE}")
    second = urlsplit(url)._replace(path=f"/{_DATABASE}").geturl()
    upgrade(second)
    return second


class Neighbour:
    """One more deployment or model. `with` starts it; it submits until its turns are accepted."""

    def __init__(self, name: str, folder: Path, servers: Servers, model: str, load: Load) -> None:
        self.name = name
        self._folder = folder / f"neighbour-{name}"
        self._servers = servers
        self._model = model
        self._load = load
        self._stack = ExitStack()

    def __enter__(self) -> "Neighbour":
        self._folder.mkdir()
        settings = DatabaseSettings(url=SecretUrl(self._servers.database_url))
        with self._stack as stack:
            self._database = Database(settings)
            stack.callback(self._database.close)
            engine = EngineSettings(name="echo", served_name=self._model)
            self._tenant_id = ensure_defaults(self._database, Settings(engine=engine))
            self._record = stack.enter_context(Record(self._folder / "record.jsonl"))
            stack.enter_context(Site(self._folder, self._servers, self._model, _SIZE))
            self._client = Client(
                self._load,
                self._record,
                TurnSubmitter(
                    self._load,
                    self._record,
                    database=self._database,
                    tenant_id=self._tenant_id,
                    model=self._model,
                    api_urls=[],
                    api_key="",
                ),
                run_name=self._model,
                count_open=lambda: 0,
            )
            self._submitting = threading.Thread(target=self._submit, name=self.name, daemon=True)
            self._submitting.start()
            stack.callback(self._client.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def verdict(self, timeout_s: float) -> Verdict:
        """Wait until every turn is settled, or the timeout; then judge. The model's turns only."""
        deadline = time.monotonic() + timeout_s
        self._submitting.join(timeout_s)
        while self._open_count() and time.monotonic() < deadline:
            time.sleep(0.25)
        observed = observe(self._database, self._tenant_id, self._model)
        return check(read_record(self._record.path), observed, self._model)

    def _submit(self) -> None:
        # Stopped, it is cancelled.
        try:
            asyncio.run(self._client.run())
        except asyncio.CancelledError:
            return

    def _open_count(self) -> int:
        try:
            return self._database.fetch(Count, _OPEN, (self._model,))[0].n
        except DatabaseUnavailable:
            return -1
