"""Erasing: what a user said goes, one conversation in one transaction.

A conversation is erased while nothing of it is open: a reply that is being written has read what
the user said, and would repeat it. So the user's own open turns are cancelled, and those of others
are waited for, an hour at most.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Cursor, notify
from turnmill.schemas.routes import ABORT_CHANNEL, TURN_CHANNEL
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.cancel import CANCEL
from turnmill.schemas.store.changes import UNSENT, change, delivery_change
from turnmill.schemas.store.memory.erasures import Erasure
from turnmill.schemas.store.memory.words import statements
from turnmill.schemas.turns import OPEN_STATES, TurnState

#: Conversations of the user. Turns of releases before `user_key` are known by their author and
#: the channel that their replies went to.
CONVERSATIONS = """
SELECT conversation_id AS id FROM turns
WHERE tenant_id = %(tenant)s AND user_key = %(key)s AND accepted_at <= %(at)s
UNION
SELECT conversation_id FROM channel_threads
WHERE tenant_id = %(tenant)s AND channel = %(source)s AND author = %(author)s
  AND created_at <= %(at)s
UNION
SELECT t.conversation_id FROM deliveries d JOIN turns t ON t.id = d.turn_id
WHERE d.tenant_id = %(tenant)s AND d.channel = %(source)s AND t.author = %(author)s
  AND t.user_key IS NULL AND t.accepted_at <= %(at)s
ORDER BY id
"""

OPEN_TURNS = f"""
SELECT id, conversation_id FROM turns
WHERE tenant_id = %(tenant)s AND user_key = %(key)s
  AND state IN ({", ".join(f"'{state}'" for state in sorted(OPEN_STATES))})
"""

_TURNS = """
SELECT id, seq, state, user_key IS NOT NULL AND user_key <> %(key)s AS is_anothers,
    accepted_at <= %(at)s AS is_old
FROM turns WHERE conversation_id = %(conversation)s ORDER BY seq
"""

#: Stored turns that bots answered again, and of which judges were asked: their rows are named after
#: the turns (`evaluation/replay.py`).
_COPIES = """
SELECT t.id, t.conversation_id, t.state FROM batches b JOIN turns t ON t.batch_id = b.id
WHERE b.tenant_id = %(tenant)s AND b.purpose IS NOT NULL
  AND split_part(t.idempotency_key, ':', 2) = ANY(%(names)s)
ORDER BY t.id
"""

_ITEMS = """
SELECT i.id FROM study_items i JOIN studies s ON s.id = i.study_id
WHERE s.tenant_id = %(tenant)s AND i.source ->> 'turn_id' = ANY(%(names)s)
"""

_DROP = delivery_change(to=DeliveryState.DROPPED)

#: What nothing was sent of yet. With `all`, whatever is there.
_DROP_DELIVERIES = f"""
WITH dropped AS (
    UPDATE deliveries SET {_DROP.setting}, settled_at = coalesce(settled_at, clock_timestamp()),
        progress_at = NULL, leased_until = NULL
    WHERE conversation_id = ANY(%(conversations)s) AND {_DROP.guard}
      AND (turn_id = ANY(%(said)s) OR turn_id IS NULL)
      AND (%(all)s OR (leased_until IS NULL AND progress = '{{}}'))
    RETURNING id
)
DELETE FROM outbox USING dropped WHERE turn_id = dropped.id
"""

_IS_SENDING = f"""
SELECT 1 FROM deliveries
WHERE conversation_id = ANY(%(conversations)s) AND state IN ({UNSENT}) LIMIT 1
"""

_GIVE_UP = change(TurnState.PARKED, to=TurnState.FAILED)

#: Nobody can replay what is not there any more.
_END_PARKED = f"""
UPDATE turns SET {_GIVE_UP.setting}, error_code = 'erased'
WHERE id = ANY(%(said)s) AND {_GIVE_UP.guard}
"""

#: Files of the turns that no other turn has.
_FILES = """
SELECT f.id FROM files f
WHERE f.tenant_id = %(tenant)s AND f.id IN (
    SELECT DISTINCT m[1]::uuid FROM turns t, regexp_matches(t.input::text, %(pattern)s, 'g') AS m
    WHERE t.id = ANY(%(said)s))
  AND NOT EXISTS (
    SELECT FROM turns o WHERE o.tenant_id = f.tenant_id AND o.id <> ALL(%(said)s)
    AND o.input::text LIKE '%%' || replace(f.id::text, '-', '') || '%%')
"""

_DELETE_FILES = "DELETE FROM files WHERE id = ANY(%s)"

_DELETE_USER = """
DELETE FROM users WHERE tenant_id = %(tenant)s AND key = %(key)s AND created_at <= %(at)s
"""

#: Facts of a user who came back stay.
_ERASE_RATINGS = """
UPDATE ratings SET author = id::text, comment = NULL
WHERE tenant_id = %(tenant)s AND source = %(source)s AND author = %(author)s
  AND created_at <= %(at)s
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


class _Reach(NamedTuple):
    """What is erased with a conversation, by id."""

    conversations: list[UUID]
    own_conversations: list[UUID]
    said: list[UUID]
    answered: list[UUID]
    #: Turns that are open: the user's own, and others.
    open_own: list[UUID]
    open_others: list[UUID]


def cancel_turns(cursor: Cursor, turn_ids: Sequence[UUID], conversations: Sequence[UUID]) -> None:
    """Cancel those turns that are open. Their conversations are locked."""
    if not turn_ids:
        return
    lock_turns(cursor, sorted(turn_ids))
    cursor.execute(CANCEL, (list(turn_ids),))
    advance(cursor, conversations)
    for turn_id in turn_ids:
        notify(cursor, ABORT_CHANNEL, turn_id.hex)
        notify(cursor, TURN_CHANNEL, turn_id.hex)


def erase_conversation(
    cursor: Cursor, person: Person, conversation_id: UUID, storage: Storage, *, waits: bool
) -> Counter[str] | None:
    """Erase what the user said in a conversation; return the rows changed, by table.

    None: something of it is still being answered or sent. The user's turns are cancelled; what
    others wait for is waited for, if `waits`, and else cancelled too.
    """
    copies = _copies(cursor, person, conversation_id)
    lock_conversations(cursor, sorted({conversation_id, *(each[1] for each in copies)}))
    reach = _reach(cursor, person, conversation_id, copies)
    cancelled = reach.open_own if waits else [*reach.open_own, *reach.open_others]
    cancel_turns(cursor, cancelled, reach.conversations)
    ids = reach._asdict()
    cursor.execute(_DROP_DELIVERIES, {**ids, "all": not waits})
    if waits and (reach.open_others or cursor.execute(_IS_SENDING, ids).fetchone()):
        return None
    return _erase(cursor, person, reach, storage)


def erase_person(cursor: Cursor, person: Person) -> Counter[str]:
    """Erase what is kept of a user outside conversations."""
    return Counter(
        users=cursor.execute(_DELETE_USER, person.params).rowcount,
        ratings=cursor.execute(_ERASE_RATINGS, person.params).rowcount,
    )


def _copies(cursor: Cursor, person: Person, conversation_id: UUID) -> list[tuple[UUID, UUID, str]]:
    """Id, conversation and state of each copy of a turn of the conversation."""
    params = {**person.params, "conversation": conversation_id}
    names = [row.id.hex for row in cursor.execute(_TURNS, params)]
    return [tuple(row) for row in cursor.execute(_COPIES, {**params, "names": names})]


def _reach(
    cursor: Cursor,
    person: Person,
    conversation_id: UUID,
    copies: list[tuple[UUID, UUID, str]],
) -> _Reach:
    params = {**person.params, "conversation": conversation_id}
    turns = cursor.execute(_TURNS, params).fetchall()
    said = [row for row in turns if row.is_old and not row.is_anothers]
    later = [row for row in turns if said and row.seq >= said[0].seq]
    said_ids = [row.id for row in said]
    copied = [each[0] for each in copies] if said else []
    is_open = {row.id for row in turns if row.state in OPEN_STATES}
    is_open |= {each[0] for each in copies if said and each[2] in OPEN_STATES}
    own = [*said_ids, *copied]
    return _Reach(
        conversations=[conversation_id, *(each[1] for each in copies)],
        own_conversations=[] if any(row.is_anothers for row in turns) else [conversation_id],
        said=own,
        answered=[*(row.id for row in later), *copied],
        open_own=[each for each in own if each in is_open],
        open_others=[row.id for row in later if row.id in is_open and row.id not in said_ids],
    )


def _erase(cursor: Cursor, person: Person, reach: _Reach, storage: Storage) -> Counter[str]:
    names = [show_id(Prefix.TURN, turn_id) for turn_id in reach.answered]
    items = [row.id for row in cursor.execute(_ITEMS, {"tenant": person.tenant_id, "names": names})]
    ids = {**reach._asdict(), "items": items}
    counts = _delete_files(cursor, person, reach, storage)
    cursor.execute(_END_PARKED, ids)
    for table, statement in statements():
        counts[table] += cursor.execute(statement, ids).rowcount
    return +counts


def _delete_files(cursor: Cursor, person: Person, reach: _Reach, storage: Storage) -> Counter[str]:
    """Delete rows and bytes; a byte that is left without its row goes with the next sweep."""
    pattern = f"{Prefix.FILE}_([0-9a-f]{{32}})"
    params = {"tenant": person.tenant_id, "said": reach.said, "pattern": pattern}
    files = [row.id for row in cursor.execute(_FILES, params)]
    cursor.execute(_DELETE_FILES, (files,))
    for file_id in files:
        storage.delete(Key(person.tenant_id, file_id))
    return Counter(files=len(files))
