"""Parked turns: listed, replayed in their place or not at all, and dropped.

With a real Postgres and no broker. Turns are parked by an attempt that is the last one.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.integration.workers.claiming import claimed
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.batches.backlog import read_backlog
from turnmill.producer.batches.progress import progress
from turnmill.producer.batches.results import results
from turnmill.producer.batches.submission import submit
from turnmill.producer.parked import replay as replay_module
from turnmill.producer.parked.listing import find_parked, list_parked, read_parked
from turnmill.producer.parked.replay import Change, drop, foresee, replay
from turnmill.producer.tenants import save_bot
from turnmill.schemas.errors import LaterTurnAnswered, LaterTurnRunning, NotFound, NotParked
from turnmill.schemas.ids import new_id, show_id
from turnmill.schemas.outcomes import Answered, Failed, Snoozed
from turnmill.schemas.parked import ParkedFilter
from turnmill.schemas.turns import AcceptedTurn, GenerationParams, Lane, Reply, TurnState, Usage
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.turn.stream import Stream
from turnmill.workers.upkeep.evidence import PARKED_AFTER
from turnmill.workers.upkeep.rescuer import sweep

REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))
BUSY = Snoozed(0.0, "The engine cannot take the turn right now.")


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


def new_leases(system: Any, *lanes: Lane) -> Leases:
    """The leases of a worker of its own; nothing renews them."""
    settings = system.settings.worker.model_copy(
        update={"lease_s": 60.0, "lanes": lanes or tuple(Lane)}
    )
    model = system.settings.engine.model_name
    return Leases(system.database, settings, model=model, engine="echo")


def settle(system: Any, claim: Claim, outcome: Any) -> bool:
    """The outcome of an attempt; that of a last one, if it is to try again."""
    return Settler(system.database, max_attempts=1, give_up=Event()).settle(claim, outcome)


def park(system: Any, *turns: AcceptedTurn) -> None:
    for turn in turns:
        assert settle(system, claimed(new_leases(system), turn), BUSY)


def conversation(system: Any, count: int, **fields: Any) -> list[AcceptedTurn]:
    known = new_id()
    return accept_many(
        system.database,
        [system.request(f"turn {n}", conversation_id=known, **fields) for n in range(count)],
    )


def replay_one(system: Any, turn: AcceptedTurn, **options: Any) -> Change:
    (change,) = replay(system.database, system.tenant_id, [turn.turn_id], **options)
    return change


def states(system: Any, turns: list[AcceptedTurn]) -> list[str]:
    return [system.read(turn).state.value for turn in turns]


def hints(system: Any) -> dict[UUID, str]:
    return {
        row.turn_id: row.lane for row in system.database.run("SELECT turn_id, lane FROM outbox")
    }


def answer_all(system: Any, *lanes: Lane) -> None:
    worker = system.settings.worker.model_copy(update={"lanes": lanes or tuple(Lane)})
    with InlineWorker(system.settings.model_copy(update={"worker": worker})):
        system.wait_until_settled()


def answered_in_order(system: Any, turns: list[AcceptedTurn]) -> bool:
    read_turns = [system.read(turn) for turn in turns]
    times = [turn.settled_at for turn in read_turns]
    return all(turn.reply is not None for turn in read_turns) and times == sorted(times)


def broken_invariants(system: Any) -> list[Any]:
    """What `schemas/store/tables.py` says always holds, and does not."""
    return list(
        system.database.run("""
        SELECT 'hint', t.id FROM turns t FULL JOIN outbox o ON o.turn_id = t.id
        WHERE (t.state = 'queued') IS DISTINCT FROM (o.turn_id IS NOT NULL)
        UNION ALL
        SELECT 'two due', conversation_id FROM turns WHERE state IN ('queued', 'running')
        GROUP BY conversation_id HAVING count(*) > 1
        UNION ALL
        SELECT 'place', c.id FROM conversations c WHERE c.answered_seq <> coalesce((
            SELECT min(seq) FROM turns
            WHERE conversation_id = c.id AND state IN ('waiting', 'queued', 'running')
        ), c.next_seq) - 1
        UNION ALL
        SELECT 'reply', t.id FROM turns t FULL JOIN replies r ON r.turn_id = t.id
        WHERE (t.state = 'completed') IS DISTINCT FROM (r.turn_id IS NOT NULL)
    """)
    )


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


# --- Replay


def test_a_replayed_turn_is_answered_in_its_place_as_if_for_the_first_time(system: Any) -> None:
    first, second = turns = conversation(system, 2, timeout_s=100)
    assert settle(system, claimed(new_leases(system), first), REPLY)
    park(system, second)
    system.database.run("UPDATE turns SET deadline_at = clock_timestamp(), crashes = 2")
    assert system.read(second).error_code == "attempts_used_up"
    assert replay_one(system, second).state is TurnState.QUEUED
    assert broken_invariants(system) == []
    assert hints(system) == {second.turn_id: "interactive"}
    turns.append(
        accept(system.database, system.request("3", conversation_id=first.conversation_id))
    )
    assert states(system, turns) == ["completed", "queued", "waiting"]
    reset = "failures = 0 AND crashes = 0 AND attempt = 1 AND deadline_at IS NULL"
    assert system.count(f"{reset} AND error_code IS NULL AND settled_at IS NULL AND seq = 2") == 1
    answer_all(system)
    assert answered_in_order(system, turns)
    assert system.read(second).attempt == 2
    assert broken_invariants(system) == []


def test_parked_turns_of_a_conversation_are_all_answered_in_their_order(system: Any) -> None:
    turns = conversation(system, 3)
    park(system, *turns)
    # Named in any order.
    asked = [turns[n].turn_id for n in (2, 0, 1)]
    changes = replay(system.database, system.tenant_id, asked)
    assert [change.state for change in changes] == ["queued", "waiting", "waiting"]
    assert hints(system) == {turns[0].turn_id: "interactive"}
    answer_all(system)
    assert answered_in_order(system, turns)


def test_parked_turns_that_are_not_replayed_stay_parked(system: Any) -> None:
    turns = conversation(system, 3)
    park(system, *turns)
    replay_one(system, turns[1])
    assert states(system, turns) == ["parked", "queued", "parked"]
    replay_one(system, turns[0])
    assert states(system, turns) == ["queued", "waiting", "parked"]
    assert broken_invariants(system) == []
    answer_all(system)
    assert states(system, turns) == ["completed", "completed", "parked"]
    assert answered_in_order(system, turns[:2])
    assert broken_invariants(system) == []


def test_a_later_turn_that_is_due_waits_for_the_replayed_one(system: Any) -> None:
    turns = conversation(system, 3)
    park(system, turns[0])
    assert states(system, turns) == ["parked", "queued", "waiting"]
    replay_one(system, turns[0])
    assert states(system, turns) == ["queued", "waiting", "waiting"]
    assert hints(system) == {turns[0].turn_id: "interactive"}
    assert new_leases(system).claim(turns[1].turn_id) is None, "its hint is on the broker still"
    answer_all(system)
    assert answered_in_order(system, turns)


def test_a_later_turn_that_was_due_in_quarantine_comes_back_there(system: Any) -> None:
    first, second = conversation(system, 2)
    park(system, first)
    system.database.run("UPDATE outbox SET lane = 'quarantine'")
    replay_one(system, first)
    assert settle(system, claimed(new_leases(system), first), REPLY)
    assert hints(system) == {second.turn_id: "quarantine"}


def test_a_turn_whose_conversation_was_answered_since_is_left_as_it_is(system: Any) -> None:
    first, second = turns = conversation(system, 2)
    park(system, first)
    assert settle(system, claimed(new_leases(system), second), REPLY)
    change = replay_one(system, first)
    assert isinstance(change.refusal, LaterTurnAnswered)
    assert "Turn 2" in change.refusal.message
    assert "as a new turn" in change.refusal.message
    assert states(system, turns) == ["parked", "completed"]
    assert broken_invariants(system) == []


def test_later_turns_that_are_no_longer_kept_count_as_answered(system: Any) -> None:
    first, second = conversation(system, 2)
    park(system, first)
    assert settle(system, claimed(new_leases(system), second), REPLY)
    for table, key in (("replies", "turn_id"), ("turns", "id")):
        system.database.run(f"DELETE FROM {table} WHERE {key} = %s", (second.turn_id,))
    assert isinstance(replay_one(system, first).refusal, LaterTurnAnswered)
    third = accept(system.database, system.request("3", conversation_id=first.conversation_id))
    assert isinstance(replay_one(system, first).refusal, LaterTurnAnswered)
    assert states(system, [first, third]) == ["parked", "queued"]


def test_a_turn_waits_with_its_replay_until_a_later_one_has_settled(system: Any) -> None:
    first, second = conversation(system, 2)
    park(system, first)
    later = claimed(new_leases(system), second)
    assert isinstance(replay_one(system, first).refusal, LaterTurnRunning)
    assert settle(system, later, Failed("engine_failure", "no"))
    assert replay_one(system, first).refusal is None
    answer_all(system)
    assert states(system, [first, second]) == ["completed", "failed"]


def test_what_readers_have_seen_of_a_later_reply_is_not_taken_back(system: Any) -> None:
    first, second = conversation(system, 2)
    park(system, first)
    claim = claimed(new_leases(system), second)
    stream = Stream(system.database, 0.01)
    opened = stream.open(claim)
    stream.add(opened, "seen ", 1)
    stream.flush([opened])
    handed_back = Snoozed(0.0, "handed back", counts=False)
    assert settle(system, claim, handed_back)
    assert isinstance(replay_one(system, first).refusal, LaterTurnRunning)
    assert states(system, [first, second]) == ["parked", "queued"]


def test_a_replay_into_quarantine_isolates_the_turns_and_parks_a_poisonous_one(
    system: Any,
) -> None:
    turns = conversation(system, 2)
    park(system, *turns)
    ids = [turn.turn_id for turn in turns]
    replay(system.database, system.tenant_id, ids, into=Lane.QUARANTINE)
    assert hints(system) == {ids[0]: "quarantine"}
    assert new_leases(system, Lane.INTERACTIVE, Lane.BATCH).claim(ids[0]) is None
    for _ in range(PARKED_AFTER):
        assert states(system, turns) == ["queued", "waiting"]
        assert new_leases(system, Lane.QUARANTINE).claim(ids[0]) is not None
        system.database.run("UPDATE turns SET leased_until = now() WHERE state = 'running'")
        sweep(system.database, system.settings.worker)
    assert states(system, turns) == ["parked", "queued"]
    assert system.read(turns[0]).error_code == "worker_lost"
    answer_all(system, Lane.QUARANTINE)
    assert states(system, turns) == ["parked", "completed"]


def test_the_attempt_that_a_turn_was_parked_under_cannot_write_after_its_replay(
    system: Any,
) -> None:
    turn = accept(system.database, system.request("hello"))
    late = claimed(new_leases(system), turn)
    assert settle(system, late, BUSY)
    replay_one(system, turn)
    assert not settle(system, late, REPLY), "queued again"
    current = claimed(new_leases(system), turn)
    assert current.attempt == 2
    assert not settle(system, late, REPLY), "running again"
    assert settle(system, current, REPLY)


def test_a_replay_is_foreseen_without_changing_anything(system: Any) -> None:
    first, second, third = turns = conversation(system, 3)
    park(system, first)
    assert settle(system, claimed(new_leases(system), second), REPLY)
    park(system, third)
    ids = [turn.turn_id for turn in turns]
    refusals = [change.refusal for change in foresee(system.database, system.tenant_id, ids)]
    assert [type(refusal) for refusal in refusals] == [LaterTurnAnswered, NotParked, type(None)]
    assert states(system, turns) == ["parked", "completed", "parked"]
    details = read_parked(system.database, system.tenant_id, first.turn_id)
    assert not details.can_replay
    assert "Turn 2 of its conversation" in details.replay
    assert read_parked(system.database, system.tenant_id, third.turn_id).can_replay


def test_nothing_changes_when_one_of_the_turns_does_not_exist(system: Any) -> None:
    (turn,) = conversation(system, 1)
    park(system, turn)
    for change in (replay, drop):
        with pytest.raises(NotFound):
            change(system.database, system.tenant_id, [turn.turn_id, new_id()])
        with pytest.raises(NotFound):
            change(system.database, new_id(), [turn.turn_id])
    assert system.read(turn).state == "parked"


def test_many_turns_are_replayed_conversation_by_conversation(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "CHUNK_TURNS", 7)
    conversations = [conversation(system, 3) for _ in range(10)]
    for turns in conversations:
        park(system, *turns)
    asked = find_parked(system.database, system.tenant_id, ParkedFilter())
    assert asked == sorted(asked)
    counts: list[int] = []
    changes = replay(system.database, system.tenant_id, asked, on_done=counts.append)
    assert counts == [9, 18, 27, 30]
    assert [change.state for change in changes] == ["queued", "waiting", "waiting"] * 10
    assert broken_invariants(system) == []
    answer_all(system)
    assert all(answered_in_order(system, turns) for turns in conversations)


# --- Drop


def test_a_dropped_turn_has_failed_with_the_error_its_user_was_told(system: Any) -> None:
    first, _ = turns = conversation(system, 2)
    park(system, first)
    before = system.read(first)
    (change,) = drop(system.database, system.tenant_id, [first.turn_id])
    assert (change.state, change.refusal) == (TurnState.FAILED, None)
    after = system.read(first)
    assert after == before.model_copy(update={"state": TurnState.FAILED})
    assert states(system, turns) == ["failed", "queued"]
    assert list_parked(system.database, system.tenant_id, ParkedFilter()).total == 0
    (again,) = drop(system.database, system.tenant_id, [first.turn_id])
    assert isinstance(again.refusal, NotParked)
    assert isinstance(replay_one(system, first).refusal, NotParked)
    assert broken_invariants(system) == []


def test_a_turn_is_replayed_or_dropped_and_never_both(system: Any) -> None:
    for turn in [accept(system.database, system.request(f"turn {n}")) for n in range(20)]:
        park(system, turn)
        results = at_once(
            lambda turn=turn: replay_one(system, turn),
            lambda turn=turn: drop(system.database, system.tenant_id, [turn.turn_id])[0],
            lambda turn=turn: replay_one(system, turn),
        )
        (winner,) = [change for change in results if change.refusal is None]
        assert system.read(turn).state == winner.state
    assert broken_invariants(system) == []


# --- Races


def test_a_turn_accepted_during_a_replay_is_answered_after_it(system: Any) -> None:
    conversations = [conversation(system, 1) for _ in range(25)]
    for turns in conversations:
        park(system, *turns)
        request = system.request("later", conversation_id=turns[0].conversation_id)
        change, later = at_once(
            lambda turns=turns: replay_one(system, turns[0]),
            lambda request=request: accept(system.database, request),
        )
        assert change.refusal is None
        turns.append(later)
    assert broken_invariants(system) == []
    answer_all(system)
    assert all(answered_in_order(system, turns) for turns in conversations)


def test_a_replay_never_comes_before_a_reply_that_settles_meanwhile(system: Any) -> None:
    for turns in [conversation(system, 2) for _ in range(25)]:
        park(system, turns[0])
        running = claimed(new_leases(system), turns[1])
        change, is_settled = at_once(
            lambda turns=turns: replay_one(system, turns[0]),
            lambda running=running: settle(system, running, REPLY),
        )
        assert is_settled
        assert isinstance(change.refusal, LaterTurnRunning | LaterTurnAnswered)
        assert states(system, turns) == ["parked", "completed"]
    assert broken_invariants(system) == []


def test_a_later_turn_is_claimed_or_waits_for_the_replay_and_never_both(system: Any) -> None:
    leases = new_leases(system)
    for turns in [conversation(system, 2) for _ in range(25)]:
        park(system, turns[0])
        change, claim = at_once(
            lambda turns=turns: replay_one(system, turns[0]),
            lambda turns=turns: leases.claim(turns[1].turn_id),
        )
        if change.refusal is None:
            assert claim is None
            assert states(system, turns) == ["queued", "waiting"]
        else:
            assert claim is not None
            assert isinstance(change.refusal, LaterTurnRunning)
            assert states(system, turns) == ["parked", "running"]
    assert broken_invariants(system) == []


def test_a_later_turn_that_is_just_being_claimed_is_left_alone(
    system: Any, eventually: Callable[..., None]
) -> None:
    """The claim is stopped between its first lock and its end, where no luck can avoid it."""
    first, second = turns = conversation(system, 2)
    park(system, first)

    def wait_for_waiting(count: int) -> None:
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        )
        eventually(lambda: len(system.database.run(waiting)) == count)

    with (
        psycopg.connect(system.settings.database.url.get_secret_value()) as holding,
        ThreadPoolExecutor(2) as pool,
    ):
        holding.execute("SELECT 1 FROM outbox FOR UPDATE")
        claiming = pool.submit(new_leases(system).claim, second.turn_id)
        wait_for_waiting(1)
        replaying = pool.submit(replay_one, system, first)
        wait_for_waiting(2)
        holding.rollback()
        assert claiming.result() is not None
        assert isinstance(replaying.result().refusal, LaterTurnRunning)
    assert states(system, turns) == ["parked", "running"]


def test_replies_come_in_order_however_turns_fail_and_are_replayed_meanwhile(system: Any) -> None:
    engine = system.settings.engine.model_copy(update={"echo_failure_rate": 0.3})
    worker = system.settings.worker.model_copy(update={"max_attempts": 1})
    settings = system.settings.model_copy(update={"engine": engine, "worker": worker})
    known = [new_id() for _ in range(15)]

    def ask() -> None:
        for n in range(12):
            turns = [system.request(f"turn {n}", conversation_id=one) for one in known]
            accept_many(system.database, turns)

    def replay_all() -> int:
        ids = find_parked(system.database, system.tenant_id, ParkedFilter())
        changes = replay(system.database, system.tenant_id, ids)
        return sum(change.refusal is None for change in changes)

    with InlineWorker(settings):
        at_once(ask, ask, lambda: [replay_all() for _ in range(30)])
        system.wait_until_settled()
        while replay_all():
            system.wait_until_settled()
    assert broken_invariants(system) == []
    assert system.count("state = 'completed'") + system.count("state = 'parked'") == 360
    disorder = system.database.run("""
        SELECT 1 FROM turns t JOIN turns later USING (conversation_id)
        WHERE t.state = 'completed' AND later.state = 'completed'
          AND later.seq > t.seq AND later.settled_at < t.settled_at
    """)
    assert disorder == []
    assert system.count("state = 'completed' AND attempt > 1") > 0


# --- What there is


def test_parked_turns_are_counted_by_error_filtered_and_paged(system: Any) -> None:
    model = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, "support", model, "", GenerationParams())
    turns = [accept(system.database, system.request(f"turn {n}")) for n in range(5)]
    batch = system.request("a row", lane=Lane.BATCH).model_copy(update={"bot": "support"})
    turns.append(accept(system.database, batch))
    accept(system.database, system.request("not parked"))
    park(system, *turns)
    system.database.run(
        "UPDATE turns SET error_code = 'worker_lost', error_message = 'gone', "
        "settled_at = settled_at - interval '1 day' WHERE id = %s", (turns[0].turn_id,)
    )  # fmt: skip

    def listed(**wanted: Any) -> Any:
        return list_parked(system.database, system.tenant_id, ParkedFilter(**wanted), limit=4)

    page = listed()
    assert page.total == 6
    assert [(error.error_code, error.count) for error in page.errors] == [
        ("attempts_used_up", 5),
        ("worker_lost", 1),
    ]
    assert "The engine cannot take the turn right now." in page.errors[0].error_message
    shown = [show_id("turn", turn.turn_id) for turn in reversed(turns)]
    assert [turn.turn_id for turn in page.turns] == shown[:4]
    assert page.next == shown[3]
    rest = list_parked(
        system.database, system.tenant_id, ParkedFilter(), limit=4, after=turns[2].turn_id
    )
    assert [turn.turn_id for turn in rest.turns] == shown[4:]
    assert (rest.next, rest.total) == (None, 6)
    assert [turn.turn_id for turn in listed(bot="support").turns] == shown[:1]
    assert listed(lane="batch").total == 1
    assert listed(error_code="worker_lost").turns[0].turn_id == shown[5]
    assert listed(since=page.turns[3].parked_at - timedelta(hours=1)).total == 5
    assert (listed(model=model).total, listed(model="other").total) == (6, 0)
    assert list_parked(system.database, new_id(), ParkedFilter()).turns == []


def test_everything_about_a_parked_turn_is_shown(system: Any) -> None:
    _, turn, _ = turns = conversation(system, 3)
    park(system, *turns[:2])
    details = read_parked(system.database, system.tenant_id, turn.turn_id)
    assert (details.seq, details.conversation_turns, details.attempts) == (2, 3, 1)
    assert [message.content for message in details.messages] == ["turn 1"]
    assert [(a.number, a.outcome, a.error) for a in details.history] == [
        (1, "snoozed", "attempts_used_up")
    ]
    with pytest.raises(NotParked, match="it is queued"):
        read_parked(system.database, system.tenant_id, turns[2].turn_id)
    with pytest.raises(NotFound):
        read_parked(system.database, new_id(), turn.turn_id)


# --- Batches


def test_a_replayed_row_makes_its_batch_incomplete_and_then_whole(
    system: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text("id,conversation,prompt\na,1,first\nb,1,second\nc,,alone\n")
    bot = system.settings.engine.model_name
    batch = submit(system.database, system.tenant_id, bot, read_backlog(path))
    ids = [
        UUID(row.turn_id[5:]) for row in results(system.database, system.tenant_id, batch.batch_id)
    ]
    leases = new_leases(system)
    for turn_id, outcome in zip(ids, (REPLY, BUSY, BUSY), strict=True):
        claim = leases.claim(turn_id)
        assert claim is not None
        assert settle(system, claim, outcome)
    done = progress(system.database, system.tenant_id, batch.batch_id)
    assert (done.is_done, done.completed, done.failed) == (True, 1, 2)

    replay(system.database, system.tenant_id, ids[1:])
    again = progress(system.database, system.tenant_id, batch.batch_id)
    assert (again.is_done, again.settled, again.failed) == (False, 1, 0)
    answer_all(system)
    whole = progress(system.database, system.tenant_id, batch.batch_id)
    assert (whole.is_done, whole.completed, whole.attempts) == (True, 3, 5)
    rows = list(results(system.database, system.tenant_id, batch.batch_id))
    assert [(row.id, row.reply, row.error) for row in rows] == [
        ("a", "yes", None),
        ("b", "second", None),
        ("c", "alone", None),
    ]
