"""What is under way, as the tables tell it: for whoever is called at three in the morning."""

from collections.abc import Iterator

from turnmill.producer.affinity import WARMTH, Warmth, ids_since
from turnmill.producer.channels import checks
from turnmill.producer.doctor import statements
from turnmill.producer.doctor.database import Target
from turnmill.producer.doctor.findings import Check, Finding, broken, note, warning
from turnmill.producer.operations.lanes import resume_command
from turnmill.producer.operations.remedies import tenant_option, worker_command
from turnmill.producer.operations.why import pause_text
from turnmill.producer.operations.workers import WorkerState, list_workers
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings
from turnmill.schemas.store.fleet.lanes import read_pauses
from turnmill.schemas.store.fleet.release import RELEASE
from turnmill.schemas.turns import Lane

#: A relay publishes within a second; so much more is not slowness.
UNPUBLISHED_S = 30
#: A worker that is just being replaced is nobody's emergency.
UNSERVED_S = 10
#: Somebody waits for an interactive turn.
PATIENCE_S = 60
#: How far back the doctor looks for conversations that lost their worker, and how many must have.
AFFINITY_S, AFFINITY_TURNS, AFFINITY_RATE = 600, 50, 0.9
#: What is open in their conversations is waited for, an hour at most (`memory/erasing.py`).
UNERASED_S = 2 * 3600


def consumed_lanes(database: Database, settings: Settings) -> frozenset[str]:
    """The lanes of this process's model that a live worker says it consumes."""
    params = {"lease_s": settings.worker.lease_s, "model": settings.engine.model_name}
    rows = database.fetch(statements.ConsumedLane, statements.CONSUMED, params)
    return frozenset(row.lane for row in rows)


def _workers(target: Target) -> Iterator[Finding]:
    params = {"lease_s": target.settings.worker.lease_s, "age_s": UNSERVED_S}
    for row in target.database.fetch(statements.LaneUnserved, statements.UNSERVED, params):
        idle = f" ({row.idle} live and take no hints)" if row.idle else ""
        yield broken(
            f"none consumes lane {row.lane} of {row.model}{idle}: {row.turns} turns wait, "
            f"the oldest for {_span(row.age_s)}",
            "they resume when the broker lets them: see below, and their log"
            if row.idle
            else worker_command(row.model, row.lane, target.settings),
        )
    for lane in target.database.fetch(statements.Unguarded, statements.UNGUARDED, params):
        yield note(
            f"none for the quarantine lane of {lane.model}: turns that kill workers will wait "
            "there",
            worker_command(lane.model, Lane.QUARANTINE, target.settings),
        )


def _silent(target: Target) -> Iterator[Finding]:
    for worker in list_workers(target.database, target.settings.worker.lease_s):
        if worker.state is WorkerState.SILENT:
            yield warning(
                f"{worker.shown_id} lives and was last seen {_span(int(worker.beat_age_s))} ago: "
                "it is paused, or cut off from PostgreSQL; others answer its turns",
                f"on {worker.host}: kill -KILL {worker.pid}, if it stays; its supervisor starts it "
                "again",
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
    for row in target.database.fetch(statements.Away, statements.AWAY, params):
        yield broken(
            f"{row.workers} workers of {row.model} take no turns, because their engine is away: "
            f"{row.reason}",
            "mend the engine; the workers resume by themselves, and no attempt is used up",
        )


def _releases(target: Target) -> Iterator[Finding]:
    rows = target.database.fetch(
        statements.Version, statements.VERSIONS, {"lease_s": target.settings.worker.lease_s}
    )
    if any(row.version != RELEASE for row in rows):
        running = ", ".join(f"{row.workers} of {row.version}" for row in rows)
        yield note(
            f"workers of other releases run ({running}); this is {RELEASE}",
            "end the upgrade: restart what still runs the older release",
        )


def _relay(target: Target) -> Iterator[Finding]:
    params = {"age_s": UNPUBLISHED_S, "window": target.settings.relay.window}
    for row in target.database.fetch(statements.LaneWait, statements.UNPUBLISHED, params):
        why = "the broker takes none of the relay's" if row.has_relay else "no relay runs"
        yield broken(
            f"{row.turns} hints of lane {row.lane} of {row.model} are unpublished, "
            f"the oldest for {_span(row.age_s)}: {why}",
            "the relay's log says what stalls it (relay.stalled); it goes on by itself"
            if row.has_relay
            else "turnmill relay; its log says what stalls it (relay.stalled)",
        )


def _locks(target: Target) -> Iterator[Finding]:
    left_undone = {
        "rescuer": "turns of dead workers and lost hints are not rescued",
        "pruner": "old turns are not deleted",
    }
    for row in target.database.fetch(statements.Squatter, statements.SQUATTERS):
        yield broken(
            f"the advisory lock of the {row.part} is held by another program "
            f"(backend {row.pid}, '{row.application_name}'): {left_undone[row.part]}",
            f"SELECT pg_terminate_backend({row.pid}), and give that program its own database",
        )


def _oldest(target: Target) -> Iterator[Finding]:
    age_s = target.database.fetch(statements.Oldest, statements.OLDEST)[0].age_s
    if age_s is not None and age_s > PATIENCE_S:
        yield warning(
            f"the oldest interactive turn without a reply was accepted {_span(age_s)} ago",
            "turnmill status, which says what it waits for",
        )


def _affinity(target: Target) -> Iterator[Finding]:
    row = target.database.fetch(Warmth, WARMTH, (ids_since(AFFINITY_S),))[0]
    if row.held >= AFFINITY_TURNS and row.hits < AFFINITY_RATE * row.held:
        yield note(
            f"{row.hits} of {row.held} turns of the last {_span(AFFINITY_S)} went to the worker "
            "that holds their conversation: the others computed it again",
            "more workers, or a higher TURNMILL_WORKER__CONCURRENCY: those that hold them are full",
        )


def _parked(target: Target) -> Iterator[Finding]:
    for row in target.database.fetch(statements.Parked, statements.PARKED):
        option = tenant_option(row.tenant, target.settings.tenant)
        whose = f" of tenant {row.tenant}" if option else ""
        yield note(f"{row.turns} turns{whose} ran out of attempts", f"turnmill parked list{option}")


def _handed_off(target: Target) -> Iterator[Finding]:
    for row in target.database.fetch(statements.HandedOff, statements.HANDED_OFF):
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
    for row in target.database.fetch(statements.Untaken, statements.UNTAKEN, params):
        yield broken(
            f"no delivery worker takes those of channel {row.channel}: {row.deliveries} wait, "
            f"the oldest for {_span(row.age_s)}",
            "turnmill deliver; with the turnmill.toml that has the channel. Its log says what "
            "stalls it",
        )
    (left,) = target.database.fetch(statements.LeftPending, statements.LEFT_PENDING, params)
    if left.deliveries:
        yield broken(
            f"{left.deliveries} are pending although their turns have ended",
            "turnmill deliver: every delivery worker looks for them",
        )
    for failed in target.database.fetch(statements.Undelivered, statements.UNDELIVERED):
        yield warning(
            f"{failed.deliveries} of channel {failed.channel} have failed, the last one because: "
            f"{failed.reason}",
            f"turnmill deliveries retry --failed --channel {failed.channel}"
            f"{tenant_option(failed.tenant, target.settings.tenant)}; mend the reason first",
        )


def _erasures(target: Target) -> Iterator[Finding]:
    (left,) = target.database.fetch(statements.Unerased, statements.UNERASED, {"age_s": UNERASED_S})
    if left.age_s is not None:
        yield warning(
            f"{left.users} users are to be forgotten and are not, the first one for "
            f"{_span(left.age_s)}",
            "a worker does it; or, by hand: turnmill users reapply",
        )


def _undeleted(target: Target) -> Iterator[Finding]:
    for row in target.database.fetch(statements.Undeleted, statements.UNDELETED):
        whose = " of forgotten users" if row.is_forgotten else ""
        again = "turnmill users reapply" if row.is_forgotten else "turnmill db prune"
        yield warning(
            f"{row.files}{whose} cannot be deleted, the first one ({row.first.hex}) for "
            f"{_span(row.age_s)}: {row.reason.rstrip('.')}",
            f"{row.remedy or 'mend the reason'}. Workers then try again by themselves, or at once: "
            f"{again}",
        )


def _span(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


CHECKS: dict[str, Check[Target]] = {
    "relay": _relay,
    "lanes": _lanes,
    "workers": _workers,
    "silent workers": _silent,
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
    "files to delete": _undeleted,
}
