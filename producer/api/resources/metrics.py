"""`/metrics`: what Prometheus scrapes.

Counters and durations are this process's; the gauges are read from Postgres at each scrape and
so are the same from every replica (take `max`, not `sum`, over replicas).

Every query goes through an index to what is open, or was accepted in the last minute, and reads at
most `COUNTED` entries of it. So a scrape costs the same with two hundred open turns as with two
hundred thousand, whatever else the tables hold.
"""

from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from turnmill.producer.affinity import WARMTH, Warmth, ids_since
from turnmill.producer.operations.queue import COUNTED, Hints, count_open, read_hints
from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.observability.telemetry import BUCKETS_S
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.routes import PAUSED_LANE
from turnmill.schemas.store.changes import UNSENT
from turnmill.schemas.store.fleet.liveness import HELD_LOCKS
from turnmill.schemas.turns import Lane

#: How far back the figures of affinity look, seconds.
AFFINITY_S = 60


class _Running(NamedTuple):
    lane: str
    age_s: float


#: Workers have so many slots, and no more turns run.
_RUNNING = """
SELECT lane, extract(epoch FROM clock_timestamp() - min(accepted_at))::float AS age_s
FROM turns WHERE state = 'running' GROUP BY lane
"""


class _Pauses(NamedTuple):
    lane: str
    pauses: int


_PAUSES = "SELECT lane, count(*) AS pauses FROM lane_pauses GROUP BY lane"


class _Parked(NamedTuple):
    turns: int


_PARKED = f"""
SELECT count(*) AS turns FROM (SELECT FROM turns WHERE state = 'parked' LIMIT {COUNTED}) AS turn
"""


class _Undeleted(NamedTuple):
    files: int


_UNDELETED = f"""
SELECT count(*) AS files FROM (SELECT FROM undeleted_files LIMIT {COUNTED}) AS file
"""


class _HandedOff(NamedTuple):
    conversations: int
    age_s: float | None


_HANDED_OFF = f"""
SELECT count(*) AS conversations,
    extract(epoch FROM clock_timestamp() - min(handed_off_at))::float AS age_s
FROM (SELECT handed_off_at FROM conversations WHERE handed_off_at IS NOT NULL
      ORDER BY handed_off_at LIMIT {COUNTED}) AS first
"""


class _Deliveries(NamedTuple):
    channel: str
    state: str
    deliveries: int


_DELIVERIES = f"""
SELECT channel, state, count(*) AS deliveries FROM (
    (SELECT channel, state FROM deliveries WHERE state IN ({UNSENT}) LIMIT {COUNTED})
    UNION ALL
    (SELECT channel, state FROM deliveries WHERE state = '{DeliveryState.FAILED}' LIMIT {COUNTED})
) AS delivery GROUP BY channel, state
"""


class _Workers(NamedTuple):
    live: int
    consuming: int
    away: int


_WORKERS = f"""
SELECT count(*) AS live, count(*) FILTER (WHERE is_consuming) AS consuming,
       count(*) FILTER (WHERE unavailable_because IS NOT NULL) AS away
FROM worker_liveness WHERE lock_key IN ({HELD_LOCKS})
"""


class APIMetrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "turnmill_api_requests",
            "Calls answered, by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._refusals = Counter(
            "turnmill_api_connections_refused",
            "Connections closed before their request was read.",
            ["reason"],
            registry=self.registry,
        )
        self._durations = Histogram(
            "turnmill_api_request_duration_seconds",
            "Seconds from a call to the end of its answer, a stream's last event included.",
            ["route", "method"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )

        self._events = Counter(
            "turnmill_channel_events",
            "What platforms sent, by channel and by what became of it.",
            ["channel", "outcome"],
            registry=self.registry,
        )

    def count_event(self, channel: str, outcome: str) -> None:
        self._events.labels(channel, outcome).inc()

    def count_refusal(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def observe(self, route: str, method: str, status: int, duration_s: float) -> None:
        self._calls.labels(route, method, str(status)).inc()
        self._durations.labels(route, method).observe(duration_s)

    def render(self, database: Database) -> bytes:
        """Prometheus' text format. Raises `DatabaseUnavailable`."""
        return self.render_own() + render_open(database)

    def render_own(self) -> bytes:
        """Those of this process."""
        return generate_latest(self.registry)


def render_open(database: Database) -> bytes:
    """What is open, in Prometheus' text format. Raises `DatabaseUnavailable`."""
    gauges = CollectorRegistry(auto_describe=False)
    gauges.register(TurnGauges(database))
    return generate_latest(gauges)


class TurnGauges(Collector):
    """What is open, as Postgres says at this moment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """Raises `DatabaseUnavailable`: no figures are better than old ones."""
        with self._database.cursor() as cursor:
            hints = read_hints(cursor)
            open_turns = count_open(cursor, hints)
            running = fetch(cursor, _Running, _RUNNING)
            pauses = fetch(cursor, _Pauses, _PAUSES)
            (parked,) = fetch(cursor, _Parked, _PARKED)
            (undeleted,) = fetch(cursor, _Undeleted, _UNDELETED)
            (handed_off,) = fetch(cursor, _HandedOff, _HANDED_OFF)
            (workers,) = fetch(cursor, _Workers, _WORKERS)
            deliveries = fetch(cursor, _Deliveries, _DELIVERIES)
            (warmth,) = fetch(cursor, Warmth, WARMTH, (ids_since(AFFINITY_S),))
        counts: Counts[tuple[str, str]] = Counts()
        oldest = {lane.value: 0.0 for lane in Lane} | {row.lane: row.age_s for row in running}
        for (_, lane), found in open_turns.items():
            counts["waiting", lane] += found.waiting
            counts["queued", lane] += found.queued + found.snoozed
            counts["running", lane] += found.running
            oldest[lane] = max([oldest[lane], *(head.age_s for head in found.oldest)])
        published = Counts({lane.value: 0 for lane in Lane})
        owed = [row for row in hints if row.lane != PAUSED_LANE]
        for row in owed:
            published[row.lane] += row.published
        yield _labelled(
            "turnmill_turns_open_count",
            "Turns whose reply is owed.",
            ("state", "lane"),
            {
                (state, lane): counts[state, lane]
                for state in ("waiting", "queued", "running")
                for lane in Lane
            },
        )
        yield _labelled(
            "turnmill_deliveries_count",
            "Deliveries that are not sent yet, or have failed.",
            ("channel", "state"),
            {(row.channel, row.state): row.deliveries for row in deliveries},
        )
        yield _labelled(
            "turnmill_turns_oldest_open_age_seconds",
            "Age of the oldest turn whose reply is owed.",
            ("lane",),
            {(lane,): age_s for lane, age_s in oldest.items()},
        )
        yield _labelled(
            "turnmill_outbox_published_count",
            "Hints that were published and are not claimed yet: of the relay's window.",
            ("lane",),
            {(lane,): count for lane, count in published.items()},
        )
        yield _labelled(
            "turnmill_lane_pauses_count",
            "Pauses of the lane, of one model or of all, that an operator has not ended.",
            ("lane",),
            {(lane,): 0 for lane in Lane} | {(row.lane,): row.pauses for row in pauses},
        )
        yield from _plain(owed, workers, parked.turns, handed_off, warmth)
        yield GaugeMetricFamily(
            "turnmill_files_undeleted_count",
            "Files whose deletion failed, and is tried again.",
            value=undeleted.files,
        )


def _plain(
    owed: Sequence[Hints], workers: _Workers, parked: int, handed_off: _HandedOff, warmth: Warmth
) -> Iterator[Metric]:
    """The gauges without labels."""
    for name, text, value in (
        (
            "outbox_unpublished_count",
            "Hints not published yet.",
            sum(row.unpublished for row in owed),
        ),
        (
            "outbox_unpublished_age_seconds",
            "How long the oldest hint that is due has not been published.",
            max((row.late_s for row in owed), default=0.0),
        ),
        ("workers_live_count", "Worker processes alive.", workers.live),
        ("workers_consuming_count", "Worker processes that take hints.", workers.consuming),
        (
            "workers_engine_away_count",
            "Worker processes that take no hints because their engine is away.",
            workers.away,
        ),
        ("turns_parked_count", "Turns that ran out of attempts.", parked),
        (
            "conversations_handed_off_count",
            "Conversations that people answer.",
            handed_off.conversations,
        ),
        (
            "conversations_handed_off_age_seconds",
            "How long the first of them has been handed off.",
            handed_off.age_s or 0.0,
        ),
        (
            "affinity_held_count",
            "Turns begun, of those of the last minute, whose conversation a live worker held.",
            warmth.held,
        ),
        ("affinity_hits_count", "Those of them that this worker got.", warmth.hits),
    ):
        yield GaugeMetricFamily(f"turnmill_{name}", text, value=value)


def _labelled(
    name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
