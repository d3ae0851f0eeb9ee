"""What most commands need: the settings, the database, and the tenant they act for."""

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import structlog
import typer

from turnmill.producer.operations.unreached import is_configured, remedy_for
from turnmill.producer.tenants import ensure_defaults, find_tenant
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DEFAULT_TENANT, Settings, load_settings

TenantOption = Annotated[
    str | None,
    typer.Option("--tenant", help="Whose; TURNMILL_TENANT or 'default' when left out."),
]


@dataclass(frozen=True, slots=True)
class System:
    settings: Settings
    database: Database
    tenant_id: UUID
    #: What follows a suggested command, so that it acts for the same tenant.
    suffix: str = ""


@contextmanager
def open_system(settings: Settings | None = None, *, tenant: str | None = None) -> Iterator[System]:
    """Open the configured system, or the embedded stack that runs on this machine.

    Raises:
        DatabaseUnavailable: there is none, with what to do about it.
        NotFound: there is no such tenant.
    """
    settings = settings or load_settings()
    _log_warnings()
    database = Database(settings.database)
    try:
        try:
            tenant_id = ensure_defaults(database, settings)
        except DatabaseUnavailable as error:
            raise DatabaseUnavailable(f"{error.message}\n{_advice(settings, error)}") from error
        name = tenant or settings.tenant
        if name != DEFAULT_TENANT:
            tenant_id = find_tenant(database, name)
        suffix = f" --tenant {shlex.quote(tenant)}" if tenant else ""
        yield System(settings, database, tenant_id, suffix)
    finally:
        database.close()


def _advice(settings: Settings, error: DatabaseUnavailable) -> str:
    if is_configured(settings):
        return remedy_for(error.message)
    return (
        f"No embedded stack runs from {settings.data}. Start one with 'turnmill up', or point "
        "TURNMILL_DATABASE__URL at your PostgreSQL."
    )


def _log_warnings() -> None:
    """What a command prints is its result: of logs, people see warnings, beside it."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
