"""An API with files of the test's own."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from turnmill.producer.api.app import Server
from turnmill.producer.tenants import create_key, create_tenant, ensure_defaults
from turnmill.schemas.files.local import LocalStorage
from turnmill.schemas.files.opening import open_files
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings, load_settings
from turnmill.schemas.tenants import Scope
from turnmill.workers.upkeep.indexer import Indexer
from turnmill.workers.upkeep.pruner import prune

BOT = "echo"


class Site:
    """A running API, the official client of its default tenant, and its storage."""

    def __init__(self, settings: Settings, database: Database, url: str) -> None:
        self.settings, self.database, self.url = settings, database, url
        self.tenant_id = ensure_defaults(database, settings)
        self.storage = LocalStorage(settings.files_dir)
        self.openai = self.client("default")

    def client(self, tenant: str) -> openai.OpenAI:
        """A client with a key of this tenant, which is made."""
        tenant_id = self.tenant_id
        if tenant != "default":
            tenant_id = create_tenant(self.database, tenant, self.settings)
        key = create_key(self.database, tenant_id, "test", Scope)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.openai.api_key}"},
            timeout=30,
        )

    def upload(self, content: bytes, name: str = "ticket.txt", **fields: Any) -> Any:
        return self.openai.files.create(file=(name, content), purpose="user_data", **fields)

    def stored(self) -> list[Path]:
        """The files in the storage, drafts too."""
        root = self.settings.files_dir
        return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "owner")

    def made_later(self) -> None:
        """Let the files be made long after the storage got its first."""
        self.database.run("UPDATE files SET created_at = created_at + interval '2 hours'")

    def prune(self, **options: Any) -> Any:
        retention = self.settings.retention
        return prune(self.database, retention, lambda _: False, storage=self.storage, **options)


MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(
    database_url: str, tmp_path: Path, eventually: Callable[..., None]
) -> Iterator[MakeSite]:
    with ExitStack() as stack:

        def make(**sections: Any) -> Site:
            settings = load_settings(
                **{
                    "data": tmp_path / "data",
                    "database": {"url": database_url},
                    "engine": {"name": "echo", "model": BOT},
                    "worker": {"concurrency": 4},
                    **sections,
                }
            )
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            database = stack.enter_context(closing(Database(settings.database)))
            server = Server(settings)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            eventually(lambda: server.started)
            site = Site(settings, database, f"http://127.0.0.1:{listener.getsockname()[1]}")
            stack.callback(site.openai.close)
            return site

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


@pytest.fixture
def indexed(site: Site) -> Iterator[Site]:
    """A site whose documents a worker reads."""
    indexer = Indexer(site.database, open_files(site.database, site.settings), lease_s=15.0)
    indexer.start()
    yield site
    indexer.close()
