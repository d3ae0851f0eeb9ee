"""docs/backup.md: what a backup made while turns ran gives back, by the commands of the page."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest

from tests.integration.pages.commands import blocks, commands, run
from turnmill.infra.embedded.binaries import postgres_bin
from turnmill.infra.embedded.folder import server_uid
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.migrations import upgrade
from turnmill.producer.accept import accept
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DEFAULT_MODEL, DatabaseSettings, SecretUrl, load_settings
from turnmill.schemas.turns import AcceptedTurn, Lane, Message, Role, TurnRequest

PAGE = "backup.md"
Eventually = Callable[..., None]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """PostgreSQL's programs, of the server's version."""
    return postgres_bin(tmp_path / "bin")


@pytest.fixture
def variables(system: Any, postgres_url: str) -> dict[str, str]:
    """What the page's commands find in their environment."""
    return {**system.variables, "ADMIN_URL": postgres_url}


def test_an_older_dump_answers_all_that_it_has_once_beside_newer_hints(
    system: Any,
    programs: Path,
    variables: dict[str, str],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    relay, worker = system.start("relay"), system.start_worker()
    before = accept_conversations(system, 5, 2)
    system.wait_until_settled()
    open_at_dump = accept_conversations(system, 12, 3, "[[wait=0.3]] ")
    for line in commands(PAGE, "## A dump"):
        run(line, variables, tmp_path, programs)
    # What was open is answered once before the restore; the newest hints stay on the broker.
    system.wait_until_settled()
    worker.kill()
    newer = accept_conversations(system, 6, 1)
    unpublished = "SELECT FROM outbox WHERE published_at IS NULL"
    eventually(lambda: system.database.run(unpublished) == [])
    relay.kill()
    system.database.close()

    restore(commands(PAGE, "## Restore a dump"), variables, tmp_path, programs)
    assert system.count("state IN ('waiting', 'queued', 'running')") > 0
    unknown = [turn.turn_id for turn in newer]
    assert system.database.run("SELECT id FROM turns WHERE id = ANY(%s)", (unknown,)) == []
    system.start("relay")
    system.start_worker()
    system.wait_until_settled()
    system.assert_answered_once_and_in_order([*before, *open_at_dump])


def test_a_paused_lane_holds_back_what_is_open_after_a_restore(
    system: Any, programs: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    accepted = accept_conversations(system, 4, 2)
    run(commands(PAGE, "## A dump")[0], variables, tmp_path, programs)
    system.database.close()
    restore(commands(PAGE, "## Restore a dump"), variables, tmp_path, programs)
    run("turnmill lanes pause interactive", variables, tmp_path)
    assert "turn_" in run("turnmill turns list --state queued", variables, tmp_path)
    system.start("relay")
    system.start_worker()
    assert system.count("state = 'completed'") == 0
    run("turnmill lanes resume interactive", variables, tmp_path)
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)


def test_an_embedded_stack_is_dumped_by_the_programs_of_its_wheel(
    database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "stack.json").write_text(json.dumps({"database": {"url": database_url}}))
    script = "; ".join(commands(PAGE, "## `turnmill up`"))
    run(script, {"TURNMILL_DATA": str(tmp_path)}, tmp_path)
    assert (tmp_path / "turnmill.dump").stat().st_size > 10_000


def test_a_base_backup_and_the_archived_log_return_to_the_newest_turn(
    make_server_folder: Callable[[], Path], programs: Path, tmp_path: Path
) -> None:
    archive, old, new = (make_server_folder() for _ in range(3))
    own(archive)
    archiving, recovering = (
        text.replace("/archive/", f"{archive}/") for text in blocks(PAGE, "## To any moment", "ini")
    )
    lines = commands(PAGE, "## To any moment")
    with EmbeddedPostgres(old, settings=dict(settings_of(archiving))) as server:
        upgrade(server.url)
        for line in lines:
            run(line, {"REPLICATION_URL": server.url}, tmp_path, programs)
        with closing(Database(DatabaseSettings(url=SecretUrl(server.url)))) as database:
            tenant_id = ensure_defaults(database, load_settings(engine={"name": "echo"}))
            accepted = accept(database, request_of(tenant_id)).turn_id

    shutil.copytree(old, new, dirs_exist_ok=True, ignore=lambda _, names: {"data"} & set(names))
    data = new / "postgres" / "data"
    shutil.move(tmp_path / "base", data)
    (data / "recovery.signal").touch()
    with (data / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(recovering)
    own(new / "postgres", *data.rglob("*"), data)
    with EmbeddedPostgres(new) as server, psycopg.connect(server.url) as link:
        assert link.execute("SELECT id FROM turns").fetchall() == [(accepted,)]


def own(*paths: Path) -> None:
    """Give paths to the servers' account, where that is another one."""
    if (uid := server_uid()) is not None:
        for path in paths:
            os.chown(path, uid, uid)


def settings_of(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition(" = ")
        yield name, value.strip("'")


def request_of(tenant_id: UUID) -> TurnRequest:
    return TurnRequest(
        tenant_id=tenant_id,
        bot=DEFAULT_MODEL,
        lane=Lane.INTERACTIVE,
        messages=(Message(role=Role.USER, content="hello"),),
    )


def accept_conversations(
    system: Any, conversations: int, turns: int, magic: str = ""
) -> Sequence[AcceptedTurn]:
    def hold(number: int) -> list[AcceptedTurn]:
        first = accept(system.database, system.request(f"{magic}{number} 1"))
        return [
            first,
            *(
                accept(
                    system.database,
                    system.request(
                        f"{magic}{number} {turn}", conversation_id=first.conversation_id
                    ),
                )
                for turn in range(2, turns + 1)
            ),
        ]

    with ThreadPoolExecutor(4) as threads:
        return [turn for each in threads.map(hold, range(conversations)) for turn in each]


def restore(lines: Sequence[str], variables: dict[str, str], folder: Path, programs: Path) -> None:
    """Run the page's commands, on the test's database in place of the page's."""
    name = urlsplit(variables["TURNMILL_DATABASE__URL"]).path[1:]
    for line in lines:
        ours = line.replace("IF EXISTS turnmill ", f"IF EXISTS {name} ")
        run(ours.replace("DATABASE turnmill ", f"DATABASE {name} "), variables, folder, programs)
