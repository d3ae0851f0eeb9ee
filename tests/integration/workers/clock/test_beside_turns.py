"""PostgreSQL's clock steps: files, documents, sounds and deliveries do not wait for it, and
nobody takes what another process holds.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from tests.integration.channels.test_due_deliveries import Thread
from tests.integration.workers.clock.stepping import HOUR, Eventually, step
from turnmill.producer.accept import accept
from turnmill.schemas.content import MediaPart
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.clock import TOLERANCE_S
from turnmill.schemas.store.files import transcriptions
from turnmill.schemas.store.knowledge import indexing
from turnmill.workers.delivery.claims import (
    Holder,
    Remembered,
    claim_delivery,
    claim_progress,
)
from turnmill.workers.delivery.fetching import Fetcher
from turnmill.workers.delivery.sweep import sweep
from turnmill.workers.media.opening import open_media
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.leases import Leases
from turnmill.workers.upkeep.clock import DatabaseClock
from turnmill.workers.upkeep.keeping import cut_leases

LEASE_S = 2.0
#: Since when a process reads the clock that has done so for long.
LONG = -math.inf

#: Takes what is due, for a process that knows a clock; None: nothing is.
Take = Callable[[DatabaseClock], object | None]


@pytest.fixture
def system(stepping_system: Any) -> Any:
    return stepping_system


@pytest.fixture
def thread(system: Any) -> Thread:
    return Thread(system)


def observe(system: Any, clock: DatabaseClock) -> None:
    asked_at = time.monotonic()
    (row,) = system.database.run("SELECT extract(epoch FROM clock_timestamp())::float AS now_s")
    clock.observe(row.now_s, asked_at)


def insert_file(system: Any, source: dict[str, str] | None = None) -> UUID:
    file_id = new_id()
    system.database.run(
        "INSERT INTO files (id, tenant_id, name, purpose, bytes, sha256, mime, source, fetch_at) "
        "VALUES (%s, %s, 'V', 'message', 0, '', '', %s, clock_timestamp())",
        (file_id, system.tenant_id, Jsonb(source) if source else None),
    )
    return file_id


def owe_file(system: Any) -> Take:
    insert_file(system, {"channel": "desk", "kind": "audio", "ref": "V"})
    fetcher = Fetcher(system.database, None, {})  # type: ignore[arg-type]
    return lambda _: fetcher._take(["desk"])


def queue_document(system: Any, shop: str = "shop") -> Take:
    collection_id = new_id()
    system.database.run(
        "INSERT INTO collections (id, tenant_id, name) VALUES (%s, %s, %s)",
        (collection_id, system.tenant_id, shop),
    )
    with system.database.cursor() as cursor:
        indexing.queue(cursor, indexing.Wanted(collection_id, "shop", "faq.md", b"1"), b"Hello.")
    database = system.database
    return lambda clock: indexing.claim(database, LEASE_S, clock.judging_s(LEASE_S))


class Sound:
    """A sound that a call waits for, which says so after each step."""

    def __init__(self, system: Any) -> None:
        self._database = system.database
        self.id = insert_file(system)
        file = type("Stored", (), {"file_id": self.id, "tenant_id": system.tenant_id})
        more = {"wait_s": 60.0, "max_waiting": 1}
        transcriptions.want(self._database, file, None, None, **more)  # type: ignore[arg-type]

    def __call__(self, clock: DatabaseClock) -> object | None:
        transcriptions.want_still(self._database, self.id)
        latest_s = clock.judging_s(LEASE_S)
        return transcriptions.claim(self._database, LEASE_S, latest_s=latest_s)


def open_turn(system: Any) -> Take:
    Thread(system).accept(1)

    def take(clock: DatabaseClock) -> object | None:
        holder = Holder(system.database, new_id(), LEASE_S, clock)
        return next(iter(claim_progress(holder, "desk", 1)), None)

    return take


LEASED = [queue_document, Sound, open_turn]


@pytest.mark.parametrize(
    ("make", "step_s"),
    [
        *((make, step_s) for make in (owe_file, *LEASED) for step_s in (-HOUR, HOUR)),
        *((make, -12.0) for make in (owe_file, queue_document, Sound)),
    ],
)
def test_what_waited_before_a_step_is_taken_at_once(
    system: Any, make: Callable[[Any], Take], step_s: float
) -> None:
    take = make(system)
    step(system, step_s)
    assert take(DatabaseClock()) is not None


@pytest.mark.parametrize("step_s", [-HOUR, -12.0, -480.0, HOUR])
@pytest.mark.parametrize("make", LEASED)
def test_what_a_process_holds_is_left_to_it_at_a_step(
    system: Any, make: Callable[[Any], Take], step_s: float
) -> None:
    take, clock = make(system), DatabaseClock(LONG)
    observe(system, clock)
    assert take(clock) is not None
    step(system, step_s)
    assert take(clock) is None, "not observed yet"
    observe(system, clock)
    assert take(clock) is None


@pytest.mark.parametrize("step_s", [-HOUR, -480.0, HOUR])
@pytest.mark.parametrize("make", [queue_document, Sound])
def test_what_a_dead_worker_held_is_taken_when_its_lease_would_have_ended(
    system: Any, make: Callable[[Any], Take], step_s: float, eventually: Eventually
) -> None:
    settings = system.settings.worker.model_copy(update={"lease_s": LEASE_S})
    worker = Leases(system.database, settings, model="echo", engine="echo")
    worker.start()
    take = make(system)
    assert take(worker.clock) is not None
    worker.close()
    step(system, step_s)

    def is_taken() -> bool:
        cut_leases(system.database, LEASE_S)
        observe(system, worker.clock)
        return take(worker.clock) is not None

    eventually(is_taken, 3 * LEASE_S + TOLERANCE_S)


@pytest.fixture
def sending(thread: Thread) -> UUID:
    """A delivery whose turn has ended."""
    thread.settle(thread.accept(1)[0])
    return thread.ids()[0]


@pytest.mark.parametrize("step_s", [-HOUR, -480.0, -12.0, HOUR])
def test_the_delivery_of_a_dead_process_is_found_when_its_lease_would_have_ended(
    system: Any, thread: Thread, sending: UUID, step_s: float, eventually: Eventually
) -> None:
    dead, other = (Holder(system.database, new_id(), LEASE_S) for _ in range(2))
    assert sweep(other) == 0
    assert claim_delivery(dead, "desk", sending)
    step(system, step_s)
    with capture_logs() as logs:
        eventually(lambda: sweep(other) == 1, 3 * LEASE_S + TOLERANCE_S)
    assert thread.states() == ["queued"]
    assert [round(log["by_s"]) for log in logs if log["event"] == "clock.stepped"] == [step_s]
    assert claim_delivery(other, "desk", sending)


def test_a_process_that_begins_after_a_step_back_finds_the_deliveries_of_dead_ones(
    system: Any, sending: UUID, eventually: Eventually
) -> None:
    """A worker that was last seen in the future tells it of the step."""
    worker = Leases(system.database, system.settings.worker, model="echo", engine="echo")
    worker.start()
    worker.close()
    assert claim_delivery(Holder(system.database, new_id(), 30.0), "desk", sending)
    step(system, -480.0)
    fresh = Holder(system.database, new_id(), LEASE_S)
    eventually(lambda: sweep(fresh) == 1, 3 * LEASE_S + TOLERANCE_S)


@pytest.mark.parametrize("step_s", [-HOUR, -480.0, -12.0, HOUR])
def test_a_delivery_that_is_being_sent_is_not_requeued_by_a_step(
    system: Any, thread: Thread, sending: UUID, step_s: float
) -> None:
    holder, other = (Holder(system.database, new_id(), 30.0, DatabaseClock(LONG)) for _ in range(2))
    assert sweep(other) == 0
    claim = claim_delivery(holder, "desk", sending)
    assert claim is not None
    for by_s in (step_s, -step_s):
        step(system, by_s)
        assert [sweep(other), sweep(other)] == [0, 0]
        assert claim_delivery(other, "desk", sending) is None
    Remembered(holder, claim).keep(parts={})
    assert thread.states() == ["sending"]
    assert system.database.run("SELECT failures FROM deliveries")[0].failures == 0


@pytest.mark.parametrize("make", LEASED)
def test_a_process_that_begins_after_a_step_forward_leaves_what_another_holds(
    system: Any, make: Callable[[Any], Take], eventually: Eventually
) -> None:
    """It cannot see the step; a lease later, what is held is renewed, and the rest is free."""
    take, fresh = make(system), DatabaseClock()
    assert take(DatabaseClock(LONG)) is not None
    step(system, HOUR)
    observe(system, fresh)
    assert take(fresh) is None
    eventually(lambda: take(fresh) is not None, 3 * LEASE_S)


def test_a_delivery_that_is_being_sent_is_not_requeued_by_who_begins_after_a_step_forward(
    system: Any, thread: Thread, sending: UUID, eventually: Eventually
) -> None:
    holder, fresh = (Holder(system.database, new_id(), LEASE_S) for _ in range(2))
    claim = claim_delivery(holder, "desk", sending)
    assert claim is not None
    step(system, HOUR)
    assert [sweep(fresh), sweep(fresh)] == [0, 0]
    Remembered(holder, claim).keep(parts={})
    eventually(lambda: sweep(fresh) == 1, 3 * LEASE_S)
    assert thread.states() == ["queued"]


def test_a_turn_still_waits_for_its_file_after_a_step_forward(system: Any) -> None:
    model = system.settings.engine.model_name
    worker = Leases(system.database, system.settings.worker, model=model, engine="echo")
    worker.start()
    file_id = insert_file(system, {"channel": "desk", "kind": "image", "ref": "V"})
    turn = accept(system.database, system.request("hello"))
    worker.close()
    step(system, HOUR)
    claim = worker.claim(turn.turn_id)
    assert claim is not None
    photo = MediaPart(type="image", file_id=show_id(Prefix.FILE, file_id))
    (message,) = claim.messages
    claim = replace(claim, messages=(message.model_copy(update={"content": (photo,)}),))
    media = open_media(system.database, system.settings)
    assert media.awaits(claim)
    assert not media.awaits(replace(claim, forward_s=0.0)), "the file looks an hour old"


@pytest.mark.parametrize("step_s", [-HOUR, HOUR])
def test_a_worker_indexes_what_waited_and_what_a_dead_one_held_before_a_step(
    system: Any, step_s: float, eventually: Eventually
) -> None:
    dead = Leases(system.database, system.settings.worker, model="echo", engine="echo")
    dead.start()
    take = queue_document(system)
    assert take(dead.clock) is not None
    dead.close()
    queue_document(system, "other")
    step(system, step_s)

    def states() -> list[str]:
        rows = system.database.run("SELECT state FROM documents ORDER BY attempt")
        return [row.state for row in rows]

    with InlineWorker(system.settings):
        eventually(lambda: states() == ["ready", "ready"], 30)
