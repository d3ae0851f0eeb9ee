"""Finding what a user said, before anything is locked: slice by slice, each by an index.

No statement here reads more than `ROWS` rows of a table that grows with the system, however large
it is. What is erased is not found again, so a job that was interrupted resumes where it ended.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple, TypeVar
from uuid import UUID

from turnmill.schemas.batches import copy_ids
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.memory.erasures import Erasure, key_hash

T = TypeVar("T")

#: Of one statement, at most.
ROWS = 500

#: Names of copies that one statement looks up, at most.
_LOOK_UPS = 10_000

_NIL = UUID(int=0)

_OWN_TURNS = f"""
SELECT conversation_id, id::text AS place, accepted_at <= %(at)s AS is_old FROM turns
WHERE tenant_id = %(tenant)s AND user_key = %(key)s AND id > %(place)s::uuid
ORDER BY id LIMIT {ROWS}
"""

_THREADS = f"""
SELECT conversation_id, thread AS place, created_at <= %(at)s AS is_old FROM channel_threads
WHERE tenant_id = %(tenant)s AND channel = %(source)s AND author = %(author)s
  AND thread > %(place)s
ORDER BY thread LIMIT {ROWS}
"""

#: Turns of releases before `user_key` are known by their author and the channel that their replies
#: went to.
_OLD_TURNS = f"""
WITH slice AS MATERIALIZED (
    SELECT id, conversation_id, accepted_at FROM turns
    WHERE tenant_id = %(tenant)s AND author = %(author)s AND user_key IS NULL
      AND id > %(place)s::uuid
    ORDER BY id LIMIT {ROWS}
)
SELECT conversation_id, id::text AS place, accepted_at <= %(at)s AND EXISTS (
    SELECT FROM deliveries d WHERE d.turn_id = slice.id AND d.channel = %(source)s) AS is_old
FROM slice ORDER BY id
"""

#: Each with the place that its first slice begins after.
_CONVERSATIONS = ((_OWN_TURNS, str(_NIL)), (_THREADS, ""), (_OLD_TURNS, str(_NIL)))

#: Keys of a tenant's users, `(a, b)` being the place of each. The first one steps from key to key.
_KEYS = (
    f"""
    WITH RECURSIVE asked AS (
        (SELECT user_key FROM turns WHERE tenant_id = %(tenant)s AND user_key > %(a)s
        ORDER BY user_key LIMIT 1)
        UNION ALL
        SELECT (SELECT user_key FROM turns
            WHERE tenant_id = %(tenant)s AND user_key > asked.user_key ORDER BY user_key LIMIT 1)
        FROM asked WHERE asked.user_key IS NOT NULL
    )
    SELECT user_key AS key, user_key AS a, '' AS b FROM asked
    WHERE user_key IS NOT NULL LIMIT {ROWS}
    """,
    f"""
    SELECT key, key AS a, '' AS b FROM users WHERE tenant_id = %(tenant)s AND key > %(a)s
    ORDER BY key LIMIT {ROWS}
    """,
    f"""
    SELECT channel || ':' || author AS key, channel AS a, author AS b FROM channel_threads
    WHERE tenant_id = %(tenant)s AND (channel, author) > (%(a)s, %(b)s) GROUP BY channel, author
    ORDER BY channel, author LIMIT {ROWS}
    """,
    f"""
    SELECT source || ':' || author AS key, source AS a, author AS b FROM ratings
    WHERE tenant_id = %(tenant)s AND (source, author) > (%(a)s, %(b)s) GROUP BY source, author
    ORDER BY source, author LIMIT {ROWS}
    """,
    f"""
    WITH slice AS MATERIALIZED (
        SELECT author, id FROM turns
        WHERE tenant_id = %(tenant)s AND user_key IS NULL AND author IS NOT NULL
          AND (author, id) > (%(a)s, coalesce(nullif(%(b)s, ''), '{_NIL}')::uuid)
        ORDER BY author, id LIMIT {ROWS}
    )
    SELECT d.channel || ':' || slice.author AS key, slice.author AS a, slice.id::text AS b
    FROM slice LEFT JOIN deliveries d ON d.turn_id = slice.id ORDER BY slice.author, slice.id
    """,
)

_NOTE_KEY = """
UPDATE erasures SET key = %s
WHERE tenant_id = %s AND key_hash = %s AND at = %s AND done_at IS NULL RETURNING at
"""

#: Batches that answered stored turns again, and those that judges or readers were asked in.
_MEASURING = "SELECT id FROM batches WHERE tenant_id = %s AND purpose IS NOT NULL ORDER BY id"

#: The rows of such batches are named after the turns (`copy_ids`). One look-up each:
#: without LIMIT, PostgreSQL may read all turns for many of them.
_COPIES = """
SELECT t.id, t.conversation_id, t.state
FROM unnest(%(batches)s::uuid[]) AS batch CROSS JOIN unnest(%(names)s::text[]) AS name
CROSS JOIN LATERAL (
    SELECT id, conversation_id, state FROM turns
    WHERE tenant_id = %(tenant)s
      AND idempotency_key = replace(batch::text, '-', '') || ':' || name LIMIT 1
) AS t
"""


class Person(NamedTuple):
    """Who is forgotten."""

    tenant_id: UUID
    key: str
    erasure: Erasure

    @property
    def params(self) -> dict[str, object]:
        """Parameters of the statements."""
        source, _, author = self.key.partition(":")
        return {
            "tenant": self.tenant_id,
            "key": self.key,
            "at": self.erasure.at,
            "source": source,
            "author": author,
        }


class _Placed(NamedTuple):
    """A row of the statements of `_CONVERSATIONS`."""

    conversation_id: UUID
    #: Where the next slice begins.
    place: str
    is_old: bool


class _Key(NamedTuple):
    """A row of the statements of `_KEYS`."""

    key: str | None
    a: str
    b: str


class Copy(NamedTuple):
    """A turn of a batch that repeats what a stored turn asked."""

    id: UUID
    conversation_id: UUID
    state: str


def find_conversations(database: Database, person: Person) -> Iterator[UUID]:
    """Yield the conversations in which the user wrote before the erasure, each once."""
    found: set[UUID] = set()
    for statement, first in _CONVERSATIONS:
        yield from _conversations(database, person, statement, first, found)


def find_late(database: Database, person: Person, known: Set[UUID]) -> Iterator[UUID]:
    """Yield the conversations of turns that were accepted before the erasure and committed while
    the others were erased; those turns are gone by then. `known` may be in work still.
    """
    yield from _conversations(database, person, _OWN_TURNS, str(_NIL), set(known))


def find_keys(database: Database, erasures: Sequence[Erasure]) -> list[Erasure]:
    """Return the erasures with the keys of their users, where those are known.

    After a restore nobody says whose hash it is, so the keys of all users are tried. Keys that are
    found are kept until their erasures are done.
    """
    keys: dict[bytes, str] = {}
    for tenant_id in {each.tenant_id for each in erasures if each.key is None}:
        mine = [each for each in erasures if each.tenant_id == tenant_id and each.key is None]
        wanted = {each.key_hash: each for each in mine}
        for key in _keys(database, tenant_id):
            if (found := wanted.pop(key_hash(tenant_id, key), None)) is not None:
                database.run(_NOTE_KEY, (key, tenant_id, found.key_hash, found.at))
                keys[found.key_hash] = key
            if not wanted:
                break
    return [each._replace(key=each.key or keys.get(each.key_hash)) for each in erasures]


def find_copies(database: Database, tenant_id: UUID, turn_ids: Sequence[UUID]) -> list[Copy]:
    """Return the turns of batches that repeat one of these turns."""
    measuring = [row.id for row in database.fetch(Id, _MEASURING, (tenant_id,))]
    found: list[Copy] = []
    for names in _slices([name for each in turn_ids for name in copy_ids(each)], ROWS):
        for some in _slices(measuring, max(1, _LOOK_UPS // len(names))):
            params = {"tenant": tenant_id, "batches": some, "names": names}
            found += database.fetch(Copy, _COPIES, params)
    return sorted(found)


def _slices(items: list[T], size: int) -> Iterator[list[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _conversations(
    database: Database, person: Person, statement: str, place: str, found: set[UUID]
) -> Iterator[UUID]:
    is_last = False
    while not is_last:
        rows = database.fetch(_Placed, statement, {**person.params, "place": place})
        for row in rows:
            place = row.place
            if row.is_old and row.conversation_id not in found:
                found.add(row.conversation_id)
                yield row.conversation_id
        is_last = len(rows) < ROWS


def _keys(database: Database, tenant_id: UUID) -> Iterator[str]:
    for statement in _KEYS:
        place: Mapping[str, str] = {"a": "", "b": ""}
        while rows := database.fetch(_Key, statement, {"tenant": tenant_id, **place}):
            yield from (row.key for row in rows if row.key is not None)
            place = {"a": rows[-1].a, "b": rows[-1].b}
