"""Say at once that nobody serves a bot's model, instead of letting its caller wait for nothing."""

import time
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import ModelUnavailable
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS, seen_within

#: How long a model that was served is believed to be, seconds.
TRUST_S = 2.0
#: Bots remembered, at most.
MAX_BOTS = 4096


class _Unserved(NamedTuple):
    model: str
    has_others: bool


#: Workers keep their row for an hour after they died. One that loads its engine has none yet.
_UNSERVED = f"""
WITH worker AS (
    SELECT model, lock_key IN ({HELD_LOCKS}) AS is_alive, {seen_within("%(grace_s)s")} AS is_recent
    FROM worker_liveness
)
SELECT b.model, EXISTS (SELECT FROM worker WHERE is_alive) AS has_others
FROM bots b WHERE b.tenant_id = %(tenant)s AND b.name = %(bot)s AND b.deleted_at IS NULL
  AND NOT EXISTS (SELECT FROM worker w WHERE w.model = b.model AND (w.is_alive OR w.is_recent))
"""


class _Served(NamedTuple):
    model: str


_SERVED = f"SELECT DISTINCT model FROM worker_liveness WHERE lock_key IN ({HELD_LOCKS}) ORDER BY 1"

log = structlog.get_logger()


class ServedModels:
    """What one process knows of which bots are served. Threads share it."""

    def __init__(self, grace_s: float) -> None:
        """`grace_s`: seconds that workers may be away, as while they are restarted."""
        self._grace_s = grace_s
        self._since = time.monotonic()
        self._served_until: dict[tuple[UUID, str], float] = {}

    def require(self, database: Database, tenant_id: UUID, bot: str) -> None:
        """Check that a worker serves the bot's model, or did so a moment ago.

        Where no worker lives at all, the system is being started, for as long as this process is
        younger than the grace. A bot that does not exist is not this one's concern.

        Raises:
            ModelUnavailable: nobody serves it.
            DatabaseUnavailable: nobody knows.
        """
        key, now = (tenant_id, bot), time.monotonic()
        if now < self._served_until.get(key, 0.0):
            return
        params = {"tenant": tenant_id, "bot": bot, "grace_s": self._grace_s}
        rows = database.fetch(_Unserved, _UNSERVED, params)
        if rows and (rows[0].has_others or now - self._since > self._grace_s):
            log.warning("call.model_unserved", model=rows[0].model)
            raise ModelUnavailable(
                f"No worker serves the model of '{bot}' now. Try again later, or tell whoever runs "
                "this service."
            )
        if len(self._served_until) >= MAX_BOTS:
            self._served_until.clear()
        self._served_until[key] = now + TRUST_S


def served_models(database: Database) -> list[str]:
    """Name the models that live workers serve."""
    return [row.model for row in database.fetch(_Served, _SERVED)]
