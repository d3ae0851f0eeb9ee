"""What is under way, as the tables tell it: for whoever is called at three in the morning."""

from collections.abc import Iterator

from turnmill.producer.affinity import WARMTH, ids_since
from turnmill.producer.channels import checks
from turnmill.producer.doctor.database import Target
from turnmill.producer.doctor.findings import Check, Finding, broken, note, warning
from turnmill.producer.operations.lanes import resume_command
from turnmill.producer.operations.remedies import tenant_option, worker_command
from turnmill.producer.operations.why import pause_text
from turnmill.schemas.channels.deliveries import DeliveryState
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.routes import DELIVERY_LANE, PAUSED_LANE
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.changes import OPEN
from turnmill.schemas.store.fleet.lanes import is_paused, read_pauses
from turnmill.schemas.store.fleet.liveness import seen_within
from turnmill.schemas.store.fleet.release import RELEASE
from turnmill.schemas.store.tables import PRUNER_LOCK_KEY, PRUNER_NAME, RESCUER_LOCK_KEY
from turnmill.schemas.turns import Lane, TurnState

#: A relay publishes within a second; so much more is not slowness.
UNPUBLISHED_S = 30
#: A worker that is just being replaced is nobody's emergency.
UNSERVED_S = 10
#: Somebody waits for an interactive turn.
PATIENCE_S = 60
#: How far back the doctor looks for conversations that lost their worker, and how many must have.
AFFINITY_S, AFFINITY_TURNS, AFFINITY_RATE = 600, 50, 0.9
#: Of more tenants the same is not said: those that it concerns most come first.
MOST_TENANTS = 5

_LIVE = f"""
live AS (
    SELECT model, unnest(lanes) AS lane FROM worker_liveness
    WHERE is_consuming AND {seen_within("%(lease_s)s")}
)
"""

#: What is open in their conversations is waited for, an hour at most (`memory/erasing.py`).
UNERASED_S = 2 * 3600

_UNERASED = """
SELECT count(*) AS users, extract(epoch FROM clock_timestamp() - min(at))::int AS age_s
FROM erasures
WHERE done_at IS NULL AND at < clock_timestamp() - make_interval(secs => %(age_s)s)
"""

_UNSERVED = f"""
WITH {_LIVE}
SELECT model, lane, count(*) AS turns,
       extract(epoch FROM clock_timestamp() - min(due_at))::int AS age_s
FROM outbox
WHERE due_at < clock_timestamp() - make_interval(secs => %(age_s)s)
  AND lane NOT IN ('{DELIVERY_LANE}', '{PAUSED_LANE}')
  AND NOT {is_paused("outbox.lane", "outbox.model")}
  AND (model, lane) NOT IN (SELECT model, lane FROM live)
GROUP BY model, lane ORDER BY age_s DESC
"""

#: A delivery worker takes a hint at once, and a platform's limit moves `due_at`. The queue of a
#: channel may be long, so the hint that was published last tells.
_UNTAKEN = f"""
SELECT model AS channel, count(*) AS deliveries,
       extract(epoch FROM clock_timestamp() - min(due_at))::int AS age_s
FROM outbox WHERE lane = '{DELIVERY_LANE}' AND published_at IS NOT NULL
GROUP BY model HAVING max(due_at) < clock_timestamp() - make_interval(secs => %(age_s)s)
ORDER BY model
"""

_UNDELIVERED = f"""
SELECT channel, tenants.name AS tenant, count(*) AS deliveries,
       (array_agg(coalesce(error_message, error_code) ORDER BY ordinal DESC))[1] AS reason
FROM deliveries JOIN tenants ON tenants.id = deliveries.tenant_id
WHERE state = '{DeliveryState.FAILED}'
GROUP BY channel, tenants.name ORDER BY channel, tenants.name
"""

#: Of an older release's workers; every delivery worker looks for such.
_LEFT_PENDING = f"""
SELECT count(*) AS deliveries FROM deliveries d JOIN turns t ON t.id = d.turn_id
WHERE d.state = '{DeliveryState.PENDING}' AND t.state NOT IN ({OPEN})
  AND t.settled_at < clock_timestamp() - make_interval(secs => %(age_s)s)
"""

_HANDED_OFF = f"""
SELECT tenants.name AS tenant, count(*) AS conversations,
       extract(epoch FROM clock_timestamp() - min(handed_off_at))::int AS age_s
FROM conversations JOIN tenants ON tenants.id = conversations.tenant_id
WHERE handed_off_at IS NOT NULL GROUP BY tenants.name ORDER BY age_s DESC LIMIT {MOST_TENANTS}
"""

_PARKED = f"""
SELECT tenants.name AS tenant, count(*) AS turns
FROM turns JOIN tenants ON tenants.id = turns.tenant_id WHERE state = '{TurnState.PARKED}'
GROUP BY tenants.name ORDER BY turns DESC LIMIT {MOST_TENANTS}
"""

_UNGUARDED = f"""
WITH {_LIVE}
SELECT DISTINCT model FROM live
WHERE model NOT IN (SELECT model FROM live WHERE lane = 'quarantine')
"""

_AWAY = f"""
SELECT model, count(*) AS workers, max(unavailable_because) AS reason FROM worker_liveness
WHERE unavailable_because IS NOT NULL AND {seen_within("%(lease_s)s")}
GROUP BY model ORDER BY model
"""

#: A worker from before it said so has no version.
_VERSIONS = f"""
SELECT coalesce(version, 'an older release') AS version, count(*) AS workers FROM worker_liveness
WHERE {seen_within("%(lease_s)s")}
GROUP BY 1 ORDER BY 1
"""

#: A full window keeps rows back on purpose.
_UNPUBLISHED = f"""
SELECT model, lane, extract(epoch FROM clock_timestamp() - due.due_at)::int AS age_s,
       due.turns AS turns
FROM (
    SELECT model, lane, count(*) AS turns, min(due_at) AS due_at FROM outbox
    WHERE published_at IS NULL AND due_at < clock_timestamp() - make_interval(secs => %(age_s)s)
      AND lane <> '{PAUSED_LANE}' AND NOT {is_paused("outbox.lane", "outbox.model")}
    GROUP BY model, lane
) AS due
WHERE (
    SELECT count(*) FROM outbox o
    WHERE o.model = due.model AND o.lane = due.lane AND o.published_at IS NOT NULL
) < %(window)s
"""

#: Each arm has its index; a waiting turn waits for one of these.
_OLDEST = """
SELECT extract(epoch FROM clock_timestamp() - min(accepted_at))::int AS age_s FROM (
    SELECT min(accepted_at) AS accepted_at FROM turns
    WHERE state = 'running' AND lane = 'interactive'
    UNION ALL
    SELECT min(t.accepted_at) FROM outbox o JOIN turns t ON t.id = o.turn_id
    WHERE o.lane = 'interactive' AND t.state = 'queued'
) AS oldest
"""

#: A sweep is one statement, and the pruner's connection has a name: whoever else holds their locks
#: keeps them from working, for as long as that connection lives.
_SQUATTERS = f"""
SELECT l.pid, a.application_name,
    CASE l.objid::bigint WHEN {RESCUER_LOCK_KEY} THEN 'rescuer' ELSE 'pruner' END AS part
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.objid::bigint = {RESCUER_LOCK_KEY} AND a.state <> 'active'
        AND a.state_change < clock_timestamp() - interval '1 s'
    OR l.objid::bigint = {PRUNER_LOCK_KEY} AND a.application_name <> '{PRUNER_NAME}')
"""


def consumed_lanes(database: Database, settings: Settings) -> frozenset[str]:
    """The lanes of this process's model that a live worker says it consumes."""
    params = {"lease_s": settings.worker.lease_s, "model": settings.engine.model_name}
    rows = database.run(f"WITH {_LIVE} SELECT lane FROM live WHERE model = %(model)s", params)
    return frozenset(row.lane for row in rows)


def _workers(target: Target) -> Iterator[Finding]:
    params = {"lease_s": target.settings.worker.lease_s, "age_s": UNSERVED_S}
    for row in target.database.run(_UNSERVED, params):
        yield broken(
            f"none consumes lane {row.lane} of {row.model}: {row.turns} turns wait, "
            f"the oldest for {_span(row.age_s)}",
            worker_command(row.model, row.lane, target.settings),
        )
    for row in target.database.run(_UNGUARDED, params):
        yield note(
            f"none for the quarantine lane of {row.model}: turns that kill workers will wait there",
            worker_command(row.model, Lane.QUARANTINE, target.settings),
        )


def _lanes(target: Target) -> Iterator[Finding]:
    for pause in read_pauses(target.database):
        models = f"model {pause.model}" if pause.model else "all models"
        yield warning(
            f"lane {pause.lane} of {models} is {pause_text(pause)}; its turns wait",
            resume_command(pause),
        )


def _away(target: Target) -> Iterator[Finding]:
    params = {"lease_s": target.settings.worker.lease_s}
    for row in target.database.run(_AWAY, params):
        yield broken(
            f"{row.workers} workers of {row.model} take no turns, because their engine is away: "
            f"{row.reason}",
            "mend the engine; the workers resume by themselves, and no attempt is used up",
        )


def _releases(target: Target) -> Iterator[Finding]:
    rows = target.database.run(_VERSIONS, {"lease_s": target.settings.worker.lease_s})
    if any(row.version != RELEASE for row in rows):
        running = ", ".join(f"{row.workers} of {row.version}" for row in rows)
        yield note(
            f"workers of other releases run ({running}); this is {RELEASE}",
            "end the upgrade: restart what still runs the older release",
        )


def _relay(target: Target) -> Iterator[Finding]:
    params = {"age_s": UNPUBLISHED_S, "window": target.settings.relay.window}
    for row in target.database.run(_UNPUBLISHED, params):
        yield broken(
            f"{row.turns} hints of lane {row.lane} of {row.model} are unpublished, "
            f"the oldest for {_span(row.age_s)}: no relay runs, or it does not reach the broker",
            "turnmill relay; its log says what stalls it (relay.stalled)",
        )


def _locks(target: Target) -> Iterator[Finding]:
    left_undone = {
        "rescuer": "turns of dead workers and lost hints are not rescued",
        "pruner": "old turns are not deleted",
    }
    for row in target.database.run(_SQUATTERS):
        yield broken(
            f"the advisory lock of the {row.part} is held by another program "
            f"(backend {row.pid}, '{row.application_name}'): {left_undone[row.part]}",
            f"SELECT pg_terminate_backend({row.pid}), and give that program its own database",
        )


def _oldest(target: Target) -> Iterator[Finding]:
    age_s = target.database.run(_OLDEST)[0].age_s
    if age_s is not None and age_s > PATIENCE_S:
        yield warning(
            f"the oldest interactive turn without a reply was accepted {_span(age_s)} ago",
            "more workers for the lane, or a look at their logs",
        )


def _affinity(target: Target) -> Iterator[Finding]:
    row = target.database.run(WARMTH, (ids_since(AFFINITY_S),))[0]
    if row.held >= AFFINITY_TURNS and row.hits < AFFINITY_RATE * row.held:
        yield note(
            f"{row.hits} of {row.held} turns of the last {_span(AFFINITY_S)} went to the worker "
            "that holds their conversation: the others computed it again",
            "more workers, or a higher TURNMILL_WORKER__CONCURRENCY: those that hold them are full",
        )


def _parked(target: Target) -> Iterator[Finding]:
    for row in target.database.run(_PARKED):
        option = tenant_option(row.tenant, target.settings.tenant)
        whose = f" of tenant {row.tenant}" if option else ""
        yield note(f"{row.turns} turns{whose} ran out of attempts", f"turnmill parked list{option}")


def _handed_off(target: Target) -> Iterator[Finding]:
    for row in target.database.run(_HANDED_OFF):
        option = tenant_option(row.tenant, target.settings.tenant)
        whose = f" of tenant {row.tenant}" if option else ""
        yield note(
            f"people answer {row.conversations}{whose}, the first for {_span(row.age_s)}",
            f"turnmill conversations list{option}; turnmill conversations resume "
            f"CONVERSATION{option} lets the bot answer again",
        )


def _bots(target: Target) -> Iterator[Finding]:
    return checks.check_bots(target.settings, target.database)


def _deliveries(target: Target) -> Iterator[Finding]:
    params = {"age_s": UNSERVED_S}
    for row in target.database.run(_UNTAKEN, params):
        yield broken(
            f"no delivery worker takes those of channel {row.channel}: {row.deliveries} wait, "
            f"the oldest for {_span(row.age_s)}",
            "turnmill deliver; with the turnmill.toml that has the channel. Its log says what "
            "stalls it",
        )
    (left,) = target.database.run(_LEFT_PENDING, params)
    if left.deliveries:
        yield broken(
            f"{left.deliveries} are pending although their turns have ended",
            "turnmill deliver: every delivery worker looks for them",
        )
    for row in target.database.run(_UNDELIVERED):
        yield warning(
            f"{row.deliveries} of channel {row.channel} have failed, the last one because: "
            f"{row.reason}",
            f"turnmill deliveries retry --failed --channel {row.channel}"
            f"{tenant_option(row.tenant, target.settings.tenant)}; mend the reason first",
        )


def _erasures(target: Target) -> Iterator[Finding]:
    (left,) = target.database.run(_UNERASED, {"age_s": UNERASED_S})
    if left.users:
        yield warning(
            f"{left.users} users are to be forgotten and are not, the first one for "
            f"{_span(left.age_s)}",
            "a worker does it; or, by hand: turnmill users reapply",
        )


def _span(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


CHECKS: dict[str, Check[Target]] = {
    "relay": _relay,
    "lanes": _lanes,
    "workers": _workers,
    "engines away": _away,
    "releases": _releases,
    "locks": _locks,
    "oldest turn": _oldest,
    "affinity": _affinity,
    "parked turns": _parked,
    "conversations": _handed_off,
    "bots of channels": _bots,
    "deliveries": _deliveries,
    "forgotten users": _erasures,
}
