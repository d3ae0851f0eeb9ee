"""A bot that remembers its users, and an engine that keeps the prompts it is given."""

import io
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.memory.world import World
from turnmill.producer.api.app import Server
from turnmill.producer.cli.app import main
from turnmill.producer.tenants import save_bot
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import EngineSettings, Settings
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine


class Listening(EchoEngine):
    """Keeps its prompts; does what `script` says, and then answers."""

    def __init__(self) -> None:
        super().__init__(EngineSettings())
        self.prompts: list[tuple[str, ...]] = []
        self.script: list[Callable[[], None]] = []

    def close(self) -> None:
        """Several workers have it, one after the other."""

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.prompts.append(tuple(message.text for message in prompt.messages))
        if self.script:
            self.script.pop(0)()
        yield from super().generate(prompt, params, abort)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Listening:
    engine = Listening()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine


@pytest.fixture
def world(system: Any, engine: Listening, tmp_path: Path) -> World:
    return World(system, system.database, tmp_path / "data")


@pytest.fixture
def turnmill(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """Run `turnmill` with these words: the exit status, and all that is printed."""
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def serve_api(eventually: Callable[..., None]) -> Callable[[Settings], Any]:
    """`with serve_api(settings) as url`: an API that runs meanwhile."""

    @contextmanager
    def serve(settings: Settings) -> Iterator[str]:
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

    return serve


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    """Its bot remembers users."""
    system = make_system(database_url, "amqp://nobody", rescue_every_s=60.0)
    let_remember(system)
    return system


def let_remember(system: Any, **memory: Any) -> None:
    bot = system.settings.engine.model_name
    policies = Policies.model_validate({"memory": {"on": True, **memory}})
    save_bot(
        system.database,
        system.tenant_id,
        bot,
        bot,
        "You sell shoes.",
        GenerationParams(),
        policies=policies,
    )


@pytest.fixture
def make_copy(postgres_url: str) -> Iterator[Callable[[str], str]]:
    """Copy a database, as a backup that is restored; return the copy's URL."""
    made: list[str] = []

    def copy(url: str) -> str:
        source = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        made.append(f"restored_{new_id().hex}")
        with psycopg.connect(postgres_url, autocommit=True) as link:
            link.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (source,),
            )
            link.execute(f'CREATE DATABASE "{made[-1]}" TEMPLATE "{source}"')
        return url.replace(f"/{source}", f"/{made[-1]}")

    yield copy
    with psycopg.connect(postgres_url, autocommit=True) as link:
        for name in made:
            link.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
