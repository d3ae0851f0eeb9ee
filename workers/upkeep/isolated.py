"""Sweeps: a turn that PostgreSQL refuses to change fails alone, and the log names it."""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog

from turnmill.schemas.postgres.database import OUTAGES

log = structlog.get_logger()

ResultT = TypeVar("ResultT")


def isolated(run: Callable[[list[UUID]], list[ResultT]], turn_ids: list[UUID]) -> list[ResultT]:
    """Run a sweep's step for these turns at once; if that fails, for each turn alone.

    Return the results of the turns that did not fail. `run` must be all or nothing. Whatever
    concerns the server or our rights on it, and no single row, is raised.
    """
    if not turn_ids:
        return []
    try:
        return run(turn_ids)
    except (*OUTAGES, psycopg.errors.InsufficientPrivilege):
        raise
    except psycopg.Error as error:
        if len(turn_ids) == 1:
            _report(turn_ids[0], error)
            return []
    return [result for turn_id in turn_ids for result in isolated(run, [turn_id])]


def _report(turn_id: UUID, error: psycopg.Error) -> None:
    """Without the server's text, which may quote what is in the row."""
    log.error(
        "turn.sweep_failed",
        turn_id=turn_id.hex,
        error=type(error).__name__,
        sqlstate=error.sqlstate,
        constraint=error.diag.constraint_name,
    )
