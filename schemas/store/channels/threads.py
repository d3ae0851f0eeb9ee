"""Events and threads of platforms: what was received, and which conversation it belongs to."""

from typing import NamedTuple
from uuid import UUID

#: No row: the event was received before. One that is just being received elsewhere is waited for.
TAKE_EVENT = """
INSERT INTO channel_events (channel, event_id) VALUES (%s, %s) ON CONFLICT DO NOTHING
RETURNING event_id
"""


class FoundEvent(NamedTuple):
    conversation_id: UUID | None
    turn_id: UUID | None


FIND_EVENT = """
SELECT conversation_id, turn_id FROM channel_events WHERE channel = %s AND event_id = %s
"""

NOTE_EVENT = """
UPDATE channel_events SET turn_id = %(turn)s, conversation_id = %(conversation)s
WHERE channel = %(channel)s AND event_id = %(event)s
"""

#: Events of one thread follow one another, from before its row is there.
LOCK_THREAD = "SELECT pg_advisory_xact_lock(hashtextextended(%s || '/' || %s, 0))"


class Target(NamedTuple):
    target: dict[str, str]


FIND_THREAD = "SELECT target FROM channel_threads WHERE channel = %s AND thread = %s"


class NamedThread(NamedTuple):
    thread: str
    author: str
    target: dict[str, str]


#: The thread of a conversation, or of a turn's; none where it was reset, and has another one.
FIND_NAMED_THREAD = """
SELECT thread, author, target FROM channel_threads
WHERE channel = %(channel)s AND tenant_id = %(tenant)s AND conversation_id = coalesce(
    %(conversation)s::uuid,
    (SELECT conversation_id FROM turns WHERE id = %(turn)s AND tenant_id = %(tenant)s))
LIMIT 1
"""


class TakenThread(NamedTuple):
    conversation_id: UUID
    author: str


#: The row stays locked until the transaction ends: two events of a new thread begin one
#: conversation. Whoever locks a thread and its conversation locks the thread first.
TAKE_THREAD = """
INSERT INTO channel_threads (channel, thread, tenant_id, conversation_id, author, target)
VALUES (%(channel)s, %(thread)s, %(tenant)s, %(new)s, %(author)s, %(target)s)
ON CONFLICT (channel, thread) DO UPDATE SET target = excluded.target
RETURNING conversation_id, author
"""

#: The turn of whose reply a message of the platform is a part: `ix_deliveries_parts`.
FIND_DELIVERED = """
SELECT turn_id AS id FROM deliveries
WHERE channel = %s AND jsonb_path_query_array(progress, '$."parts".*') ? %s
  AND turn_id IS NOT NULL LIMIT 1
"""

#: The thread has a new conversation; whoever asked for it has begun it.
RENEW_THREAD = """
UPDATE channel_threads
SET conversation_id = %(new)s, tenant_id = %(tenant)s, author = %(author)s
WHERE channel = %(channel)s AND thread = %(thread)s
"""

#: Whose messages are the user's while a person answers.
SET_AUTHOR = "UPDATE channel_threads SET author = %s WHERE channel = %s AND thread = %s"
