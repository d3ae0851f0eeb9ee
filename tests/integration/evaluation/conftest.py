"""A database, a worker in this process that answers what is asked of it, and the raters' page."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest

from turnmill.producer.accept import accept
from turnmill.producer.api.app import Server
from turnmill.producer.studies.creation import Plan, create_study
from turnmill.producer.studies.model import Candidate, Kind, Study
from turnmill.producer.studies.raters import invite
from turnmill.producer.tenants import ensure_defaults
from turnmill.producer.turns import read_turn
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.turns import OPEN_STATES, Message, Role, TurnRequest
from turnmill.workers.testing import InlineWorker


@dataclass
class Desk:
    """Where bots are asked, and answer by repeating what they are asked."""

    settings: Settings
    database: Database
    tenant_id: UUID
    eventually: Callable[..., None]

    @property
    def bot(self) -> str:
        return self.settings.engine.model_name

    def ask(self, *texts: str, bot: str | None = None) -> list[UUID]:
        """Ask the texts in one conversation, and return the turns when all are answered."""
        asked: list[UUID] = []
        conversation: UUID | None = None
        for text in texts:
            request = TurnRequest(
                tenant_id=self.tenant_id,
                bot=bot or self.bot,
                messages=(Message(role=Role.USER, content=text),),
                conversation_id=conversation,
            )
            turn = accept(self.database, request)
            conversation = turn.conversation_id
            asked.append(turn.turn_id)
        self.eventually(lambda: self._ended(asked[-1]))
        return asked

    def _ended(self, turn_id: UUID) -> bool:
        return read_turn(self.database, self.tenant_id, turn_id).state not in OPEN_STATES


@pytest.fixture
def desk(
    database_url: str,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Desk]:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path_factory.mktemp("data")))
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    settings = load_settings(engine={"name": "echo"})
    database = Database(settings.database)
    try:
        with InlineWorker(settings):
            yield Desk(settings, database, ensure_defaults(database, settings), eventually)
    finally:
        database.close()


@dataclass
class Page:
    """An API that serves the raters' page of one study."""

    url: str
    database: Database
    study: Study

    def invite(self, name: str) -> str:
        """Return the path of a new link."""
        return f"/rate/{invite(self.database, self.study, name, days=1)}"


def _serve_study(database_url: str, eventually: Callable[..., None], kind: Kind) -> Iterator[Page]:
    settings = load_settings(database={"url": database_url}, engine={"name": "echo"})
    database = Database(settings.database)
    prompt = (Message(role=Role.USER, content="Where is <b>it</b>?"),)
    source = {"bot": "secret-bot", "model": "secret-model"}
    candidates = [Candidate(prompt, f"Reply {n}", f"Other {n}", source) for n in range(10)]
    plan = Plan(overlap=1, raters=9, repeats=0)
    tenant_id = ensure_defaults(database, settings)
    study = create_study(database, tenant_id, "study", kind, candidates, (), plan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        eventually(lambda: server.started)
        try:
            yield Page(f"http://127.0.0.1:{listener.getsockname()[1]}", database, study)
        finally:
            server.should_exit = True
            thread.join()
            database.close()


@pytest.fixture
def page(database_url: str, eventually: Callable[..., None]) -> Iterator[Page]:
    yield from _serve_study(database_url, eventually, "likert")


@pytest.fixture
def pairs_page(database_url: str, eventually: Callable[..., None]) -> Iterator[Page]:
    yield from _serve_study(database_url, eventually, "pairwise")
