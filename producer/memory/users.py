"""Users of a tenant's bots: their preferences, whether they are remembered, and their facts."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.store.memory.remembered import Source

#: Of one user: facts in force, those proposed as many again, and preferences.
MAX_FACTS = 100
MAX_PREFERENCES = 20
#: Characters of a user's key, of the name of a fact or a preference, and of its value.
MAX_KEY = 512
MAX_NAME = 64
MAX_VALUE = 500
#: Earlier values of a fact that are kept.
MAX_EARLIER = 10

#: As `user_key` makes it.
_KEY = re.compile(r"[^\0:]{1,255}:[^\0]{1,255}")

_ENSURE = """
INSERT INTO users (id, tenant_id, key) VALUES (%(id)s, %(tenant)s, %(key)s)
ON CONFLICT (tenant_id, key) DO UPDATE SET key = excluded.key
RETURNING id
"""

_USERS = """
SELECT u.key, u.preferences, u.memory_on, u.consent_at, u.created_at,
    (SELECT count(*) FROM facts WHERE user_id = u.id AND superseded_by IS NULL
        AND source <> 'proposed')::int AS fact_count
FROM users u
WHERE tenant_id = %(tenant)s AND (%(key)s::text IS NULL OR key = %(key)s) AND key > %(after)s
ORDER BY key LIMIT %(limit)s
"""

_FACTS = """
SELECT f.key, f.value, f.source, f.turn_id, f.created_at, f.superseded_by IS NOT NULL AS is_earlier
FROM facts f JOIN users u ON u.id = f.user_id
WHERE u.tenant_id = %(tenant)s AND u.key = %(user)s AND (%(earlier)s OR f.superseded_by IS NULL)
ORDER BY f.key, f.source = 'proposed', f.created_at DESC, f.id DESC
"""


class _Count(NamedTuple):
    facts: int


_COUNT = """
SELECT count(*)::int AS facts FROM facts
WHERE user_id = %(user)s AND key <> %(key)s AND superseded_by IS NULL
  AND (source = 'proposed') = %(is_proposed)s
"""

#: The one of the same key that was in force, or proposed, gives way first: an index allows one.
_SUPERSEDE = """
UPDATE facts SET superseded_by = %(id)s
WHERE user_id = %(user)s AND key = %(key)s AND superseded_by IS NULL
  AND (source = 'proposed' OR %(source)s <> 'proposed')
"""

_INSERT = """
INSERT INTO facts (id, user_id, key, value, source, turn_id)
VALUES (%(id)s, %(user)s, %(key)s, %(value)s, %(source)s, %(turn)s)
"""

_FORGET_EARLIER = f"""
DELETE FROM facts WHERE id IN (
    SELECT id FROM facts WHERE user_id = %(user)s AND key = %(key)s AND superseded_by IS NOT NULL
    ORDER BY created_at DESC, id DESC OFFSET {MAX_EARLIER})
"""

_FORGET_FACT = """
DELETE FROM facts f USING users u
WHERE u.id = f.user_id AND u.tenant_id = %(tenant)s AND u.key = %(user)s AND f.key = %(key)s
RETURNING f.id
"""


class _Proposal(NamedTuple):
    value: str
    turn_id: UUID | None


_TAKE_PROPOSAL = """
DELETE FROM facts f USING users u
WHERE u.id = f.user_id AND u.tenant_id = %(tenant)s AND u.key = %(user)s AND f.key = %(key)s
  AND f.source = 'proposed' AND f.superseded_by IS NULL
RETURNING f.value, f.turn_id
"""

_FORGET_FACTS = """
DELETE FROM facts f USING users u
WHERE u.id = f.user_id AND u.tenant_id = %(tenant)s AND u.key = %(user)s RETURNING f.id
"""

#: Whoever is asked again agrees anew; a consent that is taken back leaves no date.
_SET_MEMORY = """
UPDATE users SET memory_on = %(on)s,
    consent_at = CASE WHEN %(on)s THEN coalesce(consent_at, clock_timestamp()) END
WHERE id = %(user)s
"""

_SET_PREFERENCES = "UPDATE users SET preferences = %(preferences)s WHERE id = %(user)s"


class User(NamedTuple):
    """A user as a tenant knows them."""

    key: str
    preferences: Mapping[str, str]
    #: None: nobody has decided it.
    memory_on: bool | None
    consent_at: datetime | None
    created_at: datetime
    #: Facts in force.
    fact_count: int


class Fact(NamedTuple):
    """What is remembered of a user, and where it comes from."""

    key: str
    value: str
    source: Source
    turn_id: UUID | None
    created_at: datetime
    #: A later one has replaced it.
    is_earlier: bool = False


def list_users(
    database: Database, tenant_id: UUID, *, after: str = "", limit: int = 100
) -> list[User]:
    """A page of the users of whom anything is kept, by key."""
    params = {"tenant": tenant_id, "key": None, "after": after, "limit": limit}
    return database.fetch(User, _USERS, params)


def read_user(database: Database, tenant_id: UUID, key: str) -> User:
    """Raises `NotFound`: nothing is kept of such a user. `InvalidInput`: it is no user's key."""
    check_key(key)
    params = {"tenant": tenant_id, "key": key, "after": "", "limit": 1}
    if not (rows := database.fetch(User, _USERS, params)):
        raise NotFound("Nothing is remembered of this user.", param="user")
    return rows[0]


def list_facts(
    database: Database, tenant_id: UUID, key: str, *, with_earlier: bool = False
) -> list[Fact]:
    """The facts of a user, by key: those in force, then proposed ones, then earlier values.

    Raises `InvalidInput`, lest `ada` reads as a user of whom nothing is known, who is `api:ada`.
    """
    check_key(key)
    params = {"tenant": tenant_id, "user": key, "earlier": with_earlier}
    return database.fetch(Fact, _FACTS, params)


def remember(
    database: Database,
    tenant_id: UUID,
    key: str,
    fact: str,
    value: str,
    *,
    source: Source = "explicit",
    turn_id: UUID | None = None,
) -> None:
    """Keep a fact; see `remember_in`."""
    with database.cursor() as cursor:
        remember_in(cursor, tenant_id, key, fact, value, source=source, turn_id=turn_id)


def remember_in(
    cursor: Cursor,
    tenant_id: UUID,
    key: str,
    fact: str,
    value: str,
    *,
    source: Source = "explicit",
    turn_id: UUID | None = None,
) -> None:
    """Keep a fact of a user; one of the same name gives way to it. A proposed one replaces none
    that is in force.

    Raises:
        InvalidInput: a name or the value is too long or empty, or the user has too many facts.
    """
    values: dict[str, object] = {
        "key": _named(fact, "fact"),
        "value": _valued(value),
        "source": source,
    }
    user_id = _ensure(cursor, tenant_id, key)
    values |= {"id": new_id(), "user": user_id, "turn": turn_id}
    values |= {"is_proposed": source == "proposed"}
    (count,) = fetch(cursor, _Count, _COUNT, values)
    if count.facts >= MAX_FACTS:
        raise InvalidInput(
            f"{MAX_FACTS} facts of this user are remembered already. Forget one first.",
            param="fact",
        )
    cursor.execute(_SUPERSEDE, values)
    cursor.execute(_INSERT, values)
    cursor.execute(_FORGET_EARLIER, values)


def answer_proposal(
    database: Database, tenant_id: UUID, key: str, fact: str, *, is_right: bool
) -> None:
    """Confirm a proposed fact of a user, or delete the proposal.

    Raises `NotFound` and `InvalidInput`.
    """
    check_key(key)
    with database.cursor() as cursor:
        if "\0" in fact or not answer_proposal_in(cursor, tenant_id, key, fact, is_right=is_right):
            raise NotFound("For this user, no fact of this name is proposed.", param="fact")


def answer_proposal_in(
    cursor: Cursor, tenant_id: UUID, key: str, fact: str, *, is_right: bool
) -> bool:
    """See `answer_proposal`; False: no such fact is proposed."""
    params = {"tenant": tenant_id, "user": key, "key": fact}
    taken = fetch(cursor, _Proposal, _TAKE_PROPOSAL, params)
    if not taken:
        return False
    if is_right:
        remember_in(
            cursor,
            tenant_id,
            key,
            fact,
            taken[0].value,
            source="confirmed",
            turn_id=taken[0].turn_id,
        )
    return True


def forget_fact(database: Database, tenant_id: UUID, key: str, fact: str) -> None:
    """Delete a fact of a user, with its earlier values. Raises `NotFound` and `InvalidInput`."""
    check_key(key)
    with database.cursor() as cursor:
        if "\0" in fact or not forget_fact_in(cursor, tenant_id, key, fact):
            raise NotFound("The user has no such fact.", param="fact")


def forget_fact_in(cursor: Cursor, tenant_id: UUID, key: str, fact: str) -> int:
    """Delete a fact of a user, with its earlier values; return the number of rows."""
    params = {"tenant": tenant_id, "user": key, "key": fact}
    return cursor.execute(_FORGET_FACT, params).rowcount


def forget_facts_in(cursor: Cursor, tenant_id: UUID, key: str) -> int:
    """Delete all facts and preferences of a user, and remember nothing more. Return the number of
    facts."""
    user_id = _ensure(cursor, tenant_id, key)
    count = cursor.execute(_FORGET_FACTS, {"tenant": tenant_id, "user": key}).rowcount
    cursor.execute(_SET_PREFERENCES, {"user": user_id, "preferences": Jsonb({})})
    cursor.execute(_SET_MEMORY, {"user": user_id, "on": False})
    return count


def set_memory(database: Database, tenant_id: UUID, key: str, *, is_on: bool) -> None:
    """Record that a user agrees to be remembered, or does not."""
    with database.cursor() as cursor:
        set_memory_in(cursor, tenant_id, key, is_on=is_on)


def set_memory_in(cursor: Cursor, tenant_id: UUID, key: str, *, is_on: bool) -> None:
    """See `set_memory`."""
    params = {"user": _ensure(cursor, tenant_id, key), "on": is_on}
    cursor.execute(_SET_MEMORY, params)


def set_preferences(
    database: Database, tenant_id: UUID, key: str, preferences: Mapping[str, str]
) -> None:
    """Replace the preferences of a user.

    Raises:
        InvalidInput: there are too many, or one is too long.
    """
    if len(preferences) > MAX_PREFERENCES:
        raise InvalidInput(f"A user has up to {MAX_PREFERENCES} preferences.", param="preferences")
    kept = {_named(name, "preferences"): _valued(text) for name, text in preferences.items()}
    with database.cursor() as cursor:
        user_id = _ensure(cursor, tenant_id, key)
        cursor.execute(_SET_PREFERENCES, {"user": user_id, "preferences": Jsonb(kept)})


def export(database: Database, tenant_id: UUID, key: str) -> dict[str, object]:
    """All that is remembered of a user, earlier values too, as JSON. Raises `NotFound`."""
    user = read_user(database, tenant_id, key)
    facts = list_facts(database, tenant_id, key, with_earlier=True)
    return {
        "key": user.key,
        "memory_on": user.memory_on,
        "consent_at": user.consent_at,
        "created_at": user.created_at,
        "preferences": dict(user.preferences),
        "facts": [fact._asdict() for fact in facts],
    }


def _ensure(cursor: Cursor, tenant_id: UUID, key: str) -> UUID:
    """Find or make the user, whose row stays locked until the transaction ends."""
    check_key(key)
    params = {"id": new_id(), "tenant": tenant_id, "key": key}
    (user,) = fetch(cursor, Id, _ENSURE, params)
    return user.id


def check_key(key: str) -> None:
    """Raise `InvalidInput` unless it is a user's key."""
    if not _KEY.fullmatch(key):
        raise InvalidInput(
            "A user's key is where they come from and their id there: api:4711, acme-slack:U0ADA.",
            param="user",
        )


def _named(name: str, param: str) -> str:
    name = " ".join(name.split())
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidInput(
            f"A name has 1 to {MAX_NAME} printable characters: '{name[:80]}' has not.", param=param
        )
    return name


def _valued(value: str) -> str:
    value = value.strip()
    if not 0 < len(value) <= MAX_VALUE or "\0" in value:
        raise InvalidInput(f"A value has 1 to {MAX_VALUE} characters.", param="value")
    return value
