"""SQL about which worker processes live.

Each worker process holds an advisory lock for as long as it lives, and writes twice a second into
its row of `worker_liveness` when it was last seen. The lock tells at once that a process has died;
`seen_at` tells that one is paused.
"""

from turnmill.schemas.postgres.clock import within
from turnmill.schemas.store.tables import RELAY_NAME

#: Over how many seconds `worker_liveness.ended_lately` counts turns, the longest last.
ENDED_WINDOWS_S = (60.0, 300.0)

#: First key of the advisory locks of live workers (`pg_locks.classid`).
LIVENESS_LOCK_CLASS = 0x7A11

#: The second keys (`worker_liveness.lock_key`) of the locks that are held in this database.
HELD_LOCKS = f"""
SELECT objid FROM pg_locks
WHERE locktype = 'advisory' AND classid = {LIVENESS_LOCK_CLASS} AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


#: Whether a relay runs; one of a release before this one is not seen.
RELAY_RUNS = f"""
EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = '{RELAY_NAME}'
)
"""


def seen_within(seconds: object, row: str = "worker_liveness") -> str:
    """Build the condition that a row's worker was seen in the last `seconds`."""
    return within(f"{row}.seen_at", seconds)
