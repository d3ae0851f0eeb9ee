"""Deliveries become due with the end of their turn, in the same transaction, one by one."""

import math
import time
from collections.abc import Callable
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Json, Jsonb
from structlog.testing import capture_logs

from turnmill.producer.accept import accept_many
from turnmill.producer.cancel import cancel
from turnmill.producer.parked.replay import replay
from turnmill.schemas.channels.deliveries import DELIVERY_TRANSITIONS, DeliveryState
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Failed, Outcome, Snoozed
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import DatabaseSettings, SecretUrl
from turnmill.schemas.store.advance import lock_conversations
from turnmill.schemas.store.changes import delivery_change
from turnmill.schemas.store.channels.deliveries import (
    INSERT_NOTICE,
    INSERT_PENDING,
    advance_deliveries,
)
from turnmill.schemas.store.channels.sending import REQUEUE_LOST
from turnmill.schemas.turns import AcceptedTurn, Reply, Usage
from turnmill.workers.delivery.base import Job, LeaseLost, Look, Memory
from turnmill.workers.delivery.claims import (
    Holder,
    Remembered,
    claim_delivery,
    claim_progress,
    is_held,
)
from turnmill.workers.delivery.progress import Progress
from turnmill.workers.delivery.send import Sender
from turnmill.workers.delivery.sweep import sweep
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.upkeep.isolated import Resting

REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))


@pytest.fixture
def system(make_system: Any, database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


class Thread:
    """A conversation of a channel, its turns, and what becomes of their deliveries."""

    def __init__(self, system: Any) -> None:
        self._system, self.database = system, system.database
        self.conversation_id = new_id()
        worker, model = system.settings.worker, system.settings.engine.model_name
        self._leases = Leases(self.database, worker, model=model, engine="echo")
        self._settler = Settler(self.database, max_attempts=1, give_up=Event())

    def accept(self, count: int) -> list[AcceptedTurn]:
        conversation = self.conversation_id
        turns = accept_many(
            self.database,
            [self._system.request(f"turn {n}", conversation_id=conversation) for n in range(count)],
        )
        for turn in turns:
            row = {"id": str(new_id()), "tenant_id": str(self._system.tenant_id)}
            row |= {"conversation_id": str(conversation), "turn_id": str(turn.turn_id)}
            row |= {"channel": "desk", "target": {}}
            self.database.run(INSERT_PENDING, (Json([row]),))
        return turns

    def notice(self) -> UUID:
        self.database.run(
            "INSERT INTO channel_threads VALUES ('desk', 'thread', %s, %s, 'me', %s) "
            "ON CONFLICT DO NOTHING",
            (self._system.tenant_id, self.conversation_id, Jsonb({})),
        )
        params = {"id": new_id(), "content": "Stopped.", "conversation": self.conversation_id}
        with self.database.cursor() as cursor:
            lock_conversations(cursor, [self.conversation_id])
            cursor.execute(INSERT_NOTICE, params)
            advance_deliveries(cursor, [self.conversation_id])
        return params["id"]

    def settle(self, turn: AcceptedTurn, outcome: Outcome = REPLY) -> None:
        claim = self._leases.claim(turn.turn_id)
        assert claim is not None
        assert self._settler.settle(claim, outcome)

    def end_unnoticed(self, turn: AcceptedTurn) -> None:
        """As a worker of a release without deliveries does."""
        self.database.run("UPDATE turns SET state = 'completed' WHERE id = %s", (turn.turn_id,))

    def states(self) -> list[str]:
        rows = self.database.run("SELECT state FROM deliveries ORDER BY ordinal")
        return [row.state for row in rows]

    def hinted(self) -> list[UUID]:
        """The deliveries that the broker is owed a hint for."""
        rows = self.database.run(
            "SELECT turn_id, model FROM outbox WHERE lane = 'delivery' ORDER BY turn_id"
        )
        assert {row.model for row in rows} <= {"desk"}
        return [row.turn_id for row in rows]

    def ids(self) -> list[UUID]:
        return [row.id for row in self.database.run("SELECT id FROM deliveries ORDER BY ordinal")]

    def lose(self, delivery_id: UUID) -> None:
        """What the sweep does after the death of a delivery's worker."""
        self.database.run(
            "UPDATE deliveries SET leased_until = to_timestamp(0) WHERE id = %s", (delivery_id,)
        )
        with self.database.cursor() as cursor:
            lock_conversations(cursor, [self.conversation_id])
            params = {"conversations": [self.conversation_id], "latest_s": math.inf}
            cursor.execute(REQUEUE_LOST, params)
            advance_deliveries(cursor, [self.conversation_id])

    def put(self, delivery_id: UUID, state: str) -> None:
        """By hand: what the delivery worker does."""
        with self.database.cursor() as cursor:
            lock_conversations(cursor, [self.conversation_id])
            cursor.execute("DELETE FROM outbox WHERE turn_id = %s", (delivery_id,))
            cursor.execute("UPDATE deliveries SET state = %s WHERE id = %s", (state, delivery_id))
            advance_deliveries(cursor, [self.conversation_id])


@pytest.fixture
def thread(system: Any) -> Thread:
    return Thread(system)


@pytest.mark.parametrize("end", ["answered", "failed", "parked", "cancelled"])
def test_every_end_of_a_turn_queues_its_delivery_with_a_hint(
    system: Any, thread: Thread, end: str
) -> None:
    (turn,) = thread.accept(1)
    assert (thread.states(), thread.hinted()) == (["pending"], [])
    match end:
        case "answered":
            thread.settle(turn)
        case "failed":
            thread.settle(turn, Failed("bad", "No."))
        case "parked":
            thread.settle(turn, Snoozed(0.0, "busy"))
        case "cancelled":
            cancel(system.database, system.tenant_id, turn.turn_id)
    assert (thread.states(), thread.hinted()) == (["queued"], thread.ids())


def test_a_conversations_deliveries_are_hinted_one_after_another(thread: Thread) -> None:
    first, second = thread.accept(2)
    thread.settle(first)
    thread.settle(second)
    one, other = thread.ids()
    assert (thread.states(), thread.hinted()) == (["queued", "queued"], [one])
    thread.put(one, "sending")
    assert thread.hinted() == []
    thread.put(one, "sent")
    assert thread.hinted() == [other]


def test_a_notice_waits_for_queued_deliveries_and_not_for_open_turns(thread: Thread) -> None:
    first, _second = thread.accept(2)
    thread.settle(first)
    (one, _), notice = thread.ids(), thread.notice()
    assert thread.hinted() == [one]
    thread.put(one, "failed")
    assert (thread.states(), thread.hinted()) == (["failed", "pending", "queued"], [notice])


def test_a_notice_gives_up_its_hint_to_an_earlier_reply_that_is_due_before_it_is_sent(
    thread: Thread,
) -> None:
    (turn,) = thread.accept(1)
    notice = thread.notice()
    assert thread.hinted() == [notice]
    thread.settle(turn)
    reply, _ = thread.ids()
    assert thread.hinted() == [reply]
    thread.put(reply, "sent")
    assert thread.hinted() == [notice]


def test_advancing_once_too_often_changes_nothing(thread: Thread) -> None:
    thread.settle(thread.accept(1)[0])
    thread.database.run("UPDATE outbox SET published_at = clock_timestamp()")
    before = thread.database.run("SELECT * FROM outbox")
    with thread.database.cursor() as cursor:
        lock_conversations(cursor, [thread.conversation_id])
        advance_deliveries(cursor, [thread.conversation_id])
    assert thread.database.run("SELECT * FROM outbox") == before


def test_what_older_workers_left_pending_is_queued_with_the_next_end(thread: Thread) -> None:
    first, second = thread.accept(2)
    thread.end_unnoticed(first)
    with thread.database.cursor() as cursor:
        lock_conversations(cursor, [thread.conversation_id])
        advance_deliveries(cursor, [thread.conversation_id])
    assert thread.states() == ["queued", "pending"]
    assert second.turn_id


def test_progress_is_not_shown_before_earlier_replies_are_sent(thread: Thread) -> None:
    holder = Holder(thread.database, new_id(), 30.0)
    first, _second = thread.accept(2)
    one, other = thread.ids()
    assert {claim.job.delivery_id for claim in claim_progress(holder, "desk", 9)} == {one, other}
    thread.database.run("UPDATE deliveries SET leased_until = NULL RETURNING id")
    thread.settle(first)
    assert claim_progress(holder, "desk", 9) == []
    thread.put(one, "sending")
    assert claim_progress(holder, "desk", 9) == []
    thread.put(one, "sent")
    assert [claim.job.delivery_id for claim in claim_progress(holder, "desk", 9)] == [other]


def test_a_due_delivery_is_waited_for_while_its_progress_is_being_shown(thread: Thread) -> None:
    holder = Holder(thread.database, new_id(), 30.0)
    (turn,) = thread.accept(1)
    (shown,) = claim_progress(holder, "desk", 9)
    assert not is_held(holder, shown.job.delivery_id)
    thread.settle(turn)
    assert claim_delivery(holder, "desk", shown.job.delivery_id) is None
    assert is_held(holder, shown.job.delivery_id)
    thread.database.run("UPDATE deliveries SET leased_until = NULL RETURNING id")
    assert not is_held(holder, shown.job.delivery_id)
    assert claim_delivery(holder, "desk", shown.job.delivery_id) is not None


def test_a_lease_that_is_nearly_over_is_renewed_before_a_call(
    thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder(thread.database, new_id(), 1000.0)
    thread.settle(thread.accept(1)[0])
    claim = claim_delivery(holder, "desk", thread.ids()[0])
    assert claim is not None
    memory, began_at = Remembered(holder, claim), time.monotonic()
    (first,) = leases(thread)
    memory.hold()
    assert leases(thread) == [first], "there is time enough for a call"
    monkeypatch.setattr(time, "monotonic", lambda: began_at + 600.0)
    memory.hold()
    (second,) = leases(thread)
    assert second > first
    memory.hold()
    assert leases(thread) == [second]
    thread.database.run("UPDATE deliveries SET attempt = attempt + 1 RETURNING id")
    monkeypatch.setattr(time, "monotonic", lambda: began_at + 1200.0)
    with pytest.raises(LeaseLost):
        memory.hold()


def leases(thread: Thread) -> list[Any]:
    return [row.leased_until for row in thread.database.run("SELECT leased_until FROM deliveries")]


class Trouble:
    """A platform that fails as told; it remembers which attempts were told of a doubt."""

    shows_progress = False

    def __init__(self, *errors: ChannelUnavailable) -> None:
        self.errors = list(errors)
        self.doubts: list[bool] = []

    def send(self, job: Job, memory: Memory) -> bool:
        self.doubts.append(job.is_doubtful)
        if self.errors:
            raise self.errors.pop(0)
        return True

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        return None

    def close(self) -> None:
        """Nothing."""


class Showing(Trouble):
    """A platform that has more to show in `next_s` seconds; None: never again."""

    def __init__(self, next_s: float | None) -> None:
        super().__init__()
        self.next_s = next_s

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        memory.keep(shown=True)
        return self.next_s


@pytest.mark.parametrize(("next_s", "waits_s"), [(None, None), (60, 60), (3600.0, 120)])
def test_progress_is_shown_again_when_the_platform_says_and_never_if_it_says_so(
    thread: Thread,
    next_s: float | None,
    waits_s: float | None,
    eventually: Callable[..., None],
) -> None:
    thread.accept(1)
    progress = Progress(
        Holder(thread.database, new_id(), 30.0), "desk", {"desk": Showing(next_s)}, 1
    )

    def released() -> list[Any]:
        return thread.database.run(
            "SELECT extract(epoch FROM progress_at - clock_timestamp())::float AS waits_s "
            "FROM deliveries WHERE leased_until IS NULL AND progress = '{\"shown\": true}'"
        )

    try:
        progress.start()
        eventually(lambda: bool(released()), 30)
    finally:
        progress.close()
    (row,) = released()
    if waits_s is None:
        assert row.waits_s is None
    else:
        assert waits_s - 30 < row.waits_s <= waits_s


def test_a_process_with_a_shorter_lease_leaves_the_others_their_deliveries(
    thread: Thread, eventually: Callable[..., None]
) -> None:
    thread.settle(thread.accept(1)[0])
    (delivery,) = thread.ids()
    assert claim_delivery(Holder(thread.database, new_id(), 300.0), "desk", delivery)
    other = Holder(thread.database, new_id(), 2.0)
    assert sweep(other) == 0
    assert thread.states() == ["sending"]
    thread.database.run(
        "UPDATE deliveries SET leased_until = clock_timestamp() + interval '1 hour'"
    )
    assert sweep(other) == 0, "the clock was set back: a holder that lives has time to renew it"
    eventually(lambda: sweep(other) == 1, 10)
    assert thread.states() == ["queued"]


def test_a_delivery_that_postgres_refuses_to_change_is_swept_alone(system: Any) -> None:
    held, *others = [Thread(system) for _ in range(3)]
    for thread in (held, *others):
        thread.settle(thread.accept(1)[0])
        delivery = max(thread.ids())
        assert claim_delivery(Holder(thread.database, new_id(), 300.0), "desk", delivery)
    system.database.run("UPDATE deliveries SET leased_until = to_timestamp(0)")
    system.database.run(
        "ALTER TABLE deliveries ADD CONSTRAINT refuses CHECK (state <> 'queued' "
        f"OR conversation_id <> '{held.conversation_id}') NOT VALID"
    )
    resting = Resting()
    with capture_logs() as logs:
        assert sweep(Holder(system.database, new_id(), 300.0), resting) == 2
        # It rests, so that it is not told of each second, nor keeps a place from others.
        assert sweep(Holder(system.database, new_id(), 300.0), resting) == 0
    found = system.database.run("SELECT conversation_id, state FROM deliveries")
    states = {row.conversation_id: row.state for row in found}
    assert states == {
        held.conversation_id: "sending",
        **{other.conversation_id: "queued" for other in others},
    }
    [failed] = [each for each in logs if each["event"] == "conversation.sweep_failed"]
    assert failed["conversation_id"] == held.conversation_id.hex
    system.database.run("ALTER TABLE deliveries DROP CONSTRAINT refuses")
    assert sweep(Holder(system.database, new_id(), 300.0), resting) == 0
    resting[held.conversation_id] = time.monotonic()
    assert sweep(Holder(system.database, new_id(), 300.0), resting) == 1
    assert resting == {}


def test_progress_that_postgres_refuses_to_note_holds_up_no_other(system: Any) -> None:
    for thread in [Thread(system) for _ in range(3)]:
        thread.accept(1)
    found = system.database.run("SELECT id FROM deliveries ORDER BY progress_at")
    refused, *others = [row.id for row in found]
    system.database.run(
        "ALTER TABLE deliveries ADD CONSTRAINT refuses "
        f"CHECK (attempt = 0 OR id <> '{refused}') NOT VALID"
    )
    holder, resting = Holder(system.database, new_id(), 30.0), Resting()
    with capture_logs() as logs:
        claims = [claim_progress(holder, "desk", 9, resting) for _ in range(2)]
    shown = [[claim.job.delivery_id for claim in each] for each in claims]
    assert shown == [others, []]
    told = [log["delivery_id"] for log in logs if log["event"] == "delivery.sweep_failed"]
    assert told == [refused.hex]


class Telling(Trouble):
    """A platform during whose call something happens."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        super().__init__()
        self.happens = happens

    def send(self, job: Job, memory: Memory) -> bool:
        self.happens()
        return super().send(job, memory)


def test_a_doubt_outlives_attempts_that_end_before_it_is_settled(thread: Thread) -> None:
    holder = Holder(thread.database, new_id(), 30.0)
    platform = Trouble(
        ChannelUnavailable("a limit", retry_after_s=0.01),
        ChannelUnavailable("no answer", is_doubtful=True),
        ChannelUnavailable("a limit of the look-up", retry_after_s=0.01),
        ChannelUnavailable("no connection"),
    )
    sender = Sender(holder, {"desk": platform}, max_attempts=9, give_up=Event())
    thread.settle(thread.accept(1)[0])
    (delivery,) = thread.ids()
    while thread.states() != ["sent"]:
        thread.database.run("UPDATE outbox SET is_immediate = true RETURNING turn_id")
        assert sender.send("desk", delivery)
    assert platform.doubts == [False, False, True, True, True]


def test_a_delivery_whose_progress_a_dead_worker_showed_takes_no_place_until_its_lease_ends(
    thread: Thread,
) -> None:
    dead = Holder(thread.database, new_id(), 300.0)
    holder = Holder(thread.database, new_id(), 30.0)
    sender = Sender(holder, {"desk": Trouble()}, max_attempts=3, give_up=Event())
    (turn,) = thread.accept(1)
    (shown,) = claim_progress(dead, "desk", 9)
    thread.settle(turn)
    delivery, began_at = shown.job.delivery_id, time.monotonic()
    thread.database.run("UPDATE outbox SET published_at = now() RETURNING turn_id")
    assert not sender.send("desk", delivery)
    assert time.monotonic() - began_at < 60
    (hint,) = thread.database.run(
        "SELECT published_at, is_immediate, due_at > accepted_at AS is_later FROM outbox "
        "JOIN deliveries d ON d.id = outbox.turn_id JOIN turns t ON t.id = d.turn_id"
    )
    assert (hint.published_at, hint.is_immediate, hint.is_later) == (None, False, True)
    thread.database.run("UPDATE deliveries SET leased_until = now() RETURNING id")
    thread.database.run("UPDATE outbox SET is_immediate = true RETURNING turn_id")
    assert sender.send("desk", delivery)
    assert thread.states() == ["sent"]


def test_a_delivery_that_kills_its_workers_is_given_up(thread: Thread) -> None:
    platform = Trouble()
    holder = Holder(thread.database, new_id(), 30.0)
    sender = Sender(holder, {"desk": platform}, max_attempts=3, give_up=Event())
    thread.settle(thread.accept(1)[0])
    (delivery,) = thread.ids()
    for _ in range(3):
        assert claim_delivery(holder, "desk", delivery) is not None
        thread.lose(delivery)
    assert sender.send("desk", delivery)
    (row,) = thread.database.run("SELECT state, error_code, failures FROM deliveries")
    assert (row.state, row.error_code, row.failures) == ("failed", "attempts_used_up", 3)
    assert platform.doubts == []


HIDDEN = "127.0.0.1"


def ask_a_database_that_is_away() -> None:
    Database(DatabaseSettings(url=SecretUrl(f"postgresql://{HIDDEN}:1/x"))).run("SELECT 1")


def fail(error: Exception) -> Callable[[], None]:
    def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize("max_attempts", [1, 9])
@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (ask_a_database_that_is_away, "database_unavailable"),
        (fail(ChannelUnavailable(f"{HIDDEN} does not answer.")), "channel_unavailable"),
        (fail(ValueError(f"of {HIDDEN}")), "internal_error"),
        (
            fail(DeliveryRefused(f"No: {HIDDEN}.", reason="http_404", told="Check its URL.")),
            "http_404",
        ),
        (fail(DeliveryRefused(f"No: {HIDDEN}.", reason=f"at {HIDDEN}")), "delivery_refused"),
    ],
    ids=["database", "channel", "bug", "refused", "refused with words for a code"],
)
def test_tenants_are_told_our_sentence_and_the_log_has_the_rest(
    thread: Thread, happens: Callable[[], None], code: str, max_attempts: int
) -> None:
    holder = Holder(thread.database, new_id(), 30.0)
    sender = Sender(holder, {"desk": Telling(happens)}, max_attempts=max_attempts, give_up=Event())
    thread.settle(thread.accept(1)[0])
    (delivery,) = thread.ids()
    with capture_logs() as logs:
        assert sender.send("desk", delivery)
    (row,) = thread.database.run("SELECT state, error_code, error_message FROM deliveries")
    is_refused = code in ("http_404", "delivery_refused")
    assert row.state == ("failed" if is_refused or max_attempts == 1 else "queued")
    is_used_up = max_attempts == 1 and not is_refused
    assert row.error_code == ("attempts_used_up" if is_used_up else code)
    assert row.error_message
    assert HIDDEN not in row.error_code + row.error_message
    if code != "internal_error":  # whose traceback the log has
        assert any(HIDDEN in str(log.get("reason")) for log in logs)


@pytest.mark.parametrize("state", ["sent", "failed", "dropped", "lost"])
def test_an_attempt_notices_that_its_delivery_is_not_its_own_any_more(
    thread: Thread, state: str
) -> None:
    holder = Holder(thread.database, new_id(), 30.0)
    thread.settle(thread.accept(1)[0])
    (delivery,) = thread.ids()
    claim = claim_delivery(holder, "desk", delivery)
    assert claim is not None
    memory = Remembered(holder, claim)
    memory.keep(parts={})
    if state == "lost":
        thread.lose(delivery)
    else:
        thread.put(delivery, state)
    with pytest.raises(LeaseLost):
        memory.keep(parts={"0": "there"})


def test_progress_is_remembered_though_its_turn_ends_meanwhile(thread: Thread) -> None:
    (turn,) = thread.accept(1)
    holder = Holder(thread.database, new_id(), 30.0)
    (claim,) = claim_progress(holder, "desk", 9)
    thread.settle(turn)
    Remembered(holder, claim).keep(draft={"message": "17"})
    (row,) = thread.database.run("SELECT state, progress FROM deliveries")
    assert (row.state, row.progress) == ("queued", {"draft": {"message": "17"}})


def test_a_reply_is_owed_anew_though_its_failure_is_just_being_told(
    system: Any, thread: Thread
) -> None:
    (turn,) = thread.accept(1)
    thread.settle(turn, Snoozed(0.0, "busy"))
    holder = Holder(thread.database, new_id(), 30.0)
    platform = Telling(lambda: replay(system.database, system.tenant_id, [turn.turn_id]))
    sender = Sender(holder, {"desk": platform}, max_attempts=9, give_up=Event())
    (told,) = thread.ids()
    assert sender.send("desk", told)
    (owed,) = thread.ids()
    assert (thread.states(), owed != told) == (["pending"], True)
    thread.settle(turn)
    assert (thread.states(), thread.hinted()) == (["queued"], [owed])


@pytest.mark.parametrize("before", DeliveryState)
def test_no_statement_can_be_built_for_a_change_that_the_table_lacks(before: DeliveryState) -> None:
    for after in set(DeliveryState) - DELIVERY_TRANSITIONS[before]:
        with pytest.raises(ValueError, match=f"from {before} to {after}"):
            delivery_change(before, to=after)
    for after in DELIVERY_TRANSITIONS[before]:
        assert delivery_change(before, to=after).guard == f"state IN ('{before}')"
