"""How long a migration may keep `turns` locked."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

#: For each statement while workers live, seconds. Nobody can settle a turn or renew a lease
#: meanwhile: it must be over before leases expire.
MOST_S = 5

_WORKERS_LIVE = """
SELECT EXISTS (SELECT FROM worker_liveness WHERE lock_key IN (
    SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND classid = 31249 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))
"""


@contextmanager
def before_leases_expire() -> Iterator[None]:
    """Give up statements that take longer than running turns can wait; without workers no lease can
    expire, and they may take the time that they need.
    """
    if op.get_bind().execute(sa.text(_WORKERS_LIVE)).scalar_one():
        op.execute(f"SET LOCAL statement_timeout = '{MOST_S}s'")
    yield
    op.execute("SET LOCAL statement_timeout = 0")
