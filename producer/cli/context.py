"""What most commands need: the settings, the database, and the tenant they act for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.database import Database
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.settings import STACK_FILE, Settings, load_settings


@dataclass(frozen=True, slots=True)
class System:
    settings: Settings
    database: Database
    tenant_id: UUID


@contextmanager
def open_system(settings: Settings | None = None) -> Iterator[System]:
    """The configured system, or the embedded stack that runs on this machine.

    Raises:
        DatabaseUnavailable: there is none, with what to do about it.
    """
    settings = settings or load_settings()
    database = Database(settings.database)
    try:
        try:
            tenant_id = ensure_defaults(database, settings)
        except DatabaseUnavailable as error:
            if (settings.data / STACK_FILE).exists():
                raise
            raise DatabaseUnavailable(
                f"{error.message}\nNo embedded stack runs from {settings.data}. Start one with "
                "'turnmill up', or point TURNMILL_DATABASE__URL at your PostgreSQL."
            ) from error
        yield System(settings, database, tenant_id)
    finally:
        database.close()
