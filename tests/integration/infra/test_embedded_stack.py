"""One stack from start to end; a small stand-in plays Turnmill's own processes."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from typer.main import get_command

from turnmill.infra.embedded.child import answers
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.stack import Stack
from turnmill.infra.migrations import upgrade
from turnmill.producer.cli.app import app
from turnmill.producer.cli.stack import choose_model
from turnmill.schemas.errors import StackError
from turnmill.schemas.settings import load_settings

Eventually = Callable[..., None]

#: Plays `turnmill db upgrade`, `api`, `relay`, `worker` and `flower`.
STAND_IN = """
import os, signal, socket, sys, time, uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
import psycopg
from turnmill.schemas.settings import load_settings
from turnmill.schemas.store.fleet.liveness import LIVENESS_LOCK_CLASS

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
settings = load_settings()


class Server(HTTPServer):
    address_family = socket.AF_INET6 if ":" in settings.api.host else socket.AF_INET


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


match sys.argv[1:]:
    case ["db", "upgrade"]:
        from turnmill.infra.migrations import upgrade
        upgrade(settings.database.url.get_secret_value())
    case ["api"]:
        Server((settings.api.host, settings.api.port), Handler).serve_forever()
    case ["flower"]:
        assert settings.flower.password
        Server((settings.flower.host, settings.flower.port), Handler).serve_forever()
    case ["worker"]:
        lanes = list(settings.worker.lanes)
        print("lanes", *lanes, flush=True)
        with psycopg.connect(settings.database.url.get_secret_value(), autocommit=True) as link:
            key = link.execute(
                "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots)"
                " VALUES (%s, %s, %s, 'm', 'e', %s, 1) RETURNING lock_key",
                (uuid.uuid4(), socket.gethostname(), os.getpid(), lanes),
            ).fetchone()
            link.execute("SELECT pg_advisory_lock(%s, %s)", (LIVENESS_LOCK_CLASS, *key))
            time.sleep(600)
    case ["relay"]:
        time.sleep(600)
"""

OWNER = """
import sys, time
from turnmill.infra.embedded.stack import Stack
with Stack(sys.argv[1], program=sys.argv[2:]) as stack:
    print(*filter(None, map(stack.pid_of, ("postgres", "valkey", "api", "worker"))), flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def servers_are_installed(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("postgres")
    request.getfixturevalue("valkey")


@pytest.fixture
def program(server_folder: Path) -> list[str]:
    path = server_folder / "stand_in.py"
    path.write_text(STAND_IN)
    return [sys.executable, str(path)]


@pytest.fixture
def data(server_folder: Path) -> Path:
    return server_folder / "data"


def stack_file(data: Path) -> Path:
    return data / "stack.json"


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def own_children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_a_stack_starts_in_order_and_leaves_nothing_behind(data: Path, program: list[str]) -> None:
    before = own_children()
    steps: list[str] = []
    with Stack(data, program=program, progress=steps.append) as stack:
        assert answers(f"{stack.api_url}/readyz")
        assert answers(f"{stack.flower_url}/")
        assert stack.pid_of("relay") is not None
        assert "lanes interactive batch" in stack.log_of("worker").read_text()
        assert "lanes quarantine" in stack.log_of("quarantine").read_text()
        secrets = {urlsplit(url).password for url in (stack.database_url, stack.broker_url)}
        for child in psutil.Process().children(recursive=True):
            seen = " ".join([child.name(), *child.cmdline()])
            assert not [secret for secret in (*secrets, stack.flower_password) if secret in seen]
    assert steps[:4] == [
        "Starting PostgreSQL",
        "Starting Valkey",
        "Starting the database migration",
        "Starting the API",
    ]
    assert steps[-2:] == ["Stopping Valkey", "Stopping PostgreSQL"]
    assert not stack_file(data).exists()
    assert own_children() == before


def test_other_commands_find_the_stack_by_its_file(data: Path, program: list[str]) -> None:
    with Stack(data, program=program, components=()) as stack:
        assert stat.S_IMODE(stack_file(data).stat().st_mode) == 0o600
        assert json.loads(stack_file(data).read_text())["pid"] == os.getpid()
        settings = load_settings(data=data)
        assert settings.database.url.get_secret_value() == stack.database_url
        assert settings.broker.url.get_secret_value() == stack.broker_url
        assert settings.api.port == int(stack.api_url.rpartition(":")[2])
        assert settings.flower.password.get_secret_value() == stack.flower_password


def test_up_serves_the_model_of_its_option(
    data: Path, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And other commands, which do not have the option, find it."""
    monkeypatch.setenv("TURNMILL_ENGINE__MODEL", "owner/another")
    up: Any = get_command(app).commands["up"]  # type: ignore[attr-defined]
    assert "--model" in [name for each in up.params for name in each.opts]
    choose_model("owner/better")
    with Stack(data, program=program, components=()):
        monkeypatch.delenv("TURNMILL_ENGINE__MODEL")
        assert load_settings(data=data).engine.model_name == "better"
    assert load_settings(data=data).engine.model_name == "smollm2-135m-instruct"


def test_everything_durable_is_there_again_after_a_stop(data: Path, program: list[str]) -> None:
    with Stack(data, program=program, components=["worker"]) as stack:
        before = stack.settings
    with Stack(data, program=program, components=["worker"]) as stack:
        assert stack.settings == before
        with psycopg.connect(stack.database_url) as link:
            assert link.execute("SELECT count(*) FROM worker_liveness").fetchone() == (2,)


def test_a_stop_during_the_start_is_obeyed(
    data: Path, program: list[str], eventually: Eventually
) -> None:
    before = own_children()
    stack = Stack(data, program=program)
    result: list[bool] = []
    starter = threading.Thread(target=lambda: result.append(stack.start()))
    starter.start()
    eventually(stack_file(data).exists)
    stack.request_stop()
    starter.join(10)
    assert result == [False]
    assert not stack_file(data).exists()
    assert own_children() == before


def test_a_requested_stop_ends_the_wait(data: Path, program: list[str]) -> None:
    stack = Stack(data, program=program, components=["relay"])
    assert stack.start()
    assert not stack.wait(0.1)
    stack.request_stop()
    assert stack.wait(20)
    assert not stack_file(data).exists()


def test_a_killed_worker_comes_back(data: Path, program: list[str], eventually: Eventually) -> None:
    with Stack(data, program=program, components=["worker"]) as stack:
        killed = stack.pid_of("worker")
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: stack.pid_of("worker") not in (None, killed))


def test_a_killed_stack_takes_all_along_and_starts_again(
    data: Path, program: list[str], eventually: Eventually
) -> None:
    command = [sys.executable, "-c", OWNER, str(data), *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        owner.kill()
    assert len(pids) == 4
    with Stack(data, program=program, components=["worker"]) as stack:
        assert stack.pid_of("worker") is not None
    eventually(lambda: all(map(is_gone, pids)))


def test_stacks_stand_side_by_side(server_folder: Path, program: list[str]) -> None:
    with (
        Stack(server_folder / "one", program=program, components=["api"]) as one,
        Stack(server_folder / "two", program=program, components=["api"]) as two,
    ):
        urls = [
            (stack.database_url, stack.broker_url, stack.api_url, stack.flower_url)
            for stack in (one, two)
        ]
        assert all(first != second for first, second in zip(*urls, strict=True))
        assert answers(f"{one.api_url}/readyz")
        assert answers(f"{two.api_url}/readyz")


def test_a_second_stack_on_the_same_folder_is_refused(data: Path, program: list[str]) -> None:
    with Stack(data, program=program, components=()) as stack:
        with pytest.raises(StackError, match="in use by another stack"):
            Stack(data, program=program).start()
        assert stack_file(data).exists()
        assert stack.pid_of("postgres") is not None


def test_a_delivery_worker_runs_where_there_are_channels(data: Path, program: list[str]) -> None:
    with Stack(data, program=program, components=["deliver"]) as stack:
        assert not stack.log_of("deliver").exists()
    (data / "turnmill.toml").write_text(
        '[channels.desk]\nkind = "webhook"\nbot = "echo"\n'
        'secret = { env = "DESK" }\nurl = "http://127.0.0.1:1/"\n'
    )
    with Stack(data, program=program, components=["deliver"]) as stack:
        assert stack.pid_of("deliver") is not None


def test_a_database_of_the_environment_is_used_instead(
    data: Path, program: list[str], empty_database_url: str
) -> None:
    environment = {"TURNMILL_DATABASE__URL": empty_database_url}
    with Stack(data, program=program, components=["worker"], environment=environment) as stack:
        assert stack.database_url == empty_database_url
        assert not (data / "postgres").exists()
        assert stack.pid_of("worker") is not None


def test_a_port_of_the_environment_must_be_free(data: Path, program: list[str]) -> None:
    with Stack(data, program=program, components=["api"]) as stack:
        taken = stack.api_url.rpartition(":")[2]
        environment: Mapping[str, str] = {"TURNMILL_API__PORT": taken}
        other = Stack(data.with_name("other"), program=program, environment=environment)
        with pytest.raises(StackError, match=f"TURNMILL_API__PORT is {taken}, but another"):
            other.start()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "localhost"])
def test_a_stack_is_up_at_the_address_and_any_port_of_the_environment(
    data: Path, program: list[str], empty_database_url: str, valkey_url: str, host: str
) -> None:
    environment = {
        "TURNMILL_DATABASE__URL": empty_database_url,
        "TURNMILL_BROKER__URL": valkey_url,
        "TURNMILL_API__HOST": host,
        "TURNMILL_API__PORT": "0",
        "TURNMILL_FLOWER__HOST": host,
    }
    parts = ["api", "flower"]
    with Stack(data, program=program, components=parts, environment=environment) as stack:
        assert answers(f"{stack.api_url}/readyz")
        assert answers(f"{stack.flower_url}/")
        port = json.loads(stack_file(data).read_text())["settings"]["api"]["port"]
        assert stack.api_url.endswith(f":{port}")


#: What an ordinary role may not do, and an owner must be able to.
_FORBIDDEN = ("COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('PG_VERSION')",
              "CREATE ROLE other", "CREATE DATABASE other")  # fmt: skip


def test_the_application_owns_its_database_and_is_no_superuser(
    data: Path, program: list[str]
) -> None:
    with Stack(data, program=program, components=["worker"]) as stack:
        with psycopg.connect(stack.database_url, autocommit=True) as link:
            for statement in _FORBIDDEN:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    link.execute(statement)
            link.execute("ALTER TABLE turns ADD COLUMN probe int")
            link.execute("CREATE TABLE probe (number int)")
        superuser = json.loads((data / "secrets.json").read_text())["postgres"]
        assert superuser not in stack_file(data).read_text()


def test_a_folder_whose_application_was_a_superuser_is_handed_over_with_its_rows(
    data: Path, program: list[str]
) -> None:
    with EmbeddedPostgres(data, durable=False) as postgres:
        with psycopg.connect(postgres.url, autocommit=True) as link:
            link.execute("ALTER DATABASE turnmill OWNER TO turnmill")
            link.execute("DROP ROLE turnmill_app")
        upgrade(postgres.url)
        with psycopg.connect(postgres.url, autocommit=True) as link:
            link.execute("CREATE TABLE kept (number int GENERATED ALWAYS AS IDENTITY, name text)")
            link.execute("INSERT INTO kept (name) VALUES ('row')")
    with Stack(data, program=program, components=["worker"]) as stack:
        upgrade(stack.database_url)
        with psycopg.connect(stack.database_url) as link:
            link.execute("INSERT INTO kept (name) VALUES ('another')")
            assert link.execute("SELECT count(*) FROM kept").fetchone() == (2,)
            others = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            mine = "AND relowner <> 'turnmill_app'::regrole"
            assert link.execute(f"{others} {mine}").fetchall() == []


def test_variables_for_real_servers_do_not_keep_a_stack_from_its_own(
    data: Path, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGCHANNELBINDING", "require")
    monkeypatch.setenv("PGREQUIREAUTH", "gss")
    monkeypatch.setenv("PGSSLROOTCERT", "/nowhere/ca.pem")
    with Stack(data, program=program, components=["worker"]) as stack:
        assert stack.pid_of("worker") is not None


def test_an_address_of_another_machine_is_refused_at_once(data: Path, program: list[str]) -> None:
    environment = {"TURNMILL_API__HOST": "192.0.2.1"}
    with pytest.raises(
        StackError, match=r"TURNMILL_API__HOST is 192\.0\.2\.1, which is no address"
    ):
        Stack(data, program=program, environment=environment).start()


def test_a_start_that_is_refused_leaves_a_folder_as_it_was(
    data: Path, program: list[str], server_folder: Path
) -> None:
    environment = {"TURNMILL_API__HOST": "192.0.2.1"}
    kept = server_folder / "kept"
    kept.mkdir(mode=0o711)
    (kept / "turnmill.toml").touch()
    for folder in (data / "new", kept):
        with pytest.raises(StackError):
            Stack(folder, program=program, environment=environment).start()
    assert not data.exists()
    assert (kept / "turnmill.toml").exists()


def test_a_process_that_cannot_start_shows_its_last_lines(data: Path, server_folder: Path) -> None:
    before = own_children()
    broken = server_folder / "broken.py"
    broken.write_text("raise SystemExit('the schema is newer than this program')")
    with pytest.raises(StackError, match="the schema is newer than this program"):
        Stack(data, program=[sys.executable, str(broken)]).start()
    assert own_children() == before
    assert not stack_file(data).exists()
