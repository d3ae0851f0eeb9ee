"""Send one delivery: claim, the adapter's steps, settle.

Whatever an attempt ends in is written in one transaction, fenced by the attempt's number; with it
the next delivery of the conversation becomes due.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog
from psycopg.types.json import Jsonb

from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.errors import (
    ChannelUnavailable,
    DatabaseUnavailable,
    DeliveryRefused,
    TurnmillError,
)
from turnmill.schemas.postgres.clock import MAX_DELAY_S
from turnmill.schemas.store.advance import lock_conversations
from turnmill.schemas.store.channels.deliveries import advance_deliveries
from turnmill.schemas.store.channels.sending import SEND_AGAIN, end_delivery
from turnmill.workers.delivery.base import Delivery, LeaseLost
from turnmill.workers.delivery.calls.posting import guarded
from turnmill.workers.delivery.claims import (
    DeliveryClaim,
    Holder,
    Remembered,
    claim_delivery,
    is_held,
    postpone_held,
)
from turnmill.workers.delivery.metrics import ATTEMPT_S, DELIVERIES_ENDED
from turnmill.workers.delivery.voice import Speaker
from turnmill.workers.turn.backoff import backoff_s

log = structlog.get_logger()

#: Pause before a delivery is claimed again whose progress is just being shown, seconds ...
HELD_POLL_S = 0.1
#: ... how long that is waited for, and when it is tried again after that. Who shows it may be dead.
HELD_WAIT_S, HELD_AGAIN_S = 1.0, 1.0

_FAILED = "The delivery worker failed at it; its log has the reason as delivery.failed."

_ENDS = {
    state: end_delivery(state)
    for state in (DeliveryState.SENT, DeliveryState.FAILED, DeliveryState.DROPPED)
}


@dataclass(frozen=True, slots=True)
class _Ended:
    """For good."""

    state: DeliveryState
    #: What the tenant is told.
    code: str | None = None
    message: str | None = None
    #: For the log alone: it may name hosts, or quote others.
    reason: str | None = None
    #: Whether this attempt has failed.
    counts: bool = False


@dataclass(frozen=True, slots=True)
class _Again:
    """Later, after `delay_s`."""

    delay_s: float
    counts: bool
    is_doubtful: bool
    code: str
    message: str


class Sender:
    """Sends deliveries of one process, from many threads."""

    def __init__(
        self,
        holder: Holder,
        deliveries: Mapping[str, Delivery],
        *,
        max_attempts: int,
        give_up: threading.Event,
        speaker: Speaker | None = None,
    ) -> None:
        """`give_up` ends the waiting for Postgres; the lease will expire."""
        self._holder = holder
        self._deliveries = deliveries
        self._max_attempts = max_attempts
        self._give_up = give_up
        self._speaker = speaker or Speaker(None, holder.lease_s)

    def send(self, channel: str, delivery_id: UUID) -> bool:
        """Send a delivery that a hint names; False if there was nothing to win.

        Raises `DatabaseUnavailable`: it may have been claimed; its lease will expire.
        """
        claim = self._claim(channel, delivery_id)
        if claim is None:
            return False
        began_at = time.monotonic()
        memory = Remembered(self._holder, claim)
        outcome = self._attempt(claim, memory)
        is_settled = outcome is not None and self._settle(claim, memory, outcome)
        ATTEMPT_S.labels(channel).observe(time.monotonic() - began_at)
        DELIVERIES_ENDED.labels(channel, _name(outcome) if is_settled else "fenced").inc()
        return True

    def _claim(self, channel: str, delivery_id: UUID) -> DeliveryClaim | None:
        """Wait a moment for who shows the delivery's progress; beyond that it comes back later."""
        until = time.monotonic() + HELD_WAIT_S
        while True:
            claim = claim_delivery(self._holder, channel, delivery_id)
            if claim or not is_held(self._holder, delivery_id):
                return claim
            if time.monotonic() > until:
                postpone_held(self._holder, delivery_id, HELD_AGAIN_S)
                return None
            time.sleep(HELD_POLL_S)

    def _attempt(self, claim: DeliveryClaim, memory: Remembered) -> _Ended | _Again | None:
        """None: the delivery is another attempt's."""
        if claim.failures >= self._max_attempts:
            message = (
                f"It was tried {claim.failures} times, and the delivery worker died of the last."
            )
            return _Ended(DeliveryState.FAILED, "attempts_used_up", message, message)
        try:
            with guarded(memory.hold):
                delivery = self._deliveries[claim.channel]
                is_sent = delivery.send(claim.job, memory)
                if is_sent:
                    self._speaker.speak(delivery, claim.job, memory)
        except LeaseLost:
            return None
        except DeliveryRefused as error:
            told = error.public_message
            return _Ended(DeliveryState.FAILED, error.public_code, told, error.message, counts=True)
        except ChannelUnavailable as error:
            return self._later(
                claim, error, retry_after_s=error.retry_after_s, is_doubtful=error.is_doubtful
            )
        except DatabaseUnavailable as error:
            log.warning("delivery.stalled", error=error.message, **_ids(claim))
            return self._later(claim, error)
        except Exception:
            log.exception("delivery.failed", **_ids(claim))
            return self._later(claim, TurnmillError(_FAILED))
        return _Ended(DeliveryState.SENT if is_sent else DeliveryState.DROPPED)

    def _later(
        self,
        claim: DeliveryClaim,
        error: TurnmillError,
        *,
        retry_after_s: float | None = None,
        is_doubtful: bool = True,
    ) -> _Ended | _Again:
        counts = retry_after_s is None
        tries = claim.failures + 1
        if counts and tries >= self._max_attempts:
            message = f"It was tried {tries} times; the last time: {error.public_message}"
            return _Ended(
                DeliveryState.FAILED, "attempts_used_up", message, error.message, counts=True
            )
        delay_s = backoff_s(tries) if retry_after_s is None else retry_after_s
        log.warning("delivery.delayed", reason=error.message, delay_s=delay_s, **_ids(claim))
        delay_s = min(delay_s, MAX_DELAY_S)
        # A doubt that this attempt found stays, for the attempt may have ended at the look-up.
        is_doubtful = is_doubtful or claim.job.is_doubtful
        return _Again(delay_s, counts, is_doubtful, error.code, error.public_message)

    def _settle(self, claim: DeliveryClaim, memory: Remembered, outcome: _Ended | _Again) -> bool:
        """Write the outcome, waiting for Postgres if it must; False if the attempt was fenced."""
        tries = 0
        while True:
            try:
                return self._write(claim, memory, outcome)
            except DatabaseUnavailable as error:
                tries += 1
                log.warning("delivery.stalled", error=error.message, **_ids(claim))
                if self._give_up.wait(backoff_s(tries, cap_s=2.0)):
                    return False

    def _write(self, claim: DeliveryClaim, memory: Remembered, outcome: _Ended | _Again) -> bool:
        params: dict[str, object] = claim.fence | {
            "progress": Jsonb(memory.value),
            "code": outcome.code,
            "message": outcome.message,
            "counts": int(outcome.counts),
        }
        if isinstance(outcome, _Again):
            params |= {"delay_s": outcome.delay_s, "is_doubtful": outcome.is_doubtful}
            return bool(self._holder.database.run(SEND_AGAIN, params))
        with self._holder.database.cursor() as cursor:
            lock_conversations(cursor, [claim.job.conversation_id])
            ended = cursor.execute(_ENDS[outcome.state], params).fetchone() is not None
            advance_deliveries(cursor, [claim.job.conversation_id])
        if ended and outcome.state is DeliveryState.FAILED:
            log.error("delivery.refused", code=outcome.code, reason=outcome.reason, **_ids(claim))
        return ended


def _name(outcome: _Ended | _Again | None) -> str:
    return outcome.state.value if isinstance(outcome, _Ended) else "again"


def _ids(claim: DeliveryClaim) -> dict[str, str]:
    return {"delivery_id": claim.job.delivery_id.hex, "channel": claim.channel}
