"""Sweeps and claims: a row that PostgreSQL refuses to change fails alone, and the log names it."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog

from turnmill.schemas.postgres.database import OUTAGES

log = structlog.get_logger()

ResultT = TypeVar("ResultT")

#: So long a row that PostgreSQL refuses to change is left alone, seconds. Only so many are looked
#: at in a round, and all of them one by one where one is refused.
REST_S = 60.0
#: What concerns the server or our rights on it, and no single row.
_EVERYBODYS = (*OUTAGES, psycopg.errors.InsufficientPrivilege)


class Resting(dict[UUID, float]):
    """Rows that were refused, and until when (`time.monotonic`) they are passed over."""

    @property
    def ids(self) -> list[UUID]:
        """Those that still rest; the others are forgotten."""
        now = time.monotonic()
        for each in [each for each, until in self.items() if until <= now]:
            del self[each]
        return list(self)

    def add(self, ids: Iterable[UUID]) -> None:
        self.update(dict.fromkeys(ids, time.monotonic() + REST_S))


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
    except _EVERYBODYS:
        raise
    except psycopg.Error as error:
        if len(ids) == 1:
            _report(what, ids[0], error)
            return []
    return [result for each in ids for result in isolated(run, [each], what)]


def all_isolated(
    run: Callable[[UUID | None], list[ResultT]],
    find: Callable[[], list[UUID]],
    what: str,
    resting: Resting,
) -> list[ResultT]:
    """Return the results of running a step for all rows that are due (`None`); if that fails, for
    each alone of those that `find` names.

    A row at which it fails rests; what is raised, and `what`, as in `isolated`.
    """
    try:
        return run(None)
    except _EVERYBODYS:
        raise
    except psycopg.Error:
        found = (first_isolated(run, [each], what, resting) for each in find())
        return [result for results in found for result in results or ()]


def first_isolated(
    run: Callable[[UUID], ResultT | None], ids: list[UUID], what: str, resting: Resting
) -> ResultT | None:
    """Return the first result that is not None, of running a step for these rows in their order.

    A row at which it fails rests; what is raised, and `what`, as in `isolated`.
    """
    for each in ids:
        try:
            result = run(each)
        except _EVERYBODYS:
            raise
        except psycopg.Error as error:
            _report(what, each, error)
            resting.add([each])
        else:
            if result is not None:
                return result
    return None


def _report(what: str, row_id: UUID, error: psycopg.Error) -> None:
    """Without the server's text, which may quote what is in the row."""
    log.error(
        f"{what}.sweep_failed",
        **{f"{what}_id": row_id.hex},
        error=type(error).__name__,
        sqlstate=error.sqlstate,
        constraint=error.diag.constraint_name,
    )
