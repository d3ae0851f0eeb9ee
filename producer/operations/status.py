"""`turnmill status`: lanes, workers, the oldest turn of each lane and why it waits, the rate."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from turnmill.producer.operations.queue import OpenTurns, read_open
from turnmill.producer.operations.why import Explainer, Why
from turnmill.producer.operations.workers import WorkerRow, WorkerState, list_workers
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.fleet.lanes import Pause, read_pauses
from turnmill.schemas.store.fleet.liveness import ENDED_WINDOWS_S
from turnmill.schemas.turns import Lane

#: A rate over the shorter window is believed when it counts so many turns.
_ENOUGH_TURNS = 20


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True)


class PauseStatus(_Shown):
    """A pause of a lane."""

    lane: Lane
    #: None: of all models.
    model: str | None
    paused_at: datetime
    paused_by: str
    reason: str


class OldestTurn(_Shown):
    """The oldest queued turn of a lane."""

    turn_id: str
    age_s: float
    #: None: it was claimed or ended while the status was read.
    why: Why | None


class LaneStatus(_Shown):
    """One lane of one model."""

    model: str
    lane: Lane
    queued: int
    #: Not before a time.
    snoozed: int
    #: Behind an earlier turn of their conversation.
    waiting: int
    running: int
    #: Of paused batches.
    held: int
    #: Some of the counts are estimates: there are more than are counted.
    is_estimate: bool
    #: Of the workers that consume it.
    slots: int
    pause: PauseStatus | None
    #: Turns that live workers ended; None: their release does not say.
    turns_per_s: float | None
    #: Until what is open now is answered; None: nothing is, or no rate is known.
    left_s: float | None
    oldest: OldestTurn | None


class WorkerStatus(_Shown):
    """One worker that lives, or has ended within the last hour."""

    worker_id: str
    host: str
    pid: int
    model: str
    engine: str
    lanes: list[str]
    #: Turns of each lane that run at once, and turns that run.
    concurrency: int
    busy: int
    state: WorkerState
    #: Seconds since its last heartbeat.
    beat_age_s: float
    version: str | None
    #: Why its engine takes no turns.
    unavailable_because: str | None
    draining_since: datetime | None
    drain_asked_by: str | None


class Status(_Shown):
    """The system at one moment."""

    at: datetime
    lanes: list[LaneStatus]
    pauses: list[PauseStatus]
    workers: list[WorkerStatus]


def read_status(database: Database, settings: Settings) -> Status:
    """Read how the system is. Its cost does not grow with the turns that are open.

    Raises:
        DatabaseUnavailable: nobody knows.
    """
    workers = list_workers(database, settings.worker.lease_s)
    pauses = read_pauses(database)
    explainer = Explainer(database, settings, workers, pauses)
    return Status(
        at=datetime.now(UTC),
        lanes=[
            _lane(explainer, model, Lane(lane), found, pauses, workers)
            for (model, lane), found in sorted(_all_lanes(read_open(database), workers).items())
        ],
        pauses=[show_pause(pause) for pause in pauses],
        workers=[show_worker(worker) for worker in workers],
    )


def show_pause(row: Pause) -> PauseStatus:
    """A pause, as programs read it."""
    return PauseStatus(
        lane=Lane(row.lane),
        model=row.model or None,
        paused_at=row.paused_at,
        paused_by=row.paused_by,
        reason=row.reason,
    )


def show_worker(row: WorkerRow) -> WorkerStatus:
    """A worker's row, as programs read it."""
    return WorkerStatus(
        worker_id=row.shown_id,
        host=row.host,
        pid=row.pid,
        model=row.model,
        engine=row.engine,
        lanes=row.lanes,
        concurrency=row.slots,
        busy=row.busy,
        state=row.state,
        beat_age_s=round(row.beat_age_s, 1),
        version=row.version,
        unavailable_because=row.unavailable_because,
        draining_since=row.draining_since,
        drain_asked_by=row.drain_asked_by,
    )


def _all_lanes(
    found: dict[tuple[str, str], OpenTurns], workers: Iterable[WorkerRow]
) -> dict[tuple[str, str], OpenTurns]:
    """Those with open turns, and those that live workers serve."""
    served = {(w.model, lane): OpenTurns() for w in workers if w.is_alive for lane in w.lanes}
    return served | found


def _lane(
    explainer: Explainer,
    model: str,
    lane: Lane,
    found: OpenTurns,
    pauses: list[Pause],
    workers: list[WorkerRow],
) -> LaneStatus:
    pause = next((each for each in pauses if each.covers(lane, model)), None)
    serving = [w for w in workers if w.is_alive and w.model == model and lane in w.lanes]
    rate = _rate(lane, serving)
    return LaneStatus(
        model=model,
        lane=lane,
        queued=found.queued,
        snoozed=found.snoozed,
        waiting=found.waiting,
        running=found.running,
        held=found.held,
        is_estimate=found.is_estimate,
        slots=sum(w.slots for w in serving if w.state is WorkerState.CONSUMING),
        pause=show_pause(pause) if pause else None,
        turns_per_s=None if rate is None else round(rate, 2),
        left_s=round(found.total / rate, 1) if rate and found.total and not pause else None,
        oldest=_oldest(explainer, found),
    )


def _oldest(explainer: Explainer, found: OpenTurns) -> OldestTurn | None:
    heads = [*found.oldest, *found.oldest_held]
    if not heads:
        return None
    head = min(heads)
    shown = show_id(Prefix.TURN, head.turn_id)
    why = explainer.explain(head.turn_id)
    return OldestTurn(turn_id=shown, age_s=round(head.age_s, 1), why=why)


def _rate(lane: Lane, workers: list[WorkerRow]) -> float | None:
    """Compute the turns a second that these workers ended, over the shortest window that tells."""
    rates: defaultdict[float, float] = defaultdict(float)
    turns: defaultdict[float, int] = defaultdict(int)
    saying = [worker for worker in workers if worker.ended_lately is not None]
    if not saying:
        return None
    for worker in saying:
        counts = (worker.ended_lately or {}).get(lane) or [0] * len(ENDED_WINDOWS_S)
        for window_s, count in zip(ENDED_WINDOWS_S, counts, strict=False):
            rates[window_s] += count / min(max(worker.age_s, 1.0), window_s)
            turns[window_s] += count
    shortest = next((w for w in ENDED_WINDOWS_S if turns[w] >= _ENOUGH_TURNS), ENDED_WINDOWS_S[-1])
    return rates[shortest]
