"""Why a turn is not answered yet, in a sentence, with the command that helps where there is one."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from turnmill.producer.operations.lanes import resume_command
from turnmill.producer.operations.remedies import tenant_option, worker_command
from turnmill.producer.operations.workers import WorkerRow, WorkerState, list_workers
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.clock import IS_DUE
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.routes import PAUSED_LANE
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.store.fleet.lanes import Pause, read_pauses
from turnmill.schemas.store.fleet.liveness import RELAY_RUNS
from turnmill.schemas.turns import TurnState

#: A relay publishes what is due within a second; so much more is not slowness.
UNPUBLISHED_S = 5.0

_TURN = f"""
SELECT t.id, t.conversation_id, t.seq, t.state, t.model, t.batch_id, tenants.name AS tenant,
    t.attempt, t.worker_id,
    coalesce(o.lane, t.lane) AS lane, o.turn_id IS NOT NULL AS has_hint, {IS_DUE} AS is_due,
    EXISTS (SELECT FROM batches WHERE id = t.batch_id AND paused_at IS NOT NULL) AS is_held,
    extract(epoch FROM clock_timestamp() - o.due_at)::float AS due_s,
    extract(epoch FROM clock_timestamp() - o.published_at)::float AS published_s,
    (SELECT error FROM attempts WHERE turn_id = t.id ORDER BY number DESC LIMIT 1) AS error,
    (SELECT extract(epoch FROM clock_timestamp() - started_at)::float FROM attempts
     WHERE turn_id = t.id AND number = t.attempt) AS attempt_s
FROM turns t JOIN tenants ON tenants.id = t.tenant_id LEFT JOIN outbox o ON o.turn_id = t.id
WHERE t.id = %s
"""

#: The first open turn of the conversation: the others wait for it.
_HEAD = f"""
SELECT id FROM turns WHERE conversation_id = %s AND seq < %s AND state IN ({OPEN})
ORDER BY seq LIMIT 1
"""

_LANE = f"""
SELECT (SELECT count(*) FROM (
        SELECT FROM outbox WHERE model = %(model)s AND lane = %(lane)s AND published_at IS NOT NULL
        LIMIT %(window)s) AS hint)::int AS published,
    (SELECT count(*) FROM turns WHERE state = '{TurnState.RUNNING}' AND model = %(model)s
       AND lane = %(lane)s)::int AS running,
    {RELAY_RUNS} AS has_relay
"""


class Reason(StrEnum):
    """The kinds of reasons; programs read them."""

    RUNNING = "running"
    BEHIND_EARLIER_TURN = "behind_earlier_turn"
    BATCH_PAUSED = "batch_paused"
    LANE_PAUSED = "lane_paused"
    NOT_BEFORE = "not_before"
    NO_WORKER = "no_worker"
    ENGINE_AWAY = "engine_away"
    UNPUBLISHED = "unpublished"
    SLOTS_BUSY = "slots_busy"
    HINT_LOST = "hint_lost"
    ON_ITS_WAY = "on_its_way"


class Why(BaseModel):
    """Why a turn waits."""

    model_config = ConfigDict(frozen=True)

    reason: Reason
    text: str
    #: A command, where one helps.
    remedy: str | None = None

    def describe(self, of: str) -> str:
        """Say it in a sentence, with the command that helps on a line of its own."""
        helps = f"\n→ {self.remedy}" if self.remedy else ""
        return f"{of} {self.text}{helps}"


class _Turn(NamedTuple):
    """The row of `_TURN`. `lane` is its hint's, where it has one."""

    id: UUID
    conversation_id: UUID
    seq: int
    state: str
    model: str
    batch_id: UUID | None
    tenant: str
    attempt: int
    worker_id: UUID | None
    lane: str
    has_hint: bool
    #: None without a hint, as `due_s` and `published_s`.
    is_due: bool | None
    #: Its batch is paused, whether its hint has left the lane already or not.
    is_held: bool
    due_s: float | None
    published_s: float | None
    #: Of the latest attempt.
    error: str | None
    attempt_s: float | None


class _Head(NamedTuple):
    """The row of `_HEAD`."""

    id: UUID


class _Lane(NamedTuple):
    """The row of `_LANE`."""

    #: At most the relay's window.
    published: int
    running: int
    #: A relay of a release before this one is not seen.
    has_relay: bool


class Explainer:
    """Explains turns, with what it reads once for all of them."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        workers: Sequence[WorkerRow] | None = None,
        pauses: Sequence[Pause] | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        lease_s = settings.worker.lease_s
        self._workers = list_workers(database, lease_s) if workers is None else workers
        self._pauses = read_pauses(database) if pauses is None else pauses

    def explain(self, turn_id: UUID) -> Why | None:
        """Say why a turn is not answered yet; None if it has ended. Raises `DatabaseUnavailable`.

        Of several reasons the first one is named that would keep the turn for ever.
        """
        found = self._database.fetch(_Turn, _TURN, (turn_id,))
        if not found:
            return None
        turn = found[0]
        if turn.state == TurnState.WAITING:
            return self._behind(turn)
        if turn.state == TurnState.RUNNING:
            return self._running(turn)
        if turn.state != TurnState.QUEUED:
            return None
        return (
            self._paused(turn) or _not_before(turn) or self._unserved(turn) or self._in_line(turn)
        )

    def _behind(self, turn: _Turn) -> Why:
        heads = self._database.fetch(_Head, _HEAD, (turn.conversation_id, turn.seq))
        text = "waits for an earlier turn of its conversation"
        if heads:
            head = self.explain(heads[0].id)
            shown = show_id(Prefix.TURN, heads[0].id)
            about = f", which {head.text}" if head else ""
            return Why(
                reason=Reason.BEHIND_EARLIER_TURN,
                text=f"{text}, {shown}{about}",
                remedy=head.remedy if head else None,
            )
        return Why(reason=Reason.BEHIND_EARLIER_TURN, text=text)

    def _running(self, turn: _Turn) -> Why:
        found = [worker for worker in self._workers if worker.id == turn.worker_id]
        where = f" by {found[0].shown_id} ({found[0].state})" if found else ""
        text = f"is being answered{where} for {_span(turn.attempt_s)}, attempt {turn.attempt}"
        return Why(reason=Reason.RUNNING, text=text)

    def _paused(self, turn: _Turn) -> Why | None:
        if turn.is_held or turn.lane == PAUSED_LANE:
            batch = show_id(Prefix.BATCH, turn.batch_id) if turn.batch_id else "BATCH"
            return Why(
                reason=Reason.BATCH_PAUSED,
                text="belongs to a batch that is paused",
                remedy=f"turnmill batch resume {batch}"
                + tenant_option(turn.tenant, self._settings.tenant),
            )
        for pause in self._pauses:
            if pause.covers(turn.lane, turn.model):
                return Why(
                    reason=Reason.LANE_PAUSED,
                    text=f"is in lane {turn.lane}, {pause_text(pause)}",
                    remedy=resume_command(pause),
                )
        return None

    def _unserved(self, turn: _Turn) -> Why | None:
        """Nobody takes hints of the turn's lane."""
        serving = [w for w in self._workers
                   if w.is_alive and w.model == turn.model and turn.lane in w.lanes]  # fmt: skip
        states = {worker.state for worker in serving}
        if WorkerState.CONSUMING in states:
            return None
        where = f"lane {turn.lane} of model {turn.model}"
        if WorkerState.AWAY in states:
            reason = next(w.unavailable_because for w in serving if w.state is WorkerState.AWAY)
            text = f"waits for an engine: the workers of {where} take no turns ({reason})"
            return Why(reason=Reason.ENGINE_AWAY, text=text)
        if WorkerState.IDLE in states:
            text = (
                f"waits for a worker: those of {where} live and take no hints, because they have "
                "lost the broker or stand by"
            )
            return Why(reason=Reason.NO_WORKER, text=text, remedy="turnmill doctor")
        others = f" ({', '.join(sorted(states))})" if states else ""
        return Why(
            reason=Reason.NO_WORKER,
            text=f"waits for a worker: none consumes {where}{others}",
            remedy=worker_command(turn.model, turn.lane, self._settings),
        )

    def _in_line(self, turn: _Turn) -> Why:
        window = self._settings.relay.window
        params = {"model": turn.model, "lane": turn.lane, "window": window}
        (lane,) = self._database.fetch(_Lane, _LANE, params)
        slots = sum(worker.slots for worker in self._workers if worker.model == turn.model
                    and turn.lane in worker.lanes
                    and worker.state is WorkerState.CONSUMING)  # fmt: skip
        if lane.running >= slots or (turn.published_s is None and lane.published >= window):
            text = f"is in line: {lane.running} of {slots} slots of its lane are busy"
            return Why(reason=Reason.SLOTS_BUSY, text=text)
        if (turn.published_s or 0.0) > self._settings.worker.hint_lost_after_s:
            return Why(
                reason=Reason.HINT_LOST,
                text=f"was hinted {_span(turn.published_s)} ago, and a slot is free: its hint is "
                "lost, and the relay publishes it again",
            )
        if (turn.due_s or 0.0) > UNPUBLISHED_S:
            return _unpublished(turn, lane)
        return Why(reason=Reason.ON_ITS_WAY, text="is on its way to a worker")


def _unpublished(turn: _Turn, lane: _Lane) -> Why:
    """Say why the broker has no hint. A relay marks one before the broker has confirmed it, and
    takes the mark back if it does not: either way a slot is free and nobody has the hint."""
    if not lane.has_relay and turn.published_s is None:
        text = "has no hint in the broker: no relay runs, or it does not reach PostgreSQL"
        return Why(reason=Reason.UNPUBLISHED, text=text, remedy="turnmill relay")
    return Why(
        reason=Reason.UNPUBLISHED,
        text=f"has been due for {_span(turn.due_s)}, and no worker has its hint: a relay runs, and "
        "the broker does not take it, or has it only just",
        remedy="turnmill doctor",
    )


def pause_text(pause: Pause) -> str:
    """Say since when, by whom and why a lane is paused."""
    reason = f": {pause.reason}" if pause.reason else ""
    return f"paused since {_time(pause.paused_at)} by {pause.paused_by}{reason}"


def _not_before(turn: _Turn) -> Why | None:
    if turn.is_due is not False:
        return None
    wait = _span(-(turn.due_s or 0.0))
    if not turn.attempt:
        return Why(reason=Reason.NOT_BEFORE, text=f"waits {wait} for further messages")
    error = f": {turn.error}" if turn.error else ""
    text = f"backs off for {wait} after attempt {turn.attempt}{error}"
    return Why(reason=Reason.NOT_BEFORE, text=text)


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _span(seconds: float | None) -> str:
    seconds = max(seconds or 0.0, 0.0)
    return (
        f"{seconds:.1f} s"
        if seconds < 10
        else f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
    )
