"""Win a delivery, know its text, and hold it while it is sent."""

import time
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import structlog
from psycopg.types.json import Jsonb

from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.channels.policies import Policies, VoiceReplies
from turnmill.schemas.citations.sources import read_sources
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id
from turnmill.schemas.store.channels.sending import (
    CLAIM_DELIVERY,
    CLAIM_PROGRESS,
    DUE_PROGRESS,
    IS_HELD,
    KEEP,
    POSTPONE_HELD,
    Details,
)
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Job, LeaseLost
from turnmill.workers.delivery.texts.sources import sources_below
from turnmill.workers.upkeep.clock import DatabaseClock
from turnmill.workers.upkeep.isolated import Resting, all_isolated

log = structlog.get_logger()

#: What adapters remember of text that people see.
_SHOWN = ("parts", "stream", "draft", "preview")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who claims: one process."""

    database: Database
    worker_id: UUID
    lease_s: float
    clock: DatabaseClock = field(default_factory=DatabaseClock)

    @property
    def judged(self) -> dict[str, object]:
        """By what time leases are judged, as a named parameter of statements."""
        return {"latest_s": self.clock.judging_s(self.lease_s)}


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """A delivery that this process holds."""

    job: Job
    channel: str
    attempt: int
    failures: int
    worker_id: UUID
    progress: dict[str, Any]
    #: Of the delivery's turn; None for a notice, and for a turn that is gone.
    turn_state: TurnState | None
    model: str | None
    lane: str | None
    #: The reply as far as it is written, while its turn is open.
    shown: str
    #: When it was asked for, `time.monotonic`: its lease ends a lease's time later, or a bit more.
    asked_at: float

    @property
    def fence(self) -> dict[str, object]:
        return {
            "delivery": self.job.delivery_id,
            "attempt": self.attempt,
            "worker": self.worker_id,
        }


class Remembered:
    """A claim's memory; see `Memory`."""

    def __init__(self, holder: Holder, claim: DeliveryClaim) -> None:
        self._holder = holder
        self._claim = claim
        self.value: dict[str, Any] = dict(claim.progress)
        self._held_until = claim.asked_at + holder.lease_s

    def hold(self) -> None:
        """Make sure that the delivery is held until a call to the platform has ended.

        To be called right before each call: the process may have been paused since the last commit,
        and the delivery be another attempt's. Raises as `keep`.
        """
        # A call takes half a lease at most (`DeliverySettings`).
        if time.monotonic() > self._held_until - self._holder.lease_s / 2:
            self.keep()

    def keep(self, **changes: object) -> None:
        self.value.update(changes)
        asked_at = time.monotonic()
        params = {"progress": Jsonb(self.value), "lease_s": self._holder.lease_s}
        if not self._holder.database.run(KEEP, self._claim.fence | params):
            raise LeaseLost
        self._held_until = asked_at + self._holder.lease_s


def claim_delivery(holder: Holder, channel: str, delivery_id: UUID) -> DeliveryClaim | None:
    """Win a queued delivery for a new attempt, or None if there is nothing to win.

    Raises `DatabaseUnavailable`: whether it was won is unknown; its lease will tell.
    """
    params = {"delivery": delivery_id, "channel": channel, "worker": holder.worker_id}
    params |= {"lease_s": holder.lease_s} | holder.judged
    asked_at = time.monotonic()
    rows = holder.database.fetch(Details, CLAIM_DELIVERY, params)
    return _claim(rows[0], asked_at) if rows else None


def is_held(holder: Holder, delivery_id: UUID) -> bool:
    """Whether a due delivery is held by who shows its progress. Raises `DatabaseUnavailable`."""
    return bool(holder.database.run(IS_HELD, {"delivery": delivery_id} | holder.judged))


def postpone_held(holder: Holder, delivery_id: UUID, delay_s: float) -> bool:
    """Try a delivery that is held again in `delay_s`; False: it is not. Raises
    `DatabaseUnavailable`."""
    params = {"delivery": delivery_id, "delay_s": delay_s} | holder.judged
    return bool(holder.database.run(POSTPONE_HELD, params))


def claim_progress(
    holder: Holder, channel: str, limit: int, resting: Resting | None = None
) -> list[DeliveryClaim]:
    """Win pending deliveries whose progress is due.

    `resting`: those that PostgreSQL refused to change in earlier calls; this call keeps it up to
    date. Raises `DatabaseUnavailable`.
    """
    resting = Resting() if resting is None else resting
    params = {"channel": channel, "worker": holder.worker_id, "lease_s": holder.lease_s}
    params |= {"limit": limit, "resting": resting.ids} | holder.judged
    asked_at = time.monotonic()

    def claim(delivery_id: UUID | None) -> list[Details]:
        return holder.database.fetch(Details, CLAIM_PROGRESS, params | {"delivery": delivery_id})

    def due() -> list[UUID]:
        return [row.id for row in holder.database.fetch(Id, DUE_PROGRESS, params)]

    return [_claim(row, asked_at) for row in all_isolated(claim, due, "delivery", resting)]


def _claim(row: Details, asked_at: float) -> DeliveryClaim:
    job = Job(
        delivery_id=row.id,
        kind=DeliveryKind(row.kind),
        turn_id=row.turn_id,
        conversation_id=row.conversation_id,
        target=row.target,
        text=row.content,
        is_reply=False,
        is_handed_off=row.is_handed_off,
        is_doubtful=row.is_doubtful,
        because=row.because,
    )
    if job.kind is DeliveryKind.REPLY:
        job = _reply(job, row)
    return DeliveryClaim(
        job=job,
        channel=row.channel,
        attempt=row.attempt,
        failures=row.failures,
        worker_id=row.worker_id,
        progress=row.progress,
        turn_state=None if row.turn_state is None else TurnState(row.turn_state),
        model=row.model,
        lane=row.lane,
        shown=row.shown or "",
        asked_at=asked_at,
    )


def _reply(job: Job, row: Details) -> Job:
    """The reply of a turn, or the bot's own word about why there is none.

    While a person answers, only a reply that was begun is completed. A status is no beginning.
    """
    is_begun = any(row.progress.get(name) for name in _SHOWN)
    has_ended = row.turn_state in (TurnState.CANCELLED, TurnState.HANDED_OFF)
    if has_ended or (row.is_handed_off and not is_begun):
        return replace(job, text=None)
    if row.reply and row.reply.strip():
        is_spoken = bool(row.was_spoken) and (_policies(row).voice_replies is VoiceReplies.TO_VOICE)
        job = replace(job, text=row.reply, is_reply=True, is_spoken=is_spoken)
        return _with_sources(job, row.reply, row)
    texts = _policies(row).texts
    is_late = row.turn_error == "deadline_exceeded"
    return replace(job, text=texts.expired if is_late else texts.failed)


def _with_sources(job: Job, reply: str, row: Details) -> Job:
    """The reply with the sources that it cites below it, if its bot shows them."""
    sources, _ = read_sources(reply, row.sources, row.sources_shown, row.first_number)
    policies = _policies(row)
    if not sources or not policies.shows_sources:
        return replace(job, sources=sources)
    below = sources_below(reply, sources, policies.texts.sources)
    return replace(job, text=f"{reply}{below}", sources=sources, below=below)


def _policies(row: Details) -> Policies:
    return Policies.of(row.conversation_policies).over(Policies.of(row.bot_policies))
