"""Erasures: which users are forgotten, and until when what they said is erased."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch

#: Forgotten once more, what was said since is erased, too.
_ASK = """
INSERT INTO erasures (tenant_id, key_hash, key) VALUES (%(tenant)s, %(hash)s, %(key)s)
ON CONFLICT (tenant_id, key_hash) DO UPDATE
SET at = excluded.at, key = excluded.key, done_at = NULL
RETURNING tenant_id, key_hash, at, key, done_at
"""

#: Of another copy of the list: what is new to this database is not done in it.
_ADD = """
INSERT INTO erasures (tenant_id, key_hash, at)
SELECT * FROM unnest(%s::uuid[], %s::bytea[], %s::timestamptz[])
ON CONFLICT (tenant_id, key_hash) DO UPDATE SET at = excluded.at, done_at = NULL
WHERE erasures.at < excluded.at
RETURNING tenant_id
"""

_LIST = "SELECT tenant_id, key_hash, at, key, done_at FROM erasures"

_DONE = """
UPDATE erasures SET done_at = clock_timestamp(), key = NULL
WHERE tenant_id = %(tenant)s AND key_hash = %(hash)s AND at = %(at)s AND done_at IS NULL
  AND NOT EXISTS (
    SELECT FROM erased_files
    WHERE tenant_id = %(tenant)s AND asked_by @> ARRAY[%(hash)s::bytea])
RETURNING at
"""

_SEARCHED = """
SELECT tenant_id, key_hash, at FROM erasures
WHERE done_at IS NULL
  AND (tenant_id, key_hash) IN (SELECT tenant_id, unnest(asked_by) FROM erased_files)
"""

#: A hash is of the tenant's id, too.
_UNDELETED = """
SELECT u.reason, count(*) AS files
FROM erased_files e JOIN undeleted_files u USING (tenant_id, file_id)
WHERE e.asked_by && %s::bytea[] GROUP BY u.reason ORDER BY files DESC
"""


class Undeleted(NamedTuple):
    """Files of forgotten users that could not be deleted, by the reason."""

    reason: str
    files: int


class Asked(NamedTuple):
    """What an erasure is known by: who is forgotten once more is another one."""

    tenant_id: UUID
    key_hash: bytes
    at: datetime


class Erasure(NamedTuple):
    """A user who is to be forgotten, or was."""

    tenant_id: UUID
    key_hash: bytes
    at: datetime
    #: While it is not done, where somebody said it.
    key: str | None = None
    done_at: datetime | None = None

    @property
    def asked(self) -> Asked:
        return Asked(self.tenant_id, self.key_hash, self.at)


def key_hash(tenant_id: UUID, key: str) -> bytes:
    """Hash a user's key. It hides the key from a glance, not from somebody who tries all keys."""
    return hashlib.sha256(f"{tenant_id}:{key}".encode()).digest()


def ask_erasure(cursor: Cursor, tenant_id: UUID, key: str) -> Erasure:
    """Note that a user is to be forgotten, and from which moment on."""
    values = {"tenant": tenant_id, "key": key, "hash": key_hash(tenant_id, key)}
    (erasure,) = fetch(cursor, Erasure, _ASK, values)
    return erasure


def add_erasures(database: Database, erasures: Iterable[Erasure]) -> int:
    """Add erasures of another copy of the list; return the number of those that are new here."""
    rows = [(each.tenant_id, each.key_hash, each.at) for each in erasures]
    if not rows:
        return 0
    return len(database.run(_ADD, tuple(list(column) for column in zip(*rows, strict=True))))


def list_erasures(database: Database, *, is_open: bool = False) -> list[Erasure]:
    """All erasures, or those that are not done; the first ones first."""
    which = "WHERE done_at IS NULL" if is_open else ""
    return database.fetch(Erasure, f"{_LIST} {which} ORDER BY at, key_hash")


def list_searched(database: Database) -> list[Asked]:
    """Those that are not done, and whose users' files are still searched for."""
    return database.fetch(Asked, _SEARCHED)


def find_erasure(database: Database, tenant_id: UUID, key: str) -> Erasure | None:
    """The erasure of a user, if there is one."""
    params = (tenant_id, key_hash(tenant_id, key))
    found = database.fetch(Erasure, f"{_LIST} WHERE tenant_id = %s AND key_hash = %s", params)
    return found[0] if found else None


def finish_erasure(database: Database, erasure: Erasure) -> bool:
    """Note that all is erased, and forget the key. Return whether that was so.

    Not if the user was forgotten once more, if it was noted before, or if files that the user sent
    are still searched for.
    """
    values = {"tenant": erasure.tenant_id, "hash": erasure.key_hash, "at": erasure.at}
    return bool(database.run(_DONE, values))


def list_undeleted(database: Database, erasures: Iterable[Erasure]) -> list[Undeleted]:
    """List the files that these erasures are not done for because they could not be deleted."""
    return database.fetch(Undeleted, _UNDELETED, ([each.key_hash for each in erasures],))
