"""Erasing: what a user said goes, conversation by conversation, in transactions of milliseconds.

A conversation is erased while nothing of it is open: a reply that is being written has read what
the user said, and would repeat it. So the user's own open turns are cancelled, and those of others
are waited for, an hour at most.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Cursor, Database, notify
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.routes import ABORT_CHANNEL, TURN_CHANNEL
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.cancel import CANCEL
from turnmill.schemas.store.changes import UNSENT, change, delivery_change
from turnmill.schemas.store.memory.finding import Copy, Person, find_copies
from turnmill.schemas.store.memory.orphans import NOTE_FILES
from turnmill.schemas.store.memory.words import statements
from turnmill.schemas.turns import OPEN_STATES, TurnState

#: Turns of a conversation that one transaction erases, at most.
PART = 100


class OpenTurn(NamedTuple):
    """A row of `OPEN_TURNS`."""

    id: UUID
    conversation_id: UUID


OPEN_TURNS = f"""
SELECT id, conversation_id FROM turns
WHERE tenant_id = %(tenant)s AND user_key = %(key)s
  AND state IN ({", ".join(f"'{state}'" for state in sorted(OPEN_STATES))})
"""


class _Turn(NamedTuple):
    id: UUID
    seq: int
    state: str
    is_anothers: bool
    is_own: bool
    is_old: bool


_TURNS = """
SELECT id, seq, state, user_key IS NOT NULL AND user_key <> %(key)s AS is_anothers,
    coalesce(user_key = %(key)s, author = %(author)s, false) AS is_own,
    accepted_at <= %(at)s AS is_old
FROM turns WHERE conversation_id = %(conversation)s ORDER BY seq
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

#: First of all, as whoever forgets a user once more locks the erasure before conversations.
_LOCK_ERASURE = "SELECT 1 FROM erasures WHERE tenant_id = %s AND key_hash = %s FOR UPDATE"

_GIVE_UP = change(TurnState.PARKED, to=TurnState.FAILED)

#: Nobody can replay what is not there any more.
_END_PARKED = f"""
UPDATE turns SET {_GIVE_UP.setting}, error_code = 'erased'
WHERE id = ANY(%(said)s) AND {_GIVE_UP.guard}
"""

#: A user who came back stays.
_DELETE_USER = """
DELETE FROM users WHERE tenant_id = %(tenant)s AND key = %(key)s AND created_at <= %(at)s
"""

_ERASE_RATINGS = f"""
UPDATE ratings SET author = id::text, comment = NULL WHERE id IN (
    SELECT id FROM ratings
    WHERE tenant_id = %(tenant)s AND source = %(source)s AND author = %(author)s
      AND created_at <= %(at)s
    LIMIT {PART})
"""


class _Reach(NamedTuple):
    """What is erased with a conversation, by id."""

    conversations: list[UUID]
    own_conversations: list[UUID]
    said: list[UUID]
    #: Last is the turn by which the conversation is found again until all of it is erased.
    answered: list[UUID]
    #: Turns that are open: the user's own, and others.
    open_own: list[UUID]
    open_others: list[UUID]

    def part(self, number: int) -> "_Reach":
        """Some of the turns; with the last ones goes what belongs to the conversation."""
        turns = self.answered[number * PART : (number + 1) * PART]
        said = set(self.said)
        part = self._replace(answered=turns, said=[each for each in turns if each in said])
        if self.is_last(number):
            return part
        return part._replace(conversations=[], own_conversations=[])

    def is_last(self, number: int) -> bool:
        return (number + 1) * PART >= len(self.answered)


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
    database: Database, person: Person, conversation_id: UUID, *, waits: bool
) -> Counter[str] | None:
    """Erase what the user said in a conversation; return the rows changed, by table.

    None: something of it is still being answered or sent. The user's turns are cancelled; what
    others wait for is waited for, if `waits`, and else cancelled too. A long conversation takes
    several transactions, so that nobody who writes in it waits for long.
    """
    params = {**person.params, "conversation": conversation_id}
    turn_ids = [row.id for row in database.fetch(_Turn, _TURNS, params)]
    copies = find_copies(database, person.tenant_id, turn_ids)
    counts: Counter[str] = Counter()
    for number in count():
        with database.cursor() as cursor:
            reach = _lock(cursor, person, conversation_id, copies)
            if not _is_quiet(cursor, reach, waits=waits):
                return None
            counts += _erase(cursor, person, reach.part(number))
        if reach.is_last(number):
            break
    return counts


def erase_person(database: Database, person: Person) -> Counter[str]:
    """Erase what is kept of a user outside conversations."""
    counts: Counter[str] = Counter()
    with database.cursor() as cursor:
        counts["users"] = cursor.execute(_DELETE_USER, person.params).rowcount
    changed = PART
    while changed == PART:
        with database.cursor() as cursor:
            changed = cursor.execute(_ERASE_RATINGS, person.params).rowcount
        counts["ratings"] += changed
    return counts


def _is_quiet(cursor: Cursor, reach: _Reach, *, waits: bool) -> bool:
    """Cancel what may be cancelled; return whether nothing is left that must be waited for."""
    cancelled = reach.open_own if waits else [*reach.open_own, *reach.open_others]
    cancel_turns(cursor, cancelled, reach.conversations)
    ids = reach._asdict()
    cursor.execute(_DROP_DELIVERIES, {**ids, "all": not waits})
    is_sending = waits and cursor.execute(_IS_SENDING, ids).fetchone()
    return not ((waits and reach.open_others) or is_sending)


def _lock(cursor: Cursor, person: Person, conversation_id: UUID, copies: Sequence[Copy]) -> _Reach:
    """Lock a conversation with its copies, and read what is to be erased."""
    conversations = [conversation_id, *(each.conversation_id for each in copies)]
    cursor.execute(_LOCK_ERASURE, (person.tenant_id, person.erasure.key_hash))
    lock_conversations(cursor, sorted(set(conversations)))
    params = {**person.params, "conversation": conversation_id}
    turns = fetch(cursor, _Turn, _TURNS, params)
    said = [row for row in turns if row.is_old and not row.is_anothers]
    later = [row for row in turns if said and row.seq >= said[0].seq]
    own_turn = next((row for row in said if row.is_own), None)
    later.sort(key=lambda row: row is own_turn)
    said_ids = [row.id for row in said]
    copied = [each.id for each in copies] if said else []
    is_open = {row.id for row in turns if row.state in OPEN_STATES}
    is_open |= {each.id for each in copies if said and each.state in OPEN_STATES}
    own = [*said_ids, *copied]
    return _Reach(
        conversations=conversations,
        own_conversations=[] if any(row.is_anothers for row in turns) else [conversation_id],
        said=own,
        answered=[*copied, *(row.id for row in later)],
        open_own=[each for each in own if each in is_open],
        open_others=[row.id for row in later if row.id in is_open and row.id not in said_ids],
    )


def _erase(cursor: Cursor, person: Person, reach: _Reach) -> Counter[str]:
    names = [show_id(Prefix.TURN, turn_id) for turn_id in reach.answered]
    items = fetch(cursor, Id, _ITEMS, {"tenant": person.tenant_id, "names": names})
    ids = {**reach._asdict(), "items": [row.id for row in items], "tenant": person.tenant_id}
    counts: Counter[str] = Counter()
    cursor.execute(NOTE_FILES, ids | {"key_hash": person.erasure.key_hash})
    cursor.execute(_END_PARKED, ids)
    for table, statement in statements():
        counts[table] += cursor.execute(statement, ids).rowcount
    return +counts
