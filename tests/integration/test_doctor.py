"""The doctor: each thing that keeps an installation from working is named, with the way out."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import psycopg
import pytest

from turnmill.producer import doctor
from turnmill.producer.doctor import Finding, Level, diagnose
from turnmill.schemas.settings import STACK_FILE

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No stack of this machine is found."""
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def configure(database_url: str, broker_url: str) -> None:
        monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
        monkeypatch.setenv("TURNMILL_BROKER__URL", broker_url)

    return configure


def found(what: str, findings: Sequence[Finding] = ()) -> Finding:
    """The one finding of this name."""
    (finding,) = [finding for finding in findings or diagnose() if finding.what == what]
    return finding


def test_a_healthy_installation_has_nothing_broken_and_its_servers_are_told(
    servers: Callable[[str, str], None], database_url: str, broker_url: str
) -> None:
    servers(database_url, broker_url)
    findings = diagnose()
    assert Level.BROKEN not in {finding.level for finding in findings}
    assert {"turnmill", "engines"} <= {finding.what for finding in findings}
    assert found("database", findings).detail.startswith("PostgreSQL 1")
    kind = "amqp" if broker_url.startswith("amqp") else "redis"
    assert found("broker", findings).detail == kind


def test_wrong_settings_end_the_examination_and_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_WORKER__LEASE", "3")
    findings = diagnose()
    assert [finding.what for finding in findings] == ["turnmill", "settings"]
    assert findings[-1].level is Level.BROKEN
    assert "TURNMILL_WORKER__LEASE_S" in findings[-1].detail


def test_without_any_server_it_says_how_to_get_some() -> None:
    finding = found("servers")
    assert finding.level is Level.NOTE
    assert "turnmill up" in finding.detail
    assert "TURNMILL_DATABASE__URL" in finding.detail


def test_a_running_stack_is_examined(data: Path, database_url: str, valkey_url: str) -> None:
    settings = {"database": {"url": database_url}, "broker": {"url": valkey_url}}
    (data / STACK_FILE).write_text(json.dumps({"settings": settings}))
    findings = diagnose()
    assert found("database", findings).level is Level.OK
    assert found("broker", findings).level is Level.OK


def test_a_database_that_does_not_answer_is_broken(servers: Callable[[str, str], None]) -> None:
    servers(f"postgresql://u:hunter2@{NOWHERE}/db", f"redis://:hunter2@{NOWHERE}/0")
    findings = diagnose()
    finding = found("database", findings)
    assert finding.level is Level.BROKEN
    assert "unavailable" in finding.detail
    assert not any("hunter2" in finding.detail for finding in findings)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/db", "postgresql://u:hunter2@h:port/db"])
def test_a_database_url_that_is_none_is_a_finding(
    servers: Callable[[str, str], None], valkey_url: str, url: str
) -> None:
    servers(url, valkey_url)
    finding = found("database")
    assert finding.level is Level.BROKEN
    assert "TURNMILL_DATABASE__URL" in finding.detail
    assert "hunter2" not in finding.detail


def test_a_wrong_password_is_a_finding(
    servers: Callable[[str, str], None], database_url: str, valkey_url: str
) -> None:
    user, _, rest = database_url.partition("@")
    servers(f"{user}hunter2@{rest}", valkey_url)
    finding = found("database")
    assert "password" in finding.detail
    assert "hunter2" not in finding.detail


def test_missing_tables_are_found_with_the_command_that_makes_them(
    servers: Callable[[str, str], None], empty_database_url: str, valkey_url: str
) -> None:
    servers(empty_database_url, valkey_url)
    findings = diagnose()
    assert found("database", findings).level is Level.OK
    finding = found("tables", findings)
    assert (finding.level, finding.detail) == (Level.BROKEN, "missing: turnmill db upgrade")
    with psycopg.connect(empty_database_url) as link:
        link.execute("CREATE TABLE turns ()")
    assert not any(finding.what == "tables" for finding in diagnose())


@pytest.mark.parametrize("url", [f"redis://{NOWHERE}/0", f"amqp://a:hunter2@{NOWHERE}//"])
def test_a_broker_that_does_not_answer_is_broken(
    servers: Callable[[str, str], None], database_url: str, url: str
) -> None:
    servers(database_url, url)
    finding = found("broker")
    assert finding.level is Level.BROKEN
    assert "refused" in finding.detail
    assert "hunter2" not in finding.detail


def test_a_wrong_broker_password_is_a_finding_that_does_not_show_it(
    servers: Callable[[str, str], None], database_url: str, broker_url: str
) -> None:
    credentials, _, host = broker_url.rpartition("@")
    user = credentials.rpartition(":")[0]
    servers(database_url, f"{user}:hunter2@{host}")
    finding = found("broker")
    assert finding.level is Level.BROKEN
    assert "hunter2" not in finding.detail


def test_missing_engines_and_a_missing_stack_are_noted_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        if package == "turnmill":
            return "0"
        raise PackageNotFoundError(package)

    def find_spec(name: str) -> Any:
        return None

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "find_spec", find_spec)
    findings = diagnose()
    assert found("engines", findings).level is Level.NOTE
    assert "pip install 'turnmill[openvino]'" in found("engines", findings).detail
    assert "pip install 'turnmill[embedded]'" in found("embedded stack", findings).detail
