"""Sweeps: a row that PostgreSQL refuses to change fails alone, and the log names it."""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog

from turnmill.schemas.postgres.database import OUTAGES

log = structlog.get_logger()

ResultT = TypeVar("ResultT")


def isolated(
    run: Callable[[list[UUID]], list[ResultT]], ids: list[UUID], what: str = "turn"
) -> list[ResultT]:
    """Run a sweep's step for these rows at once; if that fails, for each alone.

    Return the results of the rows that did not fail. `run` must be all or nothing. Whatever
    concerns the server or our rights on it, and no single row, is raised. `what`: whose ids they
    are, for the log.
    """
    if not ids:
        return []
    try:
        return run(ids)
    except (*OUTAGES, psycopg.errors.InsufficientPrivilege):
        raise
    except psycopg.Error as error:
        if len(ids) == 1:
            _report(what, ids[0], error)
            return []
    return [result for each in ids for result in isolated(run, [each], what)]


def _report(what: str, row_id: UUID, error: psycopg.Error) -> None:
    """Without the server's text, which may quote what is in the row."""
    log.error(
        f"{what}.sweep_failed",
        **{f"{what}_id": row_id.hex},
        error=type(error).__name__,
        sqlstate=error.sqlstate,
        constraint=error.diag.constraint_name,
    )
