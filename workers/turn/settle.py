"""Settle: turns an outcome into the turn's next state, in one transaction.

Every statement here repeats the fence (attempt number, worker, `running`). Zero rows mean
that the turn belongs to somebody else now: the outcome is discarded, nothing is written.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.content import storable
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.outcomes import (
    ATTEMPTS_USED_UP,
    UNSTORABLE,
    Answered,
    Cancelled,
    Crashed,
    Failed,
    Outcome,
    Snoozed,
)
from turnmill.schemas.postgres.clock import MAX_DELAY_S
from turnmill.schemas.postgres.database import DATA_ERRORS, Cursor, Database
from turnmill.schemas.postgres.rows import rows_of
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.store.advance import advance, lock_conversations, lock_turns
from turnmill.schemas.store.claim import ABANDON
from turnmill.schemas.store.hand_off import hand_off
from turnmill.schemas.store.requeue import REQUEUE
from turnmill.schemas.store.settle import END
from turnmill.schemas.turns import TurnState
from turnmill.workers.turn.backoff import backoff_s
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.coalesce import Coalescer

log = structlog.get_logger()

#: Ends after which a person may be wanted.
_FAILURES = frozenset({TurnState.FAILED, TurnState.PARKED})


class _OutcomeRow(NamedTuple):
    outcome: str | None


_OUTCOME = "SELECT outcome FROM attempts WHERE turn_id = %s AND number = %s"

#: Those that an attempt's worker writes. Others cancel it, interrupt it, or find it lost.
_OWN_OUTCOMES = frozenset({"answered", "failed", "snoozed", "handed_back"})


class _Ended(NamedTuple):
    """A row of `END`."""

    turn_id: UUID


@dataclass(frozen=True)
class Ending:
    """How a running turn ends for good; the fields are columns of `END`."""

    turn_id: UUID
    conversation_id: UUID
    attempt: int
    worker_id: UUID
    #: Somebody may be waiting for the reply: tell them.
    is_watched: bool
    state: TurnState
    outcome: str
    error_code: str | None = None
    error_message: str | None = None
    content: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    tool_calls: list[dict[str, object]] | None = None
    logprobs: list[dict[str, object]] | None = None
    #: As `Answered` has it; no column.
    hand_off_because: str | None = None


def end_turns(database: Database, endings: Sequence[Ending]) -> list[bool]:
    """End running turns and move their conversations on, in one transaction and one round trip.

    False for each that was fenced. Raises `DatabaseUnavailable`: whether it was committed is
    unknown.
    """
    conversation_ids = list({ending.conversation_id for ending in endings})
    rows = json.dumps([vars(ending) for ending in endings], default=str)
    with database.cursor(pipeline=True) as cursor:
        lock_conversations(cursor, conversation_ids)
        lock_turns(cursor, [ending.turn_id for ending in endings])
        ended = cursor.connection.cursor(row_factory=rows_of(_Ended))
        ended.execute(END, (rows, TURN_CHANNEL))
        failures = [ending for ending in endings if ending.state in _FAILURES]
        declined = [ending for ending in endings if ending.hand_off_because is not None]
        # To read the rows here takes a second round trip.
        ended_ids = {row.turn_id for row in ended} if failures or declined else set()
        if failures:
            _hand_off_failures(cursor, failures, ended_ids)
        for ending in declined:
            if ending.turn_id in ended_ids:
                _hand_off_declined(cursor, ending)
        advance(cursor, conversation_ids)
    ended_ids |= {row.turn_id for row in ended}
    return [ending.turn_id in ended_ids for ending in endings]


def _hand_off_failures(cursor: Cursor, failures: list[Ending], ended_ids: set[UUID]) -> None:
    """Hand the conversations to people whose policies want that when a turn is not answered."""
    ids = {each.conversation_id for each in failures if each.turn_id in ended_ids}
    hand_off(cursor, list(ids), "The bot failed to answer.", after_failure=True)


def _hand_off_declined(cursor: Cursor, ending: Ending) -> None:
    """Hand a conversation to people because its bot does not know; its thread is told the reply."""
    because = ending.hand_off_because or ""
    hand_off(cursor, [ending.conversation_id], because, says=ending.content)


class Settler:
    """Writes the outcomes of this process's attempts."""

    def __init__(self, database: Database, *, max_attempts: int, give_up: threading.Event) -> None:
        """`give_up` ends the waiting for Postgres; the lease will expire."""
        self._database = database
        self._max_attempts = max_attempts
        self._give_up = give_up
        self._end: Coalescer[Ending, bool] = Coalescer(lambda items: end_turns(database, items))

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        """Write the outcome, waiting for Postgres if it must; False if the attempt was fenced.

        A turn whose reply cannot be stored fails; one that cannot be settled is tried again.
        """
        try:
            return self._write_in_time(claim, outcome)
        except DATA_ERRORS as error:
            log.error("reply.unstorable", turn_id=claim.turn_id.hex, error=type(error).__name__)
            return self._write_in_time(claim, UNSTORABLE)
        except Exception as error:
            log.exception("settle.failed", turn_id=claim.turn_id.hex)
            reason = f"{type(error).__name__} in the worker"
            return self._write_in_time(claim, Snoozed(backoff_s(claim.failures + 1), reason))

    def _write_in_time(self, claim: Claim, outcome: Outcome) -> bool:
        tries = 0
        while True:
            try:
                return self._write(claim, outcome) or (tries > 0 and self._is_ours(claim))
            except DatabaseUnavailable as error:
                tries += 1
                log.warning("settle.stalled", turn_id=claim.turn_id.hex, error=error.message)
                if self._give_up.wait(backoff_s(tries, cap_s=2.0)):
                    return False

    def _write(self, claim: Claim, outcome: Outcome) -> bool:
        match outcome:
            case Answered():
                return self._end(_answered(claim, outcome))
            case Failed(code, message):
                return self._end(_unanswered(claim, TurnState.FAILED, "failed", code, message))
            case Snoozed(reason=reason) if self.is_last(claim, outcome):
                message = f"The turn failed {self._max_attempts} times; the last time: {reason}"
                return self._end(
                    _unanswered(claim, TurnState.PARKED, "snoozed", ATTEMPTS_USED_UP, message)
                )
            case Snoozed():
                return self._requeue(claim, outcome)
            case Crashed():
                return len(self._database.run(ABANDON, claim.fence)) == 1
            case Cancelled():
                return False

    def is_last(self, claim: Claim, outcome: Outcome) -> bool:
        """Whether settling this outcome parks the turn."""
        return (
            isinstance(outcome, Snoozed)
            and outcome.counts
            and claim.failures + 1 >= self._max_attempts
        )

    def _requeue(self, claim: Claim, outcome: Snoozed) -> bool:
        rows = self._database.run(
            REQUEUE,
            {
                "turn": claim.turn_id,
                "attempt": claim.attempt,
                "worker": claim.worker_id,
                "counts": int(outcome.counts),
                "outcome": "snoozed" if outcome.counts else "handed_back",
                "error": storable(outcome.reason),
                "delay_s": min(outcome.delay_s, MAX_DELAY_S),
            },
        )
        return len(rows) == 1

    def _is_ours(self, claim: Claim) -> bool:
        """Whether an earlier commit, whose answer was lost, did go through."""
        rows = self._database.fetch(_OutcomeRow, _OUTCOME, (claim.turn_id, claim.attempt))
        return bool(rows) and rows[0].outcome in _OWN_OUTCOMES


def _answered(claim: Claim, outcome: Answered) -> Ending:
    reply = outcome.reply
    return Ending(
        claim.turn_id,
        claim.conversation_id,
        claim.attempt,
        claim.worker_id,
        is_watched=claim.is_watched,
        state=TurnState.COMPLETED,
        outcome="answered",
        content=reply.content,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
        cached_tokens=reply.usage.cached_tokens,
        tool_calls=[call.model_dump() for call in reply.tool_calls] or None,
        logprobs=[token.model_dump() for token in reply.logprobs] or None,
        hand_off_because=outcome.hand_off_because,
    )


def _unanswered(claim: Claim, state: TurnState, outcome: str, code: str, message: str) -> Ending:
    return Ending(
        claim.turn_id,
        claim.conversation_id,
        claim.attempt,
        claim.worker_id,
        is_watched=claim.is_watched,
        state=state,
        outcome=outcome,
        error_code=code,
        error_message=storable(message),
    )
