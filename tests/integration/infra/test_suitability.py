"""Databases that cannot carry the system, or ways to them, are refused; odd defaults do no harm."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.requirements import missing
from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import server_uid
from turnmill.infra.embedded.ports import claim_port, listens
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.supervisor import Supervisor
from turnmill.infra.migrations import head_revision, upgrade
from turnmill.producer.accept import accept
from turnmill.producer.doctor import Level, diagnose, installation
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.suitability import examine_server, refuse_unsuitable
from turnmill.schemas.settings import DatabaseSettings

BROKEN, USAGE = 1, 64
NO_BROKER = "redis://:secret-of-nobody@127.0.0.1:1/0"

_PGBOUNCER = """\
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users.txt
pool_mode = {mode}
default_pool_size = {size}
"""


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No stack of this machine is found."""
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def start_pooler(
    postgres_url: str, make_server_folder: Callable[[], Path]
) -> Iterator[Callable[..., int]]:
    """`start_pooler("session", size=40)`: a PgBouncer before the tests' PostgreSQL; its port."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("No PgBouncer: apt-get install pgbouncer")
    server = urlsplit(postgres_url)
    with ExitStack() as stack:

        def start(mode: str, *, size: int) -> int:
            folder, claim = make_server_folder(), claim_port()
            stack.callback(claim.release)
            text = _PGBOUNCER.format(
                host=server.hostname,
                server_port=server.port,
                port=claim.port,
                folder=folder,
                mode=mode,
                size=size,
            )
            (folder / "pgbouncer.ini").write_text(text)
            (folder / "users.txt").write_text(f'"{server.username}" "{server.password}"\n')
            child = Child(
                name="pgbouncer",
                command=[program, str(folder / "pgbouncer.ini")],
                ready=lambda pid: listens(claim.port),
                uid=server_uid(),
            )
            supervisor = Supervisor([child], folder)
            supervisor.start()
            stack.callback(supervisor.stop, hurry=True)
            return claim.port

        yield start


@pytest.fixture(scope="module")
def pooler_port(start_pooler: Callable[..., int]) -> int:
    return start_pooler("transaction", size=4)


@pytest.fixture
def pooled_url(pooler_port: int, database_url: str) -> str:
    return _at_port(database_url, pooler_port)


def _at_port(url: str, port: int) -> str:
    return url.replace(f":{urlsplit(url).port}/", f":{port}/")


@pytest.fixture
def open_database() -> Iterator[Callable[..., Database]]:
    opened: list[Database] = []

    def open_(url: str, **settings: Any) -> Database:
        opened.append(Database(DatabaseSettings(url=url, **settings)))
        return opened[-1]

    yield open_
    for database in opened:
        database.close()


def alter(url: str, change: str) -> None:
    """Change a default of a database, for the connections to come."""
    with psycopg.connect(url, autocommit=True) as link:
        link.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} {change}")


def create_database(postgres_url: str, name: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as link:
        link.execute(
            f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8' "
            "LC_CTYPE 'C.UTF-8' LC_COLLATE 'C.UTF-8'"
        )
    return f"{postgres_url.rpartition('/')[0]}/{name}"


def set_default(url: str, default: str) -> None:
    try:
        alter(url, f"SET {default}")
    except psycopg.errors.UndefinedObject:
        missing(f"a PostgreSQL that knows the setting '{default.partition(' ')[0]}'")


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turnmill.producer.cli", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def broken(what: str) -> list[str]:
    """What the doctor calls broken."""
    findings = diagnose(head_revision())
    return [f.detail for f in findings if f.what == what and f.level is Level.BROKEN]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_turns_are_answered_through_a_pooler_which_in_transaction_mode_needs_a_direct_url(
    mode: str,
    make_system: Callable[..., Any],
    start_pooler: Callable[..., int],
    database_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode == "transaction":
        monkeypatch.setenv("TURNMILL_DATABASE__DIRECT_URL", database_url)
    port = start_pooler(mode, size=4 if mode == "transaction" else 60)
    system = make_system(_at_port(database_url, port), valkey_url)
    assert list(examine_server(system.database)) == []
    for name, value in system.variables.items():
        monkeypatch.setenv(name, value)
    assert command("db", "upgrade").returncode == 0
    system.start("relay")
    killed = system.start_worker()
    with ThreadPoolExecutor(8) as threads:
        accepted = list(
            threads.map(
                lambda number: accept(
                    system.database, system.request(f"[[wait=0.1]] Turn {number}")
                ),
                range(60),
            )
        )
    # Its lock must end with it, through the pooler too.
    killed.kill()
    system.start_worker()
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)
    assert broken("suitability") == []


@pytest.mark.parametrize("elsewhere", [None, "other database", "the pooler"])
def test_a_pooler_without_a_direct_url_to_the_same_database_is_refused(
    pooled_url: str,
    postgres_url: str,
    elsewhere: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", pooled_url)
    monkeypatch.setenv("TURNMILL_BROKER__URL", NO_BROKER)
    direct = {"other database": postgres_url, "the pooler": pooled_url}
    if elsewhere is not None:
        monkeypatch.setenv("TURNMILL_DATABASE__DIRECT_URL", direct[elsewhere])
    (said,) = broken("suitability")
    assert "a notification does not arrive" in said
    refused = command("db", "upgrade")
    assert refused.returncode == USAGE
    assert "TURNMILL_DATABASE__DIRECT_URL" in refused.stderr


def test_every_process_refuses_to_start_on_what_cannot_carry_it(
    pooled_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", pooled_url)
    monkeypatch.setenv("TURNMILL_BROKER__URL", NO_BROKER)
    monkeypatch.setenv("TURNMILL_ENGINE__NAME", "echo")
    # Each tries for a quarter of a minute.
    with ThreadPoolExecutor() as pool:
        refusals = list(pool.map(command, ["api", "relay", "worker"]))
    for refused in refusals:
        assert refused.returncode == USAGE
        assert "The database cannot carry Turnmill" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "default",
    [
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "client_encoding = 'LATIN1'",
        "idle_session_timeout = '1s'",
        "jit = on",
        "synchronous_commit = off",
        "statement_timeout = '50ms'",
        "lock_timeout = '50ms'",
        "transaction_timeout = '50ms'",
        "idle_in_transaction_session_timeout = '50ms'",
        "IntervalStyle = iso_8601",
        "extra_float_digits = -15",
        "standard_conforming_strings = off",
    ],
)
def test_no_default_of_the_database_reaches_our_sessions(
    database_url: str, default: str, open_database: Callable[..., Database]
) -> None:
    name = default.partition(" ")[0]
    wanted = {
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "DateStyle": "ISO",
        "TimeZone": "UTC",
        "client_encoding": "UTF8",
        "idle_session_timeout": "0",
        "jit": "off",
        "synchronous_commit": "on",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "transaction_timeout": "0",
        "idle_in_transaction_session_timeout": "10s",
        "IntervalStyle": "postgres",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
    }[name]
    set_default(database_url, default)
    database = open_database(database_url)
    show = f"SELECT current_setting('{name}') AS value, clock_timestamp() AS now, '客服' AS text"

    async def ask() -> Any:
        async with await database.connect_async() as link:
            return await (await link.execute(show)).fetchone()

    with database.connect() as link:
        rows = [*database.run(show), link.execute(show).fetchone(), asyncio.run(ask())]
    assert [row.value.split(",")[0] for row in rows] == [wanted] * 3
    assert {row.text for row in rows} == {"客服"}
    assert list(examine_server(database)) == []


@pytest.mark.parametrize("level", ["local", "remote_write", "remote_apply"])
def test_an_operators_choice_of_what_a_commit_waits_for_stays(
    database_url: str, level: str, open_database: Callable[..., Database]
) -> None:
    alter(database_url, f"SET synchronous_commit = {level}")
    with open_database(database_url).connect() as link:
        assert link.execute("SHOW synchronous_commit").fetchone() == (level,)


@pytest.mark.parametrize(
    ("default", "mend"),
    [
        ("default_transaction_isolation = 'repeatable read'", "'read committed'"),
        ("default_transaction_read_only = on", "off"),
        ("synchronous_commit = off", "on"),
        ("statement_timeout = '50ms'", "0"),
        ("lock_timeout = '50ms'", "0"),
        ("transaction_timeout = '1s'", "0"),
        ("idle_in_transaction_session_timeout = '1s'", "'10s'"),
    ],
)
def test_behind_a_pooler_a_default_that_would_fail_calls_is_refused_with_its_remedy(
    pooled_url: str,
    database_url: str,
    default: str,
    mend: str,
    open_database: Callable[..., Database],
) -> None:
    name = default.partition(" ")[0]
    set_default(database_url, default)
    with pytest.raises(SettingsError) as refused:
        refuse_unsuitable(open_database(pooled_url, direct_url=database_url))
    assert name in str(refused.value)
    remedy = re.search(r"(ALTER ROLE .*), and let the pooler", str(refused.value))
    assert remedy is not None
    assert remedy[1].endswith(f"{name} = {mend}")


def test_behind_a_pooler_the_printed_remedy_makes_the_database_suitable(
    start_pooler: Callable[..., int], database_url: str, open_database: Callable[..., Database]
) -> None:
    alter(database_url, "SET statement_timeout = '50ms'")
    pooled_url = _at_port(database_url, start_pooler("transaction", size=2))
    (said,) = examine_server(open_database(pooled_url, direct_url=database_url))
    with open_database(database_url).connect() as link:
        link.execute(said.fix.partition(",")[0])
        # What PgBouncer does at RECONNECT.
        link.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert list(examine_server(open_database(pooled_url, direct_url=database_url))) == []


def test_limits_that_no_statement_of_ours_reaches_pass_behind_a_pooler(
    pooled_url: str, database_url: str, open_database: Callable[..., Database]
) -> None:
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        alter(database_url, f"SET {name} = '30s'")
    assert list(examine_server(open_database(pooled_url, direct_url=database_url))) == []


def test_a_search_path_without_a_schema_is_refused_and_one_that_chooses_a_schema_is_obeyed(
    make_system: Callable[..., Any], postgres_url: str, open_database: Callable[..., Database]
) -> None:
    url = create_database(postgres_url, "chosen_schema")
    alter(url, "SET search_path = nowhere")
    with pytest.raises(SettingsError, match=r"search_path is .nowhere.*CREATE SCHEMA"):
        refuse_unsuitable(open_database(url))
    with psycopg.connect(url, autocommit=True) as link:
        link.execute("CREATE SCHEMA app")
    chosen = f"{url}?options=-csearch_path%3Dapp"
    assert list(examine_server(open_database(chosen))) == []
    upgrade(chosen)
    system = make_system(chosen, NO_BROKER)
    accept(system.database, system.request("hello"))
    with psycopg.connect(url) as link:
        assert link.execute("SELECT count(*) FROM app.turns").fetchone() == (1,)


def test_the_printed_remedy_is_a_statement_whatever_the_database_is_called(
    postgres_url: str, open_database: Callable[..., Database]
) -> None:
    url = create_database(postgres_url, "my-db")
    with psycopg.connect(postgres_url, autocommit=True) as link:
        link.execute('ALTER DATABASE "my-db" SET search_path = nowhere')
        (said,) = examine_server(open_database(url))
        remedy = re.search(r"\((ALTER ROLE .*)\)", said.fix)
        assert remedy is not None
        link.execute(remedy[1])
    assert list(examine_server(open_database(url))) == []


def test_a_schema_that_the_pooler_does_not_choose_is_refused(
    pooled_url: str, database_url: str, open_database: Callable[..., Database]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as link:
        link.execute("CREATE SCHEMA app")
    direct_url = f"{database_url}?options=-csearch_path%3Dapp"
    with pytest.raises(SettingsError, match="made in the schema app, and looked for in public"):
        refuse_unsuitable(open_database(pooled_url, direct_url=direct_url))


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'", "encoding is LATIN1"),
        ("ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'", "encoding is SQL_ASCII"),
        ("ENCODING 'UTF8' LC_CTYPE 'C'", "LC_CTYPE is C"),
        ("ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'POSIX'", "LC_CTYPE is C"),
    ],
)
def test_a_database_that_cannot_hold_or_search_every_text_is_refused(
    postgres_url: str, made: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{postgres_url.rpartition('/')[0]}/unsuitable"
    with psycopg.connect(postgres_url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE unsuitable TEMPLATE template0 {made}")
        try:
            monkeypatch.setenv("TURNMILL_DATABASE__URL", url)
            monkeypatch.setenv("TURNMILL_BROKER__URL", NO_BROKER)
            assert any(named in detail for detail in broken("suitability"))
            refused = command("db", "upgrade")
            assert refused.returncode == USAGE
            assert named in refused.stderr
            assert "CREATE DATABASE unsuitable OWNER " in refused.stderr
            assert "TEMPLATE template0 ENCODING 'UTF8'" in refused.stderr
            with psycopg.connect(url) as made_link:
                row = made_link.execute("SELECT to_regclass('turns')").fetchone()
            assert row == (None,)
        finally:
            link.execute("DROP DATABASE unsuitable WITH (FORCE)")


def test_a_database_of_another_user_is_refused_with_the_statement_that_mends_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by an administrator, as most are; `public` is its owner's alone."""
    administrator = create_database(postgres_url, "its-own")
    address = urlsplit(administrator)
    url = address._replace(netloc=f"newcomer:secret@{address.hostname}:{address.port}").geturl()
    with psycopg.connect(postgres_url, autocommit=True) as link:
        link.execute("CREATE ROLE newcomer LOGIN PASSWORD 'secret'")
        try:
            monkeypatch.setenv("TURNMILL_DATABASE__URL", url)
            monkeypatch.setenv("TURNMILL_BROKER__URL", NO_BROKER)
            refused = command("db", "upgrade")
            assert refused.returncode == USAGE
            assert "newcomer may not make tables in the schema public" in refused.stderr
            statement = 'ALTER DATABASE "its-own" OWNER TO newcomer'
            assert statement in refused.stderr
            link.execute(statement)
            assert command("db", "upgrade").returncode == 0
            assert broken("suitability") == []
            with psycopg.connect(administrator) as restoring:
                restoring.execute("ALTER TABLE turns OWNER TO CURRENT_USER")
            assert any("may not write" in detail for detail in broken("suitability"))
        finally:
            link.execute('DROP DATABASE "its-own" WITH (FORCE)')
            link.execute("DROP ROLE newcomer")


def test_our_own_server_is_suitable_and_an_older_folder_becomes_so_at_its_next_start(
    server_folder: Path, open_database: Callable[..., Database]
) -> None:
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        assert list(examine_server(open_database(postgres.url))) == []
        with psycopg.connect(postgres.url, autocommit=True) as link:
            link.execute("UPDATE pg_database SET datctype = 'C'")
        upgrade(postgres.url)
        found = list(examine_server(open_database(postgres.url)))
        assert ["LC_CTYPE" in each.detail for each in found] == [True]
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        assert list(examine_server(open_database(postgres.url))) == []


def test_a_check_of_the_doctor_that_crashes_is_broken_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from turnmill.producer.cli.app import app

    def crash(_: None) -> Any:
        raise ZeroDivisionError("the check itself")

    monkeypatch.setitem(installation.CHECKS, "engines", crash)
    for words in (["doctor", "--json"], ["doctor", "--json", "--strict"]):
        with pytest.raises(SystemExit) as ended:
            app(words)
        assert ended.value.code == BROKEN
        findings = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
        assert findings["engines"]["level"] == "broken"
        assert "the check itself" in findings["engines"]["detail"]


def test_a_database_that_is_away_refuses_the_migration_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", "postgresql://u:hunter2@127.0.0.1:1/db")
    refused = command("db", "upgrade")
    assert "PostgreSQL is unavailable" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hunter2" not in refused.stderr
