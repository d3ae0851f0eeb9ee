"""What is open, by model and lane, at a cost that does not grow with it.

Every figure comes from an index, and no query reads more than `COUNTED` entries of one. Beyond
that the planner's estimate is taken, and the lane says that its figures are estimates.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from psycopg.abc import Params
from psycopg.rows import scalar_row

from turnmill.schemas.postgres.clock import IS_DUE
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.routes import DELIVERY_LANE, PAUSED_LANE
from turnmill.schemas.store.fleet.lanes import is_paused
from turnmill.schemas.turns import Lane, TurnState

#: So many entries of an index are counted; more are estimated.
COUNTED = 10_000
#: Of each order that the outbox has, so many heads are looked at for the oldest turn.
_HEADS = 5

#: Runs first, in the same transaction. A limit makes the planner hope that a scan of the whole
#: table meets enough rows soon; in a table of finished turns it meets none.
BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"

#: The lanes that hints are owed for or published in, found by skipping through the two indexes, and
#: the hints of each. One that is not due yet, or that somebody has paused, is not late.
_HINTS = f"""
WITH RECURSIVE unpublished (model, lane) AS (
    (SELECT model, lane FROM outbox WHERE published_at IS NULL ORDER BY model, lane LIMIT 1)
    UNION ALL
    SELECT next.model, next.lane FROM unpublished AS last CROSS JOIN LATERAL (
        SELECT o.model, o.lane FROM outbox o
        WHERE o.published_at IS NULL AND (o.model, o.lane) > (last.model, last.lane)
        ORDER BY o.model, o.lane LIMIT 1) AS next
), published (model, lane) AS (
    (SELECT model, lane FROM outbox WHERE published_at IS NOT NULL ORDER BY model, lane LIMIT 1)
    UNION ALL
    SELECT next.model, next.lane FROM published AS last CROSS JOIN LATERAL (
        SELECT o.model, o.lane FROM outbox o
        WHERE o.published_at IS NOT NULL AND (o.model, o.lane) > (last.model, last.lane)
        ORDER BY o.model, o.lane LIMIT 1) AS next
)
SELECT pair.model, pair.lane, owed.hints::int AS unpublished, sent.hints::int AS published,
    CASE WHEN owed.due_at IS NULL OR pair.lane = '{PAUSED_LANE}'
              OR {is_paused("pair.lane", "pair.model")} THEN 0
         ELSE extract(epoch FROM clock_timestamp() - owed.due_at) END::float AS late_s
FROM (SELECT * FROM unpublished UNION SELECT * FROM published) AS pair CROSS JOIN LATERAL (
    SELECT count(*) AS hints, min(due_at) FILTER (WHERE due_at <= clock_timestamp()) AS due_at
    FROM (SELECT due_at FROM outbox
          WHERE model = pair.model AND lane = pair.lane AND published_at IS NULL
          ORDER BY deadline_at, due_at LIMIT {COUNTED}) AS hint
) AS owed CROSS JOIN LATERAL (
    SELECT count(*) AS hints
    FROM (SELECT FROM outbox
          WHERE model = pair.model AND lane = pair.lane AND published_at IS NOT NULL
          LIMIT {COUNTED}) AS hint
) AS sent
ORDER BY pair.model, pair.lane
"""

_UNPUBLISHED = (
    "SELECT FROM outbox WHERE model = %(model)s AND lane = %(lane)s AND published_at IS NULL"
)


class _Model(NamedTuple):
    model: str


_WAITING = f"SELECT model FROM turns WHERE state = '{TurnState.WAITING}' AND lane = %(lane)s"

#: Rows that wait for their time are few: the time is at most half a minute away.
_SNOOZED = f"""
SELECT model, lane, count(*) AS turns FROM (
    SELECT model, lane FROM outbox
    WHERE published_at IS NULL AND NOT is_immediate AND due_at > now() AND NOT {IS_DUE}
    LIMIT {COUNTED}
) AS row GROUP BY model, lane
"""

#: At most as many as all workers have slots.
_RUNNING = f"""
SELECT model, lane, count(*) AS turns FROM turns WHERE state = '{TurnState.RUNNING}'
GROUP BY model, lane
"""

#: Ids begin with the time. The heads of a lane's orders: what is published, what has no deadline,
#: and what has one. A turn that was tried before may be older than they are.
_OLDEST = f"""
SELECT head.turn_id, greatest(extract(epoch FROM clock_timestamp() - t.accepted_at), 0)::float
    AS age_s
FROM (
    (SELECT turn_id FROM outbox WHERE model = %(model)s AND lane = %(lane)s
       AND published_at IS NOT NULL ORDER BY published_at LIMIT {_HEADS})
    UNION ALL
    (SELECT turn_id FROM outbox WHERE model = %(model)s AND lane = %(lane)s
       AND published_at IS NULL AND deadline_at IS NULL
     ORDER BY deadline_at, due_at LIMIT {_HEADS})
    UNION ALL
    (SELECT turn_id FROM outbox WHERE model = %(model)s AND lane = %(lane)s
       AND published_at IS NULL AND deadline_at IS NOT NULL
     ORDER BY deadline_at, due_at LIMIT {_HEADS})
) AS head JOIN turns t ON t.id = head.turn_id ORDER BY head.turn_id LIMIT 1
"""


class Oldest(NamedTuple):
    """The oldest turn of a lane that is due or snoozed."""

    turn_id: UUID
    age_s: float


class Hints(NamedTuple):
    """A row of `_HINTS`: the hints of one lane of a model, or of the deliveries of a channel."""

    model: str
    lane: str
    #: Counted up to `COUNTED`, or estimated.
    unpublished: int
    #: At most the relay's window.
    published: int
    #: Since the first unpublished one is due, seconds; 0: none is.
    late_s: float

    @property
    def is_estimate(self) -> bool:
        return self.unpublished >= COUNTED


class _Count(NamedTuple):
    """A row of `_SNOOZED` and `_RUNNING`."""

    model: str
    lane: str
    turns: int


@dataclass
class OpenTurns:
    """The open turns of one lane of one model."""

    #: Due, in the broker or on their way there.
    queued: int = 0
    #: Of these, those whose hint the broker has.
    published: int = 0
    #: Not before a time: they back off, or a quiet window lasts.
    snoozed: int = 0
    #: Behind an earlier turn of their conversation.
    waiting: int = 0
    running: int = 0
    #: Of paused batches.
    held: int = 0
    is_estimate: bool = False
    oldest: list[Oldest] = field(default_factory=list)
    #: Of paused batches.
    oldest_held: list[Oldest] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.queued + self.snoozed + self.waiting + self.running


def read_open(database: Database) -> dict[tuple[str, str], OpenTurns]:
    """Read what is open, by model and lane. Raises `DatabaseUnavailable`."""
    with database.cursor() as cursor:
        return count_open(cursor, read_hints(cursor))


def read_hints(cursor: Cursor) -> list[Hints]:
    """Count the hints of all lanes of all models, and those of all channels."""
    cursor.execute(BY_INDEX)
    return [_estimated(cursor, row) for row in fetch(cursor, Hints, _HINTS)]


def count_open(cursor: Cursor, hints: Iterable[Hints]) -> dict[tuple[str, str], OpenTurns]:
    """Count the open turns by model and lane, their hints having been counted."""
    lanes: defaultdict[tuple[str, str], OpenTurns] = defaultdict(OpenTurns)
    for hint in hints:
        if hint.lane != DELIVERY_LANE:
            _add_hints(cursor, hint, lanes)
    for row in fetch(cursor, _Count, _SNOOZED):
        # Those of batches that are paused are held, not snoozed. Deliveries back off here, too.
        if row.lane not in (PAUSED_LANE, DELIVERY_LANE):
            found = lanes[row.model, row.lane]
            found.snoozed = row.turns
            found.queued = max(found.queued - row.turns, 0)
    for row in fetch(cursor, _Count, _RUNNING):
        lanes[row.model, row.lane].running = row.turns
    for lane in Lane:
        _add_waiting(cursor, lane, lanes)
    return dict(lanes)


def _estimated(cursor: Cursor, row: Hints) -> Hints:
    if not row.is_estimate:
        return row
    estimate = _estimate(cursor, _UNPUBLISHED, {"model": row.model, "lane": row.lane})
    return row._replace(unpublished=max(estimate, COUNTED))


def _add_hints(cursor: Cursor, row: Hints, lanes: defaultdict[tuple[str, str], OpenTurns]) -> None:
    is_held = row.lane == PAUSED_LANE
    # A batch's turns are accepted into this lane.
    found = lanes[row.model, Lane.BATCH if is_held else row.lane]
    found.is_estimate |= row.is_estimate
    oldest = fetch(cursor, Oldest, _OLDEST, {"model": row.model, "lane": row.lane})
    if is_held:
        found.held, found.oldest_held = row.unpublished, oldest
        return
    found.published, found.oldest = row.published, oldest
    found.queued = row.unpublished + row.published


def _add_waiting(
    cursor: Cursor, lane: Lane, lanes: defaultdict[tuple[str, str], OpenTurns]
) -> None:
    """Count a lane's turns that wait, model by model; of more than `COUNTED` these are a sample."""
    params = {"lane": lane.value}
    waiting = fetch(cursor, _Model, f"{_WAITING} LIMIT {COUNTED}", params)
    sample = Counter(row.model for row in waiting)
    is_counted = sample.total() < COUNTED
    factor = 1.0 if is_counted else max(_estimate(cursor, _WAITING, params) / COUNTED, 1.0)
    for model, count in sample.items():
        lanes[model, lane].waiting = round(count * factor)
        lanes[model, lane].is_estimate |= not is_counted


def _estimate(cursor: Cursor, rows: str, params: Params | None) -> int:
    """What the planner thinks of the number of rows."""
    with cursor.connection.cursor(row_factory=scalar_row) as own:
        ((explained,),) = own.execute(f"EXPLAIN (FORMAT JSON) {rows}", params)
    return int(explained["Plan"]["Plan Rows"])
