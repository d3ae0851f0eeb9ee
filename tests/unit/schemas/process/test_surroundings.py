"""Processes among strangers' variables, without a home or an account, on odd terminals."""

import io
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from turnmill.infra.embedded.folder import DataFolder
from turnmill.infra.embedded.stack import Stack
from turnmill.producer.cli.stack import _is_running
from turnmill.producer.cli.talk import _read_line
from turnmill.schemas.errors import (
    InvalidInput,
    SettingsError,
)
from turnmill.schemas.process import surroundings
from turnmill.schemas.settings import (
    STACK_FILE,
    Settings,
    load_settings,
    variable_names,
)

USAGE, FAILED = 64, 70


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable and no running stack of this machine is seen by these tests."""
    for name in [name for name in os.environ if name.upper().startswith("TURNMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    return tmp_path


def turnmill(*words: str | bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "turnmill.producer.cli", *words],
        env=os.environ | variables,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("service", ["", "_API", "_API_V2", "_DATABASE", "_BROKER", "_FLOWER"])
def test_variables_that_kubernetes_makes_of_services_are_no_settings(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "SERVICE_PORT_HTTP_METRICS": "9000",
        "PORT": "tcp://10.0.0.11:8000",
        "PORT_8000_TCP": "tcp://10.0.0.11:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.11",
        "PORT_53_UDP": "udp://10.0.0.11:53",
    }.items():
        monkeypatch.setenv(f"TURNMILL{service}_{name}", value)
    assert load_settings() == Settings()


@pytest.mark.parametrize("name", ["TURNMILL_PORT", "TURNMILL_API_PORT", "TURNMILL_SERVICE_HOSTS"])
def test_a_variable_that_somebody_misspelt_is_still_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "8080")
    with pytest.raises(SettingsError, match=f"{name} is not a setting"):
        load_settings()


def test_an_empty_variable_is_as_good_as_none(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_settings()
    for name in variable_names():
        if name != "TURNMILL_DATA":
            monkeypatch.setenv(name, "")
    assert load_settings() == expected
    stack = Stack(data)
    assert [type(server).__name__ for server in stack._servers] == [
        "EmbeddedPostgres",
        "EmbeddedValkey",
    ]


def test_a_stack_with_a_folder_of_its_own_looks_at_the_settings_first(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    refused = turnmill("up", "--data", str(folder), TURNMILL_BROKER__URL="rabbit://host")
    assert refused.returncode == USAGE
    assert b"TURNMILL_BROKER__URL: must start with amqp://" in refused.stderr
    assert not folder.exists()


def test_without_a_home_and_an_account_there_is_still_a_data_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_account(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_DATA_HOME", "TURNMILL_DATA", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_account)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert load_settings().data == Path("/var/lib/turnmill")
    environ: dict[str, str] = {}
    surroundings._name_the_account(environ)
    assert environ == {"LOGNAME": "turnmill"}


@pytest.fixture
def nobody(data: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command under a user id that no account has and without a home, as on OpenShift.

    It may read every file: the tests' Python may lie in root's home.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can choose a user id")
    data.chmod(0o755)
    for folder in (data, *list(data.parents)[:2]):
        folder.chmod(0o755)
    os.chown(data, 54321, 54321)
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "LOGNAME")}
    uid = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    reads = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    if subprocess.run([*uid, *reads, sys.executable, "-c", ""], check=False).returncode != 0:
        pytest.skip("this container lets nobody keep a capability")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*uid, *reads, sys.executable, "-m", "turnmill.producer.cli", *words],
            env=kept, cwd="/", capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    return run


def test_a_user_id_without_an_account_is_no_obstacle_but_to_initdb(
    nobody: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    looked = nobody("doctor")
    assert (looked.returncode, looked.stderr) == (0, "")
    assert "All is well" in looked.stdout
    refused = nobody("up")
    assert refused.returncode == FAILED
    assert "no data folder for user id 54321, which no account has" in refused.stderr
    assert "TURNMILL_DATABASE__URL" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "words", [["ask", b"caf\xe9"], ["batch", "run", b"caf\xe9.csv"], ["ask", b"\xed\xa0\x80"]]
)
def test_an_argument_that_is_no_text_is_refused(words: list[str | bytes]) -> None:
    refused = turnmill(*words, PYTHONUTF8="1")
    assert refused.returncode == USAGE
    assert f"Argument {len(words)} is not valid UTF-8".encode() in refused.stderr
    assert b"Traceback" not in refused.stderr


def test_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    with pytest.raises(InvalidInput, match="Standard input is not valid UTF-8"):
        _read_line()


@pytest.mark.parametrize("words", [["doctor"], ["up", "--help"], ["ask", "→ 我的订单"]])
@pytest.mark.parametrize(
    "terminal",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_a_terminal_that_lacks_letters_shows_what_it_can(
    terminal: dict[str, str], words: list[str]
) -> None:
    shown = turnmill(*words, TURNMILL_DATABASE__URL="postgresql://u@127.0.0.1:1/→", **terminal)
    assert b"Traceback" not in shown.stderr
    assert shown.stdout or shown.stderr


def test_a_stack_runs_as_long_as_it_holds_its_lock_whoever_has_its_process_id(data: Path) -> None:
    (data / STACK_FILE).write_text(json.dumps({"pid": os.getpid(), "settings": {}}))
    assert not _is_running(data)
    lock = DataFolder(data).lock("stack")
    assert _is_running(data)
    lock.release()
    assert not _is_running(data)


def test_variables_of_other_programs_are_kept_out_and_credentials_passed_on() -> None:
    strangers = {
        "PGHOSTADDR": "10.0.0.1", "PGSERVICE": "other", "PGOPTIONS": "-c x=y", "PGTZ": "Mars",
        "PGTARGETSESSIONATTRS": "standby", "PGSSLNEGOTIATION": "direct", "PGGSSENCMODE": "require",
        "CELERY_CUSTOM_WORKER_POOL": "x:y", "CELERY_RDBSIG": "1", "FLOWER_UNIX_SOCKET": "/x",
        "DJANGO_SETTINGS_MODULE": "shop.settings", "WEB_CONCURRENCY": "auto",
    }  # fmt: skip
    passed_on = {
        "PGPASSFILE": "/secrets/pgpass", "PGSSLROOTCERT": "/secrets/ca", "PGSSLMODE": "verify-full",
        "HOME": "/home", "HTTPS_PROXY": "http://proxy:3128", "CELERY_BROKER_URL": "redis://other",
    }  # fmt: skip
    environ = {**strangers, **passed_on, "NO_PROXY": "intranet,localhost"}
    surroundings.keep_out_foreign_variables(environ)
    proxied = {name: environ.pop(name).split(",") for name in ("NO_PROXY", "no_proxy")}
    assert environ == passed_on
    assert proxied["NO_PROXY"] == ["intranet", "localhost", "127.0.0.1", "::1"]
    assert proxied["no_proxy"] == proxied["NO_PROXY"]


@pytest.mark.parametrize(
    ("variable", "taken", "refused"),
    [
        ("PGSSLMODE", "verify-full", "required"),
        ("PGCHANNELBINDING", "require", "yes"),
        ("PGREQUIREAUTH", "scram-sha-256, !md5", "scram"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3", "1.3"),
        ("PGSSLMAXPROTOCOLVERSION", "tlsv1.2", "TLSv2"),
    ],
)
def test_a_credential_that_libpq_cannot_read_is_refused_before_anything_connects(
    variable: str, taken: str, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (taken, ""):
        monkeypatch.setenv(variable, value)
        load_settings()
        with suppress(psycopg.OperationalError), psycopg.connect("host=127.0.0.1 port=1"):
            pass
    monkeypatch.setenv(variable, refused)
    with pytest.raises(psycopg.OperationalError, match="invalid"):
        psycopg.connect("host=127.0.0.1 port=1")
    with pytest.raises(SettingsError, match=f"{variable} is not what PostgreSQL's library takes"):
        load_settings()
