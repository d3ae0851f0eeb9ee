"""Settle: turns an outcome into the turn's next state, in one transaction.

Every statement here repeats the fence (attempt number, worker, `running`). Zero rows mean
that the turn belongs to somebody else now: the outcome is discarded, nothing is written.
"""

import threading
from typing import Any
from uuid import UUID

import structlog

from turnmill.schemas.advance import advance, lock_conversation
from turnmill.schemas.database import Cursor, Database, notify
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.outcomes import Answered, Cancelled, Failed, Outcome, Snoozed
from turnmill.schemas.routes import OUTBOX_CHANNEL, TURN_CHANNEL
from turnmill.schemas.turns import Lane, TurnState
from turnmill.workers.backoff import backoff_s
from turnmill.workers.lease import Claim

log = structlog.get_logger()

_END = """
WITH turn AS (
    UPDATE turns SET state = %(state)s, settled_at = clock_timestamp(), leased_until = NULL,
        error_code = %(error_code)s, error_message = %(error_message)s
    WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND state = 'running'
    RETURNING id, attempt
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = %(outcome)s, error = %(error)s
    FROM turn WHERE turn_id = turn.id AND number = turn.attempt
), kept AS (
    DELETE FROM chunks USING turn WHERE turn_id = turn.id
), reply AS (
    INSERT INTO replies
        (turn_id, attempt, content, finish_reason, prompt_tokens, completion_tokens)
    SELECT turn.id, turn.attempt, %(content)s, %(finish_reason)s, %(prompt_tokens)s,
        %(completion_tokens)s
    FROM turn WHERE %(content)s::text IS NOT NULL
)
SELECT id FROM turn
"""

_REQUEUE = """
WITH turn AS (
    UPDATE turns SET state = 'queued', worker_id = NULL, leased_until = NULL,
        failures = failures + %(counts)s
    WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND state = 'running'
    RETURNING id, attempt, model, lane, deadline_at
), attempt AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = %(outcome)s, error = %(error)s
    FROM turn WHERE turn_id = turn.id AND number = turn.attempt
), hint AS (
    INSERT INTO outbox (turn_id, model, lane, deadline_at, due_at)
    SELECT id, model, (SELECT lane FROM attempts WHERE turn_id = turn.id AND number = turn.attempt),
        deadline_at, clock_timestamp() + make_interval(secs => %(delay_s)s)
    FROM turn
)
SELECT id FROM turn
"""

_STATE = "SELECT state, attempt FROM turns WHERE id = %s"


def settle(
    database: Database,
    claim: Claim,
    outcome: Outcome,
    *,
    max_attempts: int,
    give_up: threading.Event,
) -> bool:
    """Write the outcome, waiting for Postgres if it must; False if the attempt was fenced.

    `give_up` ends the waiting: then the lease expires and another attempt answers the turn.
    """
    tries = 0
    while True:
        try:
            return _write(database, claim, outcome, max_attempts) or (
                tries > 0 and _is_ours(database, claim)
            )
        except DatabaseUnavailable as error:
            tries += 1
            log.warning("settle.stalled", turn_id=claim.turn_id.hex, error=error.message)
            if give_up.wait(backoff_s(tries, cap_s=2.0)):
                return False


def end_turn(
    cursor: Cursor,
    *,
    turn_id: UUID,
    conversation_id: UUID,
    attempt: int,
    worker_id: UUID,
    state: TurnState,
    outcome: str,
    error: tuple[str, str] | None = None,
    reply: dict[str, Any] | None = None,
) -> Cursor:
    """End a running turn for good and move its conversation on; no row if it was fenced."""
    no_reply = {
        "content": None,
        "finish_reason": None,
        "prompt_tokens": None,
        "completion_tokens": None,
    }
    lock_conversation(cursor, conversation_id)
    ended = cursor.connection.cursor()
    ended.execute(
        _END,
        {
            "turn": turn_id,
            "attempt": attempt,
            "worker": worker_id,
            "state": state,
            "outcome": outcome,
            "error": error[0] if error else None,
            "error_code": error[0] if error else None,
            "error_message": error[1] if error else None,
            **(reply or no_reply),
        },
    )
    advance(cursor, conversation_id)
    return ended


def _write(database: Database, claim: Claim, outcome: Outcome, max_attempts: int) -> bool:
    match outcome:
        case Answered(reply):
            columns = {
                "content": reply.content,
                "finish_reason": reply.finish_reason,
                "prompt_tokens": reply.usage.prompt_tokens,
                "completion_tokens": reply.usage.completion_tokens,
            }
            return _end(database, claim, TurnState.COMPLETED, "answered", reply=columns)
        case Failed(code, message):
            return _end(database, claim, TurnState.FAILED, "failed", error=(code, message))
        case Snoozed(_, reason, counts) if counts and claim.failures + 1 >= max_attempts:
            message = f"The turn failed {max_attempts} times; the last time: {reason}"
            return _end(
                database, claim, TurnState.PARKED, "snoozed", error=("attempts_used_up", message)
            )
        case Snoozed():
            return _requeue(database, claim, outcome)
        case Cancelled():
            return False


def _end(
    database: Database,
    claim: Claim,
    state: TurnState,
    outcome: str,
    *,
    error: tuple[str, str] | None = None,
    reply: dict[str, Any] | None = None,
) -> bool:
    with database.cursor(pipeline=True) as cursor:
        ended = end_turn(
            cursor,
            turn_id=claim.turn_id,
            conversation_id=claim.conversation_id,
            attempt=claim.attempt,
            worker_id=claim.worker_id,
            state=state,
            outcome=outcome,
            error=error,
            reply=reply,
        )
        if claim.lane is Lane.INTERACTIVE:
            notify(cursor, TURN_CHANNEL, claim.turn_id.hex)
    return ended.rowcount == 1


def _requeue(database: Database, claim: Claim, outcome: Snoozed) -> bool:
    with database.cursor(pipeline=True) as cursor:
        requeued = cursor.connection.cursor()
        requeued.execute(
            _REQUEUE,
            {
                "turn": claim.turn_id,
                "attempt": claim.attempt,
                "worker": claim.worker_id,
                "counts": int(outcome.counts),
                "outcome": "snoozed" if outcome.counts else "handed_back",
                "error": outcome.reason,
                "delay_s": outcome.delay_s,
            },
        )
        notify(cursor, OUTBOX_CHANNEL)
    return requeued.rowcount == 1


def _is_ours(database: Database, claim: Claim) -> bool:
    """Whether an earlier commit, whose answer was lost, did go through."""
    rows = database.run(_STATE, (claim.turn_id,))
    return bool(rows) and rows[0].attempt == claim.attempt and rows[0].state != TurnState.RUNNING
