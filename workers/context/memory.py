"""What a turn knows about its user, pinned before its reply begins.

Only where the bot's policy says so, and the user agreed or the owner declared another basis. As
with passages, a later attempt at the turn reads what the first one committed.
"""

from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.schemas.channels.memory import MemoryPolicy
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.memory.remembered import Remembered, RememberedFact, Source
from turnmill.schemas.turns import Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.turn.claim import Claim

#: Tokens that it may take of a prompt, and the share of a context window.
MAX_TOKENS, MAX_SHARE = 300, 0.1

_PINNED = "SELECT remembered FROM turn_memory WHERE turn_id = %s"

_USER = """
SELECT id, preferences FROM users
WHERE tenant_id = %(tenant)s AND key = %(user)s
  AND coalesce(memory_on, %(basis)s <> 'consent')
"""

_FACTS = """
SELECT key, value, source, turn_id FROM facts
WHERE user_id = %s AND superseded_by IS NULL AND source <> 'proposed'
ORDER BY created_at DESC, id DESC
"""

#: Only the attempt that runs may pin, and only where nothing is pinned yet.
_PIN = """
INSERT INTO turn_memory (turn_id, remembered)
SELECT id, %(remembered)s FROM turns
WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND state = 'running'
FOR SHARE
ON CONFLICT (turn_id) DO NOTHING
"""


class _PinnedRow(NamedTuple):
    #: `Remembered` as JSON.
    remembered: object


class _UserRow(NamedTuple):
    id: UUID
    preferences: dict[str, str]


class _FactRow(NamedTuple):
    key: str
    value: str
    source: Source
    turn_id: UUID | None


def recall(database: Database, engine: Engine, claim: Claim) -> str:
    """What the turn knows about its user, for the end of its instructions; empty: nothing. The same
    for each of its attempts.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    policy = claim.memory
    if claim.user_key is None or not policy.on:
        return ""
    pinned = database.fetch(_PinnedRow, _PINNED, (claim.turn_id,))
    if pinned:
        return Remembered.model_validate(pinned[0].remembered).text
    known = _known(database, claim, policy)
    budget = min(MAX_TOKENS, int(engine.context_window * MAX_SHARE))
    told = known.within(budget, lambda text: _count(engine, text))
    database.run(
        _PIN,
        {
            "turn": claim.turn_id,
            "attempt": claim.attempt,
            "worker": claim.worker_id,
            "remembered": Jsonb(told.model_dump(mode="json")),
        },
    )
    return told.text


def _known(database: Database, claim: Claim, policy: MemoryPolicy) -> Remembered:
    params = {"tenant": claim.tenant_id, "user": claim.user_key, "basis": policy.basis}
    users = database.fetch(_UserRow, _USER, params)
    if not users:
        return Remembered()
    facts = database.fetch(_FactRow, _FACTS, (users[0].id,))
    return Remembered(
        preferences=users[0].preferences,
        facts=tuple(RememberedFact(**row._asdict()) for row in facts),
    )


def _count(engine: Engine, text: str) -> int:
    return engine.count_tokens(Prompt((Message(role=Role.USER, content=text),)))
