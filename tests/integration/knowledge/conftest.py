"""A collection of documents, and bots that read it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnmill.producer.knowledge.sync import Synced, follow, sync
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.files.opening import open_files
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import EngineSettings, Settings, load_settings
from turnmill.schemas.store.knowledge.search import Passage, search
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.upkeep.indexer import index_next


class Library:
    """A folder and the collection that is made of it."""

    def __init__(self, settings: Settings, database: Database, folder: Path) -> None:
        self.settings, self.database, self.folder = settings, database, folder
        self.files = open_files(database, settings)
        self.tenant_id = ensure_defaults(database, settings)
        folder.mkdir()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def sync(
        self, name: str = "shop", source: Path | None = None, base_url: str | None = None
    ) -> dict[str, Synced]:
        """Queue what the folder holds, and index it as a worker does."""
        found = {each.uri: each for each in self.queue(name, source, base_url)}
        self.index()
        found |= {each.uri: each for each in follow(self.database, [*found.values()]) if each}
        return found

    def queue(
        self, name: str = "shop", source: Path | None = None, base_url: str | None = None
    ) -> list[Synced]:
        source = source or self.folder
        return list(sync(self.database, self.tenant_id, name, source, base_url))

    def index(self) -> None:
        """Index all that is due."""
        while index_next(self.database, self.files, lease_s=15.0):
            pass

    def search(self, question: str, name: str = "shop", limit: int = 5) -> list[Passage]:
        return search(self.database, self.tenant_id, name, question, limit)


@pytest.fixture
def library(database_url: str, tmp_path: Path) -> Iterator[Library]:
    settings = load_settings(data=tmp_path / "data", database={"url": database_url})
    database = Database(settings.database)
    yield Library(settings, database, tmp_path / "docs")
    database.close()


@pytest.fixture
def reads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are read in the tests' process, for searches among many: a child for each of them
    costs more than all that is looked at.
    """

    def isolated(work: Callable[..., Any], *arguments: object, **_: object) -> Any:
        return work(*arguments)

    monkeypatch.setattr("turnmill.workers.readers.reading.isolated", isolated)


class Reading(EchoEngine):
    """Keeps its prompts; does what `script` says, and then answers."""

    def __init__(self) -> None:
        super().__init__(EngineSettings())
        self.prompts: list[str] = []
        self.script: list[Callable[[], None]] = []

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.prompts.append(prompt.messages[-1].text)
        if self.script:
            self.script.pop(0)()
        yield from super().generate(prompt, params, abort)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Reading:
    engine = Reading()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine
