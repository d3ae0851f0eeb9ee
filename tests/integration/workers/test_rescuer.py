"""The rescuer requeues the turns of dead workers, and leaves those of live ones alone.

With a real Postgres and no broker. `sweep` is called by hand; a worker is its row and its
advisory lock, so a test can let one die or pause without a process.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.integration.workers.claiming import sweep_once
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.parked.replay import replay
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Crashed
from turnmill.schemas.routes import OUTBOX_CHANNEL
from turnmill.schemas.store.fleet.liveness import LIVENESS_LOCK_CLASS
from turnmill.schemas.store.tables import RESCUER_LOCK_KEY
from turnmill.schemas.turns import AcceptedTurn, Lane, Reply, Usage
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.turn.stream import Stream
from turnmill.workers.upkeep.evidence import DISCOUNT, PARKED_AFTER
from turnmill.workers.upkeep.liveness import GRACE_S
from turnmill.workers.upkeep.rescuer import STALL_S, Rescuer, sweep

Eventually = Callable[..., None]
REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", lease_s=60.0)


class FakeWorker:
    """A worker as the others see it: registered, alive until `die`, with leases but no threads."""

    def __init__(self, system: Any, eventually: Eventually, *lanes: Lane, slots: int = 8) -> None:
        settings = system.settings.worker.model_copy(update={"lanes": lanes or tuple(Lane)})
        self.model = system.settings.engine.model_name
        self.leases = Leases(system.database, settings, model=self.model, engine="echo")
        self.database = system.database
        self.connection = system.database.connect()
        self._eventually = eventually
        (self._key,) = self.connection.execute(
            "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots, seen_at) "
            "VALUES (%s, 'h', 1, %s, 'echo', %s, %s, clock_timestamp() + interval '1 hour') "
            "RETURNING lock_key",
            (self.leases.worker_id, self.model, [lane.value for lane in settings.lanes], slots),
        ).fetchone()
        self.connection.execute("SELECT pg_advisory_lock(%s, %s)", (LIVENESS_LOCK_CLASS, self._key))

    def claim(self, turn: AcceptedTurn) -> Claim:
        claim = self.leases.claim(turn.turn_id)
        assert claim is not None
        return claim

    def forget_beat(self) -> None:
        """As if its last sign of life were long ago; the lock is what is left."""
        self.database.run(
            "UPDATE worker_liveness SET seen_at = now() - interval '1 minute' WHERE id = %s",
            (self.leases.worker_id,),
        )

    def beat(self) -> None:
        self.database.run(
            "UPDATE worker_liveness SET seen_at = clock_timestamp() WHERE id = %s",
            (self.leases.worker_id,),
        )

    def die(self) -> None:
        self.connection.close()
        self.forget_beat()
        held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
        key = (LIVENESS_LOCK_CLASS, self._key)
        self._eventually(lambda: not self.database.run(held, key))


@pytest.fixture
def new_worker(system: Any, eventually: Eventually) -> Iterator[Callable[..., FakeWorker]]:
    with ExitStack() as stack:

        def make(*lanes: Lane, slots: int = 8) -> FakeWorker:
            worker = FakeWorker(system, eventually, *lanes, slots=slots)
            stack.callback(worker.connection.close)
            return worker

        yield make


def hints(system: Any) -> dict[UUID, str]:
    rows = system.database.run("SELECT turn_id, lane FROM outbox WHERE published_at IS NULL")
    return {row.turn_id: row.lane for row in rows}


def crash(system: Any, new_worker: Callable[..., FakeWorker], turn: AcceptedTurn) -> None:
    """A worker claims the turn, dies, and is noticed."""
    worker = new_worker()
    worker.claim(turn)
    worker.die()
    assert sweep_once(system) == 1


# --- Dead and alive


def test_a_dead_workers_turns_are_due_at_once(
    system: Any, new_worker: Callable[..., FakeWorker], eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("hello", lane=Lane.BATCH))
    doomed = new_worker()
    doomed.claim(turn)
    assert sweep_once(system) == 0
    with system.database.connect() as listener:
        listener.execute(f"LISTEN {OUTBOX_CHANNEL}")
        doomed.die()
        eventually(lambda: sweep_once(system) == 1)
        assert list(listener.notifies(timeout=5, stop_after=1)), "the relay is told"
    assert system.read(turn).state == "queued"
    assert hints(system) == {turn.turn_id: "batch"}
    assert system.count("crashes = 1 AND failures = 0 AND worker_id IS NULL") == 1
    (attempt,) = system.database.run("SELECT outcome, ended_at FROM attempts")
    assert attempt.outcome == "crashed"
    assert attempt.ended_at is not None
    assert sweep_once(system) == 0


def test_a_worker_that_holds_its_lock_is_alive_however_silent(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    worker = new_worker()
    worker.claim(accept(system.database, system.request("hello")))
    worker.forget_beat()
    assert sweep_once(system) == 0


def test_a_worker_that_just_lost_its_connection_is_given_time_to_replace_it(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    worker = new_worker()
    worker.claim(accept(system.database, system.request("hello")))
    worker.connection.close()
    worker.beat()
    assert sweep_once(system) == 0


def test_a_lease_that_ran_out_frees_the_turn_of_a_paused_worker(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("hello"))
    paused = new_worker()
    late = paused.claim(turn)
    system.database.run("UPDATE turns SET leased_until = clock_timestamp() - interval '1 ms'")
    assert sweep_once(system) == 1
    current = new_worker().claim(turn)
    settler = Settler(system.database, max_attempts=5, give_up=threading.Event())
    assert not settler.settle(late, REPLY)
    assert settler.settle(current, REPLY)


def test_a_worker_whose_row_was_deleted_keeps_its_turns_until_their_leases_expire(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    worker = new_worker()
    turn = accept(system.database, system.request("hello"))
    claim = worker.claim(turn)
    system.database.run("DELETE FROM worker_liveness")
    assert sweep_once(system) == 0
    system.database.run("UPDATE turns SET leased_until = clock_timestamp() - interval '1 ms'")
    assert sweep_once(system) == 1
    assert new_worker().claim(turn).attempt == claim.attempt + 1


def test_the_dead_worker_takes_nothing_of_its_neighbours_along(
    system: Any, new_worker: Callable[..., FakeWorker], eventually: Eventually
) -> None:
    first, second = (accept(system.database, system.request(text)) for text in ("a", "b"))
    doomed, healthy = new_worker(), new_worker()
    doomed.claim(first)
    healthy.claim(second)
    doomed.die()
    eventually(lambda: sweep_once(system) == 1)
    assert (system.read(first).state, system.read(second).state) == ("queued", "running")


def test_while_one_sweeps_the_others_do_nothing(
    system: Any, new_worker: Callable[..., FakeWorker], eventually: Eventually
) -> None:
    doomed = new_worker()
    doomed.claim(accept(system.database, system.request("hello")))
    doomed.die()
    with psycopg.connect(system.settings.database.url.get_secret_value()) as sweeping:
        sweeping.execute("SELECT pg_advisory_xact_lock(%s)", (RESCUER_LOCK_KEY,))
        assert sweep_once(system) == 0
    eventually(lambda: sweep_once(system) == 1)


def test_eight_rescuers_at_once_rescue_each_turn_once(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turns = accept_many(system.database, [system.request(f"turn {n}") for n in range(30)])
    doomed = new_worker()
    for turn in turns:
        doomed.claim(turn)
    doomed.die()
    rescued: list[int] = []
    threads = [
        threading.Thread(target=lambda: rescued.extend(sweep_once(system) for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(rescued) == 30
    assert system.count("state = 'queued' AND crashes = 1") == 30


def test_the_running_rescuer_does_all_this_by_itself_and_when_it_is_woken(
    system: Any,
    new_worker: Callable[..., FakeWorker],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_swept = threading.Event()

    def sweep_and_say_so(*arguments: Any, **options: Any) -> None:
        sweep(*arguments, **options)
        has_swept.set()

    monkeypatch.setattr("turnmill.workers.upkeep.rescuer.sweep", sweep_and_say_so)
    doomed = new_worker()
    doomed.claim(accept(system.database, system.request("hello")))
    settings = system.settings.worker.model_copy(update={"rescue_every_s": 600.0})
    rescuer = Rescuer(system.database, settings, new_worker().leases)
    rescuer.start()
    try:
        assert has_swept.wait(20)
        doomed.die()
        assert system.count("state = 'running'") == 1

        def is_rescued() -> bool:
            rescuer.wake()
            return bool(system.count("state = 'queued'"))

        eventually(is_rescued)
    finally:
        rescuer.close()


def test_after_an_outage_of_postgres_nobody_is_taken_for_dead_who_is_coming_back(
    system: Any, new_worker: Callable[..., FakeWorker], eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("hello"))
    slow_to_return = new_worker()
    slow_to_return.claim(turn)
    settings = system.settings.worker.model_copy(update={"rescue_every_s": 0.02})
    leases = Leases(system.database, settings, model=slow_to_return.model, engine="echo")
    rescuer = Rescuer(system.database, settings, leases)
    leases.start()
    rescuer.start()
    try:
        slow_to_return.beat()
        allow_connections(system, False)
        time.sleep(GRACE_S + 0.2)
        allow_connections(system, True)
        eventually(lambda: system.has_database() and 0 <= leases.reconnected_s < float("inf"))
        reconnected_at = time.time() - leases.reconnected_s
        slow_to_return.beat()
        eventually(lambda: system.count("state = 'queued' AND crashes = 1") == 1)
    finally:
        rescuer.close()
        leases.close()
    (times,) = system.database.run(
        "SELECT extract(epoch FROM a.ended_at)::float8 AS rescued_at, "
        "extract(epoch FROM w.seen_at)::float8 AS beat_at "
        "FROM attempts a JOIN worker_liveness w ON w.id = a.worker_id"
    )
    signs = [reconnected_at]
    if times.beat_at < times.rescued_at:  # else this machine was too busy to beat in time
        signs.append(times.beat_at)
    assert times.rescued_at - max(signs) >= GRACE_S


def allow_connections(system: Any, is_allowed: bool) -> None:
    """PostgreSQL goes away for everybody, or comes back."""
    url, _, name = system.settings.database.url.get_secret_value().rpartition("/")
    with psycopg.connect(f"{url}/turnmill", autocommit=True) as link:
        link.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(is_allowed).lower()}")
        if not is_allowed:
            link.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )


# --- Poison


def test_a_turn_whose_workers_keep_dying_is_quarantined(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("hello"))
    limit = system.settings.worker.quarantine_after
    for crashes in range(1, limit):
        crash(system, new_worker, turn)
        assert hints(system) == {turn.turn_id: "interactive"}, crashes
    crash(system, new_worker, turn)
    assert hints(system) == {turn.turn_id: "quarantine"}
    assert new_worker(Lane.INTERACTIVE, Lane.BATCH).leases.claim(turn.turn_id) is None
    assert system.read(turn).lane == "interactive", "what its user asked for does not change"


def isolate(system: Any, new_worker: Callable[..., FakeWorker], turn: AcceptedTurn) -> None:
    """Crash until the turn is in quarantine; what died is long dead."""
    for _ in range(system.settings.worker.quarantine_after):
        crash(system, new_worker, turn)
    assert hints(system)[turn.turn_id] == "quarantine"
    age(system)


def age(system: Any) -> None:
    """Let ten minutes pass over the dead."""
    system.database.run("UPDATE worker_liveness SET seen_at = seen_at - interval '10 minutes'")


def crash_alone(system: Any, new_worker: Callable[..., FakeWorker], turn: AcceptedTurn) -> None:
    worker = new_worker(Lane.QUARANTINE, slots=1)
    worker.claim(turn)
    worker.die()
    assert sweep_once(system) == 1
    age(system)


def crash_together(system: Any, new_worker: Callable[..., FakeWorker], turn: AcceptedTurn) -> None:
    """The machine dies: the turn's worker, and one that had nothing to do with the turn."""
    mine, other = new_worker(), new_worker(Lane.BATCH)
    mine.claim(turn)
    mine.die()
    other.die()
    assert sweep_once(system) == 1
    age(system)


def crash_after(system: Any, new_worker: Callable[..., FakeWorker], turn: AcceptedTurn) -> None:
    """The worker adds a chunk to the turn's text, and dies."""
    worker = new_worker()
    claim = worker.claim(turn)
    stream = Stream(system.database, 0.1)
    text = stream.open(claim)
    stream.add(text, "one more word ", 3)
    stream.flush([text])
    worker.die()
    assert sweep_once(system) == 1
    age(system)


def lost_outcomes(system: Any) -> list[str]:
    rows = system.database.run("SELECT outcome FROM attempts ORDER BY turn_id, number")
    return [row.outcome for row in rows]


def test_a_turn_that_kills_its_workers_in_quarantine_is_parked_and_the_conversation_goes_on(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    conversation = new_id()
    turn, following = accept_many(
        system.database,
        [system.request(text, conversation_id=conversation) for text in ("poison", "fine")],
    )
    neighbour = accept(system.database, system.request("neighbour"))
    isolate(system, new_worker, turn)
    new_worker(Lane.INTERACTIVE).claim(neighbour)
    crash_alone(system, new_worker, turn)
    crash_alone(system, new_worker, turn)
    parked = system.read(turn)
    assert (parked.state, parked.error_code, parked.reply) == ("parked", "worker_lost", None)
    assert "5 workers" in (parked.error_message or "")
    assert (system.read(following).state, system.read(neighbour).state) == ("queued", "running")
    outcomes = system.database.run("SELECT DISTINCT outcome FROM attempts WHERE turn_id = %s",
                                   (turn.turn_id,))  # fmt: skip
    assert [row.outcome for row in outcomes] == ["crashed"]


def test_one_death_in_quarantine_may_be_the_machines_and_parks_nothing(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("innocent"))
    isolate(system, new_worker, turn)
    crash_alone(system, new_worker, turn)
    assert system.read(turn).state == "queued"
    assert hints(system) == {turn.turn_id: "quarantine"}
    for _ in range(5):
        crash_together(system, new_worker, turn)
        assert hints(system) == {turn.turn_id: "quarantine"}
    crash_alone(system, new_worker, turn)
    assert system.read(turn).state == "parked"


def test_everything_killed_five_times_in_a_row_neither_parks_nor_isolates(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("innocent"))
    for _ in range(5):
        crash_together(system, new_worker, turn)
        assert hints(system) == {turn.turn_id: "interactive"}
    assert lost_outcomes(system) == ["interrupted"] * 5


def test_an_attempt_that_added_text_says_little_and_one_that_did_not_counts(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("innocent"))
    for _ in range(5):
        crash_after(system, new_worker, turn)
        assert hints(system) == {turn.turn_id: "interactive"}
    crash(system, new_worker, turn)
    assert lost_outcomes(system) == ["interrupted"] * 5 + ["crashed"]


def test_a_turn_that_takes_the_whole_machine_down_is_isolated_and_parked_in_the_end(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("poison"))
    settings = system.settings.worker
    for _ in range(DISCOUNT * settings.quarantine_after):
        assert hints(system) == {turn.turn_id: "interactive"}
        crash_together(system, new_worker, turn)
    for _ in range(DISCOUNT * PARKED_AFTER):
        assert hints(system) == {turn.turn_id: "quarantine"}
        crash_together(system, new_worker, turn)
    assert system.read(turn).state == "parked"


def test_a_turn_in_quarantine_that_was_not_alone_is_not_charged_in_full(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn, other = (accept(system.database, system.request(text)) for text in ("a", "b"))
    isolate(system, new_worker, turn)
    for _ in range(PARKED_AFTER + 1):
        worker = new_worker()
        worker.claim(turn)
        worker.claim(other)
        worker.die()
        assert sweep_once(system) == 2
        age(system)
    assert system.read(turn).state == "queued"


def test_a_claim_that_its_worker_never_learnt_of_is_no_crash(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("hello"))
    worker = new_worker()
    worker.claim(turn)
    system.database.run("UPDATE turns SET leased_until = clock_timestamp() - interval '1 second'")
    worker.beat()
    assert sweep_once(system) == 1
    assert lost_outcomes(system) == ["interrupted"]


def test_a_turn_that_its_worker_abandoned_crashed(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("hello"))
    worker = new_worker()
    settler = Settler(system.database, max_attempts=5, give_up=threading.Event())
    assert settler.settle(worker.claim(turn), Crashed())
    assert sweep_once(system) == 1
    assert lost_outcomes(system) == ["crashed"]


def test_what_was_lost_before_a_replay_is_forgotten(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("hello"))
    isolate(system, new_worker, turn)
    crash_alone(system, new_worker, turn)
    crash_alone(system, new_worker, turn)
    replay(system.database, system.tenant_id, [turn.turn_id])
    crash(system, new_worker, turn)
    assert hints(system) == {turn.turn_id: "interactive"}


# --- A locked table


@contextmanager
def locked(system: Any, table: str) -> Iterator[None]:
    with psycopg.connect(system.settings.database.url.get_secret_value()) as link:
        link.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.mark.parametrize("table", ["turns", "worker_liveness", "outbox"])
def test_a_sweep_that_waited_for_a_table_judges_nobody(
    table: str, system: Any, new_worker: Callable[..., FakeWorker], eventually: Eventually
) -> None:
    new_worker().claim(accept(system.database, system.request("hello")))
    system.database.run("UPDATE turns SET leased_until = clock_timestamp() - interval '1 ms'")
    with ThreadPoolExecutor(1) as one:
        with locked(system, table):
            swept = one.submit(sweep_once, system)
            time.sleep(STALL_S + 0.3)
        assert swept.result(20) == 0
    assert system.count("state = 'running' AND crashes = 0") == 1
    assert sweep_once(system) == 1


@pytest.mark.parametrize("table", ["turns", "worker_liveness", "outbox", "attempts"])
def test_a_table_locked_for_longer_than_the_lease_charges_no_crash(
    table: str, system: Any, eventually: Eventually
) -> None:
    worker = system.settings.worker.model_copy(
        update={"lease_s": 1.0, "rescue_every_s": 0.1, "concurrency": 4}
    )
    turns = accept_many(system.database, [system.request(f"[[wait=6]] {n}") for n in range(4)])
    with InlineWorker(system.settings.model_copy(update={"worker": worker})):
        eventually(lambda: system.count("state = 'running'") == len(turns))
        with locked(system, table):
            time.sleep(3.0)
        system.wait_until_settled(40)
    assert system.count("state = 'completed' AND crashes = 0 AND attempt = 1") == len(turns)


def test_an_innocent_turn_is_answered_in_quarantine(
    system: Any, new_worker: Callable[..., FakeWorker]
) -> None:
    turn = accept(system.database, system.request("only unlucky"))
    for _ in range(system.settings.worker.quarantine_after):
        crash(system, new_worker, turn)
    worker = system.settings.worker.model_copy(
        update={"lanes": (Lane.QUARANTINE,), "concurrency": 1}
    )
    with InlineWorker(system.settings.model_copy(update={"worker": worker})):
        system.wait_until_settled(20)
    assert system.read(turn).reply.content == "only unlucky"
