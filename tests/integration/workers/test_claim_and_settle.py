"""Claim, generate, settle: one attempt at a time owns a turn, and only it may write.

With a real Postgres and no broker. Most tests drive the steps of an attempt by hand, so that
what happens in between is chosen and not a matter of luck.
"""

import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from tests.integration.workers.claiming import claimed, seen_at
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.api.errors import problem_of_turn
from turnmill.producer.cancel import cancel, end_open_turns
from turnmill.producer.handoff import hand_off
from turnmill.producer.tenants import create_tenant, save_bot
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.errors import (
    ContextOverflow,
    DatabaseUnavailable,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    TurnmillError,
)
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered, Failed, Outcome, Snoozed
from turnmill.schemas.store.advance import lock_conversations
from turnmill.schemas.turns import (
    AcceptedTurn,
    GenerationParams,
    Lane,
    Reply,
    Role,
    TurnState,
    Usage,
)
from turnmill.workers.consumer.process import running_worker
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn import prompt as prompt_module
from turnmill.workers.turn import settle as settle_module
from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.answer import Worker, answer_turn
from turnmill.workers.turn.attempt import AbortReason
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler
from turnmill.workers.turn.stream import Stream
from turnmill.workers.upkeep.rescuer import sweep

Eventually = Callable[..., None]
REPLY = Answered(Reply(content="yes", finish_reason="stop", usage=Usage()))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody")


def with_settings(system: Any, section: str, **changes: Any) -> Any:
    """The system's settings with one section changed."""
    changed = getattr(system.settings, section).model_copy(update=changes)
    return system.settings.model_copy(update={section: changed})


def new_leases(system: Any, **changes: Any) -> Leases:
    """The leases of a worker of its own; nothing renews them."""
    settings = with_settings(system, "worker", **{"lease_s": 60.0, **changes}).worker
    model = system.settings.engine.model_name
    return Leases(system.database, settings, model=model, engine="echo")


def new_settler(system: Any, max_attempts: int = 5) -> Settler:
    return Settler(system.database, max_attempts=max_attempts, give_up=Event())


def state(system: Any, turn: AcceptedTurn) -> TurnState:
    return TurnState(system.read(turn).state)


def chunks(system: Any) -> list[Any]:
    return [row.text for row in system.database.run("SELECT text FROM chunks ORDER BY position")]


def outcomes(system: Any, turn: AcceptedTurn) -> list[Any]:
    rows = system.database.run(
        "SELECT outcome FROM attempts WHERE turn_id = %s ORDER BY number", (turn.turn_id,)
    )
    return [row.outcome for row in rows]


def pair(system: Any, text: str = "hello", **fields: Any) -> list[AcceptedTurn]:
    """Two turns of one conversation."""
    conversation = new_id()
    return accept_many(
        system.database,
        [
            system.request(text, conversation_id=conversation, **fields),
            system.request("next", conversation_id=conversation),
        ],
    )


def rescue(system: Any) -> None:
    """As if the lease of every running turn had run out."""
    system.database.run(
        "UPDATE turns SET leased_until = clock_timestamp() - interval '1 s' WHERE state = 'running'"
    )
    sweep(system.database, system.settings.worker)


def make_due(system: Any) -> None:
    system.database.run("UPDATE outbox SET due_at = clock_timestamp()")


# --- Claim


def test_one_of_eight_workers_wins_a_turn(system: Any) -> None:
    turns = [accept(system.database, system.request(f"turn {n}")) for n in range(20)]
    workers = [new_leases(system) for _ in range(8)]
    start = threading.Barrier(8)

    def claim_all(leases: Leases) -> list[UUID]:
        start.wait()
        return [turn.turn_id for turn in turns if leases.claim(turn.turn_id) is not None]

    with ThreadPoolExecutor(8) as pool:
        won = [turn_id for turn_ids in pool.map(claim_all, workers) for turn_id in turn_ids]
    assert sorted(won) == sorted(turn.turn_id for turn in turns)
    assert system.count("state = 'running' AND attempt = 1") == 20


def test_one_of_many_threads_of_a_worker_wins_a_turn(system: Any) -> None:
    leases = new_leases(system)
    for n in range(20):
        turn = accept(system.database, system.request(f"turn {n}"))
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(leases.claim, [turn.turn_id] * 8))
        assert sum(claim is not None for claim in claims) == 1


def test_a_waiting_turn_an_ended_turn_and_an_unknown_one_cannot_be_claimed(system: Any) -> None:
    leases = new_leases(system)
    first, second = pair(system)
    assert leases.claim(second.turn_id) is None
    assert leases.claim(new_id()) is None
    claim = claimed(leases, first)
    assert leases.claim(first.turn_id) is None
    assert new_settler(system).settle(claim, REPLY)
    assert leases.claim(first.turn_id) is None
    assert claimed(leases, second).attempt == 1


def test_a_turn_of_a_lane_that_the_worker_does_not_serve_is_left_alone(system: Any) -> None:
    turn = accept(system.database, system.request("hello", lane=Lane.BATCH))
    assert new_leases(system, lanes=(Lane.INTERACTIVE,)).claim(turn.turn_id) is None
    assert claimed(new_leases(system, lanes=(Lane.BATCH,)), turn).lane is Lane.BATCH


def test_a_claim_carries_what_the_turn_and_its_bot_say(system: Any) -> None:
    model = system.settings.engine.model_name
    save_bot(system.database, system.tenant_id, model, model, "Be kind.", GenerationParams(top_p=1))
    params = GenerationParams(max_tokens=5, seed=3, stop=("x",))
    turn = accept(system.database, system.request("hello", params=params, timeout_s=100))
    claim = claimed(new_leases(system), turn)
    assert claim.instructions == "Be kind."
    assert [message.content for message in claim.messages] == ["hello"]
    assert (claim.params.max_tokens, claim.params.seed, claim.params.stop) == (5, 3, ("x",))
    assert 90 < (claim.deadline_s or 0) <= 100
    assert (claim.attempt, claim.seq, claim.failures, claim.kept_text) == (1, 1, 0, "")


def test_a_turn_that_a_worker_cannot_read_is_tried_again_and_harms_no_other(
    system: Any, worker: Worker
) -> None:
    """An API of the next release accepted it, with a parameter that this one does not know."""
    turns = [accept(system.database, system.request(f"turn {n}")) for n in range(3)]
    system.database.run(
        """UPDATE turns SET params = params || '{"novel": 1}' WHERE id = %s""", (turns[1].turn_id,)
    )
    claims = worker.leases._claim([turn.turn_id for turn in turns])
    assert [claim.turn_id for claim in claims if claim] == [turn.turn_id for turn in turns]
    rescue(system)
    for turn in turns:
        answer_with(worker, turn)
    assert [state(system, turn) for turn in turns] == ["completed", "queued", "completed"]
    (attempt,) = system.database.run("SELECT error FROM attempts WHERE outcome = 'snoozed'")
    assert "novel" in attempt.error


def test_a_snoozed_turn_is_not_claimed_before_it_is_due(system: Any) -> None:
    leases, settler = new_leases(system), new_settler(system)
    turn = accept(system.database, system.request("hello"))
    assert settler.settle(claimed(leases, turn), Snoozed(30.0, "busy"))
    assert state(system, turn) is TurnState.QUEUED
    assert leases.claim(turn.turn_id) is None
    make_due(system)
    claim = claimed(leases, turn)
    assert (claim.attempt, claim.failures) == (2, 1)


# --- Fencing


@pytest.mark.parametrize("outcome", [REPLY, Failed("x", "y"), Snoozed(0.0, "z")])
def test_a_late_attempt_cannot_settle_what_another_one_runs(system: Any, outcome: Outcome) -> None:
    settler = new_settler(system)
    first, second = pair(system)
    late = claimed(new_leases(system), first)
    rescue(system)
    assert not settler.settle(late, outcome), "queued again"
    current = claimed(new_leases(system), first)
    assert current.attempt == 2
    assert not settler.settle(late, outcome), "running elsewhere"
    assert state(system, first) is TurnState.RUNNING
    assert settler.settle(current, REPLY)
    assert not settler.settle(late, outcome), "answered"
    assert not settler.settle(current, outcome), "a second time"
    assert system.read(first).reply.content == "yes"
    assert outcomes(system, first) == ["crashed", "answered"]
    assert state(system, second) is TurnState.QUEUED


def test_the_same_attempt_number_of_another_worker_is_fenced_too(system: Any) -> None:
    """A claim that Postgres forgot in a crash: both attempts have the number 1."""
    turn = accept(system.database, system.request("hello"))
    forgotten = claimed(new_leases(system), turn)
    system.database.run("UPDATE turns SET state = 'queued', attempt = 0, worker_id = NULL")
    system.database.run("DELETE FROM attempts")
    system.database.run(
        "INSERT INTO outbox (turn_id, model, lane) SELECT id, model, lane FROM turns"
    )
    current = claimed(new_leases(system), turn)
    assert current.attempt == forgotten.attempt
    settler = new_settler(system)
    late = Answered(Reply(content="late", finish_reason="stop", usage=Usage()))
    assert not settler.settle(forgotten, late)
    assert not settler.settle(forgotten, Snoozed(0.0, "late"))
    assert settler.settle(current, REPLY)
    assert system.read(turn).reply.content == "yes"


def test_a_reply_is_settled_though_rows_beside_its_turn_were_deleted(
    system: Any, worker: Worker
) -> None:
    """By a hand, while the turn ran: its conversation, bot and batch, and the attempt itself."""
    turn = accept(system.database, system.request("hello", batch_id=new_id(), batch_row=1))

    def delete() -> None:
        for table in ("attempts", "conversations", "bots", "batches"):
            system.database.run(f"DELETE FROM {table}")

    answer_with(worker, turn, [Chunk("yes", 1), delete, Chunk("", finish_reason="stop")])
    (reply,) = system.database.run("SELECT content FROM replies")
    assert reply.content == "yes"
    assert system.count("state = 'completed'") == 1


def test_a_cancelled_turn_takes_no_reply(system: Any) -> None:
    first, second = pair(system)
    claim = claimed(new_leases(system), first)
    cancel(system.database, system.tenant_id, first.turn_id)
    assert not new_settler(system).settle(claim, REPLY)
    assert system.read(first).reply is None
    assert state(system, second) is TurnState.QUEUED


def test_a_late_attempt_cannot_add_to_the_text_that_readers_see(system: Any) -> None:
    stream = Stream(system.database, 0.01)
    turn = accept(system.database, system.request("hello"))
    late = stream.open(claimed(new_leases(system), turn))
    stream.add(late, "one ", 1)
    stream.flush([late])
    rescue(system)
    stream.add(late, "late ", 1)
    stream.flush([late])
    assert chunks(system) == ["one "]
    claim = claimed(new_leases(system), turn)
    assert (claim.kept_text, claim.kept_tokens, claim.next_position) == ("one ", 1, 1)
    stream.add(late, "later ", 1)
    stream.flush([late])
    current = stream.open(claim)
    stream.add(current, "two ", 1)
    stream.flush([current])
    assert chunks(system) == ["one ", "two "]


def test_text_wakes_the_stream_that_slept_and_its_close_does_too(
    system: Any, eventually: Eventually
) -> None:
    stream = Stream(system.database, 0.05)
    stream.start()
    opened = stream.open(claimed(new_leases(system), accept(system.database, system.request("hi"))))
    for text in ("one ", "two "):
        eventually(lambda: math.isinf(stream._wakes_at))  # it sleeps until it is told
        stream.add(opened, text, 1)
        eventually(lambda text=text: chunks(system)[-1:] == [text])
    stream.close()
    assert not stream._thread.is_alive()


def test_the_chunks_of_turns_that_began_at_different_times_are_soon_kept_together(
    system: Any, eventually: Eventually
) -> None:
    stream = Stream(system.database, 0.1)
    accept_many(system.database, [system.request(f"turn {n}") for n in range(3)])
    ids = [row.id for row in system.database.run("SELECT id FROM turns")]
    streams = [stream.open(claim) for claim in new_leases(system)._claim(ids) if claim]
    for opened in streams:
        stream.add(opened, "first ", 1)
        stream.flush([opened])

    def sizes() -> list[int]:
        """Of the transactions."""
        for opened in streams:
            stream.add(opened, "next ", 1)
        stream.flush()
        rows = system.database.run("SELECT count(*) AS size FROM chunks GROUP BY xmin::text")
        return [row.size for row in rows]

    eventually(lambda: sizes().count(3) >= 4)
    # The first chunks, and what a tick between two of them may have parted.
    assert len([size for size in sizes() if size < 3]) <= 5


def test_a_chunk_that_is_written_while_its_turn_settles_does_not_stay_behind(
    system: Any, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("hello"))
    claim = claimed(new_leases(system), turn)
    with (
        psycopg.connect(system.settings.database.url.get_secret_value()) as writing,
        ThreadPoolExecutor(1) as pool,
    ):
        writing.execute("SELECT 1 FROM turns FOR SHARE")
        writing.execute(
            "INSERT INTO chunks (turn_id, position, text, token_count) VALUES (%s, 0, 'x', 1)",
            (turn.turn_id,),
        )
        settling = pool.submit(new_settler(system).settle, claim, REPLY)
        eventually(lambda: system.database.run(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        ))  # fmt: skip
        writing.commit()
        assert settling.result(20)
    assert chunks(system) == []


def test_renewing_keeping_and_settling_many_turns_never_lock_each_other_out(system: Any) -> None:
    """Each locks several turns at a time; in any order but one they would deadlock."""
    accept_many(system.database, [system.request(f"turn {n}") for n in range(48)])
    ids = [row.id for row in system.database.run("SELECT id FROM turns")]
    leases = new_leases(system)
    # One that has given up tells of a deadlock instead of trying again.
    settler = Settler(system.database, max_attempts=5, give_up=Event())
    settler._give_up.set()
    claims = [claim for claim in leases._claim(ids) if claim is not None]
    stream = Stream(system.database, 0.01)
    done, deadlocks = Event(), []

    def renew() -> None:
        with system.database.connect() as connection:
            while not done.is_set():
                try:
                    leases.heartbeat._renew(connection)
                except psycopg.errors.DeadlockDetected as error:
                    deadlocks.append(error)

    def keep() -> None:
        streams = [stream.open(claim) for claim in claims]
        while not done.is_set():
            for opened in streams:
                stream.add(opened, "word ", 1)
            try:
                stream.flush(random.sample(streams, len(streams)))
            except DatabaseUnavailable as error:
                deadlocks.append(error)

    with ExitStack() as stack:
        for claim in random.sample(claims, len(claims)):
            stack.enter_context(leases.hold(claim))
        threads = [threading.Thread(target=work) for work in (renew, keep)]
        for thread in threads:
            thread.start()
        stack.callback(done.set)
        with ThreadPoolExecutor(16) as pool:
            for _ in range(30):
                some = random.sample(claims, 16)
                settled = pool.map(lambda claim: settler.settle(claim, Failed("x", "y")), some)
                assert all(settled)
                system.database.run("""
                    WITH ended AS (SELECT id FROM turns WHERE state = 'failed'
                                   ORDER BY id FOR NO KEY UPDATE)
                    UPDATE turns SET state = 'running' FROM ended WHERE turns.id = ended.id
                """)
        done.set()
        for thread in threads:
            thread.join(20)
    assert deadlocks == []


# --- Settle


def test_a_commit_whose_answer_was_lost_is_found_again(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair(system)
    claim = claimed(new_leases(system), first)
    fail_once(monkeypatch, after=True)
    assert new_settler(system).settle(claim, REPLY)
    assert state(system, first) is TurnState.COMPLETED
    assert state(system, second) is TurnState.QUEUED
    assert outcomes(system, first) == ["answered"]


@pytest.mark.parametrize("end", ["cancel", "interrupt", "hand off"])
def test_an_attempt_that_somebody_ended_while_postgres_was_away_was_fenced(
    system: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    turn = accept(system.database, system.request("hello"))
    claim = claimed(new_leases(system), turn)
    system.database.run(
        "INSERT INTO chunks (turn_id, position, text, token_count) VALUES (%s, 0, 'no', 1)",
        (turn.turn_id,),
    )
    match end:
        case "cancel":
            assert cancel(system.database, system.tenant_id, turn.turn_id)
        case "interrupt":
            with system.database.cursor() as cursor:
                lock_conversations(cursor, [turn.conversation_id])
                end_open_turns(cursor, turn.conversation_id, keeps_text=True)
        case "hand off":
            hand_off(system.database, system.tenant_id, turn.conversation_id, "A test.")
    fail_once(monkeypatch, after=False)
    assert not new_settler(system).settle(claim, REPLY)
    reply = system.read(turn).reply
    assert (reply.content if reply else None) == ("no" if end == "interrupt" else None)


def test_a_reply_waits_for_postgres_to_come_back(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = accept(system.database, system.request("hello"))
    claim = claimed(new_leases(system), turn)
    fail_once(monkeypatch, after=False)
    assert new_settler(system).settle(claim, REPLY)
    assert system.read(turn).reply.content == "yes"


def test_a_reply_waits_while_postgres_only_reads(system: Any, eventually: Eventually) -> None:
    """As after a failover, while connections still lead to the server that became a replica."""
    turn = accept(system.database, system.request("hello"))
    claim = claimed(new_leases(system), turn)
    settler = new_settler(system)
    set_read_only(system, "on")
    with capture_logs() as lines, ThreadPoolExecutor(1) as pool:
        settling = pool.submit(settler.settle, claim, REPLY)
        eventually(lambda: settling.done() or "read-only" in str(lines))
        set_read_only(system, "off")
        assert settling.result(20)
    assert system.read(turn).reply.content == "yes"


def set_read_only(system: Any, value: str) -> None:
    """For the sessions that begin from now on; the pool's begin anew."""
    url, _, name = system.settings.database.url.get_secret_value().rpartition("/")
    with psycopg.connect(f"{url}/turnmill", autocommit=True) as link:
        link.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
    if value == "on":
        system.database.close()


def test_a_worker_that_gives_up_leaves_its_turn_to_the_lease(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = accept(system.database, system.request("hello"))
    claim = claimed(new_leases(system), turn)
    fail_once(monkeypatch, after=False)
    settler = Settler(system.database, max_attempts=5, give_up=Event())
    settler._give_up.set()
    assert not settler.settle(claim, REPLY)
    assert state(system, turn) is TurnState.RUNNING
    rescue(system)
    assert state(system, turn) is TurnState.QUEUED


def fail_once(monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """The first settlement meets an outage, after its commit or before it."""
    end_turns, failures = settle_module.end_turns, [DatabaseUnavailable()]

    def unreliable(*arguments: Any) -> list[bool]:
        if after or not failures:
            ended = end_turns(*arguments)
        if failures:
            raise failures.pop()
        return ended

    monkeypatch.setattr(settle_module, "end_turns", unreliable)


def test_a_permanent_failure_tells_its_reason_and_the_conversation_goes_on(system: Any) -> None:
    first, second = pair(system)
    claim = claimed(new_leases(system), first)
    assert new_settler(system).settle(claim, Failed("content_filter", "No."))
    turn = system.read(first)
    assert (turn.state, turn.error_code, turn.error_message) == ("failed", "content_filter", "No.")
    assert (turn.reply, outcomes(system, first)) == (None, ["failed"])
    assert state(system, second) is TurnState.QUEUED


def test_a_turn_that_used_up_its_attempts_is_parked_and_the_conversation_goes_on(
    system: Any,
) -> None:
    first, second = pair(system)
    leases, settler = new_leases(system), new_settler(system, max_attempts=3)
    for _ in range(3):
        assert state(system, first) is TurnState.QUEUED
        assert settler.settle(claimed(leases, first), Snoozed(0.0, "overloaded"))
        make_due(system)
    turn = system.read(first)
    assert (turn.state, turn.error_code) == ("parked", "attempts_used_up")
    assert "overloaded" in (turn.error_message or "")
    assert outcomes(system, first) == ["snoozed"] * 3
    assert state(system, second) is TurnState.QUEUED


def test_a_turn_handed_back_often_is_not_parked_for_it(system: Any) -> None:
    turn = accept(system.database, system.request("hello"))
    leases, settler = new_leases(system), new_settler(system, max_attempts=2)
    for _ in range(4):
        assert settler.settle(claimed(leases, turn), Snoozed(0.0, "drain", counts=False))
    claim = claimed(leases, turn)
    assert (claim.attempt, claim.failures) == (5, 0)
    assert outcomes(system, turn) == ["handed_back"] * 4 + [None]


# --- A whole attempt


class Scripted:
    """An echo engine that does something else when it is told to."""

    def __init__(self, *script: Any) -> None:
        self._script = list(script)
        self.prompts: list[Prompt] = []
        self.params: list[GenerationParams] = []
        self.context_window = 8192
        self.capabilities = Capabilities(continues=True)

    def start(self) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Each word, and each value that a turn gives the chat template, is a token."""
        words = sum(len(message.content.split()) for message in prompt.messages)
        return words + len(prompt.template_kwargs)

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        self.prompts.append(prompt)
        self.params.append(params)
        for step in self._script.pop(0) if self._script else [Chunk("", finish_reason="stop")]:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, Chunk):
                yield step
            else:
                step()


@pytest.fixture
def worker(system: Any) -> Iterator[Worker]:
    with running_worker(with_settings(system, "worker", rescue_every_s=60.0)) as (worker, _):
        yield worker


def answer_with(worker: Worker, turn: AcceptedTurn, *script: Any) -> Scripted:
    engine = Scripted(*script)
    assert answer_turn(replace(worker, engine=engine), turn.turn_id)
    return engine


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineFailure("cannot"), TurnState.FAILED),
        (EngineUnavailable("busy"), TurnState.QUEUED),
        (MemoryError("none left"), TurnState.QUEUED),
        (SystemExit(3), TurnState.QUEUED),
        (ZeroDivisionError("a bug"), TurnState.QUEUED),
    ],
)
def test_whatever_an_engine_raises_becomes_an_outcome(
    system: Any,
    worker: Worker,
    error: BaseException,
    expected: TurnState,
    eventually: Eventually,
) -> None:
    first, second = pair(system)
    answer_with(worker, first, [Chunk("some ", 1), kept_by(system, eventually), error])
    assert state(system, first) is expected
    assert worker.leases.held_count == 0
    if expected is TurnState.FAILED:
        assert system.read(first).error_code == "engine_failure"
        assert state(system, second) is TurnState.QUEUED
    else:
        assert system.count("failures = 1") == 1
        make_due(system)
        answer_with(worker, first, [Chunk("text", 1), Chunk("", finish_reason="stop")])
        assert system.read(first).reply.content == "some text"


@pytest.mark.parametrize("kind", [EngineFailure, EngineUnavailable])
def test_a_server_s_own_words_are_for_the_log_and_not_for_the_tenant(
    system: Any, kind: type[TurnmillError]
) -> None:
    settings = with_settings(system, "worker", rescue_every_s=60.0, max_attempts=1)
    turn, _ = pair(system)
    words = "http://gpu7:8000: it answers 500 (CUDA error)"
    with capture_logs() as logs, running_worker(settings) as (worker, _):
        answer_with(worker, turn, [kind(words)])
    assert "gpu7" not in (system.read(turn).error_message or "")
    assert kind().message in (system.read(turn).error_message or "")
    told = [line["reason"] for line in logs if line["event"] == "attempt.failed"]
    assert told == [words]


def test_a_template_that_refuses_the_roles_is_the_caller_s_mistake(
    system: Any, worker: Worker
) -> None:
    turn, _ = pair(system)
    refusal = InvalidInput("The model's chat template refuses the messages: roles must alternate")
    answer_with(worker, turn, [refusal])
    failed = system.read(turn)
    assert (failed.state, failed.attempt) == (TurnState.FAILED, 1)
    problem = problem_of_turn(failed)
    assert (problem.status, problem.message) == (400, refusal.message)
    assert problem.body.error.type == "invalid_request_error"


def test_a_tenant_with_neighbours_has_a_namespace_in_the_engine_s_cache(
    system: Any, worker: Worker
) -> None:
    def namespace() -> str:
        turn = accept(system.database, system.request("x"))
        prompt = answer_with(worker, turn).prompts[0]
        return prompt.cache_namespace

    assert namespace() == ""
    name = f"neighbour-{new_id().hex}"
    create_tenant(system.database, name, system.settings)
    try:
        assert namespace() == namespace() == system.tenant_id.hex
    finally:
        for statement in (
            "DELETE FROM bots WHERE tenant_id = (SELECT id FROM tenants WHERE name = %s)",
            "DELETE FROM tenants WHERE name = %s",
        ):
            system.database.run(statement, (name,))


def kept_by(system: Any, eventually: Eventually) -> Callable[[], None]:
    """A step of a script: wait until text is kept, so that a reader may have seen it."""
    return lambda: eventually(lambda: chunks(system), 5)


def test_the_next_attempt_goes_on_where_the_text_that_was_kept_ends(
    system: Any, worker: Worker, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("x", params=GenerationParams(max_tokens=10)))
    text = [Chunk("one ", 1), Chunk("two ", 1)]
    answer_with(worker, turn, [*text, kept_by(system, eventually), EngineUnavailable("busy")])
    assert "".join(chunks(system)) == "one two "
    make_due(system)
    rest = [Chunk("three", 1), Chunk("", finish_reason="length", prompt_tokens=9)]
    engine = answer_with(worker, turn, rest)
    assert engine.prompts[0].prefix == "one two "
    assert engine.params[0].max_tokens == 8
    reply = system.read(turn).reply
    assert (reply.content, reply.finish_reason) == ("one two three", "length")
    # The engine got a longer prompt than the client sent: one word.
    assert (reply.usage.completion_tokens, reply.usage.prompt_tokens) == (3, 1)
    assert chunks(system) == []


def test_each_attempt_says_the_same_to_the_chat_template(system: Any, worker: Worker) -> None:
    asked = GenerationParams(template_kwargs={"enable_thinking": False, "effort": "low"})
    turn = accept(system.database, system.request("x", params=asked))
    given = []
    for _ in range(2):
        engine = answer_with(worker, turn, [EngineUnavailable("busy")])
        given.append(engine.prompts[0].template_kwargs)
        make_due(system)
    assert given == [asked.template_kwargs] * 2


def test_the_usage_of_a_continued_reply_counts_what_the_turn_gives_the_chat_template(
    system: Any, worker: Worker
) -> None:
    asked = GenerationParams(template_kwargs={"enable_thinking": False, "effort": "low"})
    turn = accept(system.database, system.request("x", params=asked))
    keep(system, worker.leases, turn, "one ")
    answer_with(worker, turn, [Chunk("two", 1), Chunk("", finish_reason="stop", prompt_tokens=9)])
    reply = system.read(turn).reply
    assert (reply.content, reply.usage.prompt_tokens) == ("one two", 3)


def test_a_reply_that_a_filter_cut_is_read_with_its_reason(system: Any, worker: Worker) -> None:
    turn = accept(system.database, system.request("x"))
    answer_with(worker, turn, [Chunk("some", 1), Chunk("", finish_reason="content_filter")])
    reply = system.read(turn).reply
    assert (reply.content, reply.finish_reason) == ("some", "content_filter")
    assert outcomes(system, turn) == ["answered"]


def keep(system: Any, leases: Leases, turn: AcceptedTurn, *pieces: str) -> None:
    """As if an attempt had shown these pieces, a token each, and died."""
    stream = Stream(system.database, 0.01)
    lost = stream.open(claimed(leases, turn))
    for piece in pieces:
        stream.add(lost, piece, 1)
        stream.flush([lost])
    rescue(system)


def test_a_reply_whose_tokens_are_used_up_at_the_cut_gets_no_more(
    system: Any, worker: Worker
) -> None:
    turn = accept(system.database, system.request("x", params=GenerationParams(max_tokens=2)))
    keep(system, worker.leases, turn, "one ", "two")
    engine = answer_with(worker, turn)
    assert engine.prompts == []
    reply = system.read(turn).reply
    assert (reply.content, reply.finish_reason) == ("one two", "length")
    assert (reply.usage.completion_tokens, reply.usage.prompt_tokens) == (2, 1)


def test_a_kept_text_that_fills_the_context_window_is_the_reply(
    system: Any, worker: Worker
) -> None:
    turn = accept(system.database, system.request("x"))
    keep(system, worker.leases, turn, "full")
    answer_with(worker, turn, [ContextOverflow("no room")])
    reply = system.read(turn).reply
    assert (reply.content, reply.finish_reason) == ("full", "length")


def test_an_engine_that_cannot_go_on_begins_again_behind_a_gap(
    system: Any, worker: Worker, eventually: Eventually
) -> None:
    turn = accept(system.database, system.request("x"))
    keep(system, worker.leases, turn, "one ", "two ")
    is_kept = lambda: eventually(lambda: "uno " in chunks(system), 5)  # noqa: E731
    engine = Scripted([Chunk("uno ", 1), is_kept, EngineUnavailable("busy")])
    engine.capabilities = Capabilities()
    assert answer_turn(replace(worker, engine=engine), turn.turn_id)
    assert engine.prompts[0].prefix == ""
    rows = system.database.run("SELECT position, text FROM chunks ORDER BY position")
    assert [tuple(row) for row in rows] == [(3, ""), (4, "uno ")]
    make_due(system)
    again = Scripted([Chunk("eins", 1), Chunk("", finish_reason="stop", prompt_tokens=5)])
    again.capabilities = Capabilities()
    assert answer_turn(replace(worker, engine=again), turn.turn_id)
    reply = system.read(turn).reply
    assert (reply.content, reply.usage.completion_tokens) == ("eins", 1)
    assert chunks(system) == []


def test_a_late_attempt_cannot_discard_what_readers_see(system: Any) -> None:
    stream = Stream(system.database, 0.01)
    turn = accept(system.database, system.request("hello"))
    late = stream.open(claimed(new_leases(system), turn))
    rescue(system)
    keep(system, new_leases(system), turn, "one ")
    assert not stream.restart(late)
    assert chunks(system) == ["one "]


def test_a_chunk_whose_commit_is_uncertain_is_written_again_as_it_was(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more text in it, it would be taken for kept, and the text would have a hole."""
    turn = accept(system.database, system.request("hello"))
    stream = Stream(system.database, 0.01)
    current = stream.open(claimed(new_leases(system), turn))
    run = system.database.run

    def lose_the_answer(*arguments: Any) -> Any:
        monkeypatch.undo()
        run(*arguments)
        raise DatabaseUnavailable

    monkeypatch.setattr(system.database, "run", lose_the_answer)
    stream.add(current, "one ", 1)
    with pytest.raises(DatabaseUnavailable):
        stream.flush([current])
    stream.add(current, "two ", 1)
    stream.flush([current])
    stream.add(current, "three", 1)
    stream.flush([current])
    assert "".join(chunks(system)) == "one two three"


def test_an_engine_that_stops_without_a_word_is_asked_again(system: Any, worker: Worker) -> None:
    turn = accept(system.database, system.request("x"))
    answer_with(worker, turn, [Chunk("half ", 1)])
    assert state(system, turn) is TurnState.QUEUED
    assert system.count("failures = 1") == 1


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        (["a\0b ", "c\0", "\0"], "a\ufffdb c\ufffd\ufffd"),
        (["cut \ud83d", " word", ""], "cut \ufffd word"),
        (["smile \ud83d", "\ude00", ""], "smile \U0001f600"),
        (["cut ", "off", "\ud83d"], "cut off\ufffd"),
    ],
)
def test_a_character_that_postgres_cannot_keep_harms_neither_its_turn_nor_the_others(
    system: Any, worker: Worker, eventually: Eventually, pieces: list[str], content: str
) -> None:
    odd, even = [accept(system.database, system.request(text)) for text in ("odd", "even")]
    is_kept = kept_by(system, eventually)
    first, second, last = pieces
    answer_with(
        worker,
        odd,
        [Chunk(first, 1), is_kept, Chunk(second, 1), Chunk(last, 1, finish_reason="stop")],
    )
    assert system.read(odd).reply.content == content
    answer_with(worker, even, [Chunk("fine", 1), is_kept, Chunk("", finish_reason="stop")])
    assert system.read(even).reply.content == "fine"


#: A number of tokens that no column takes, as a server may report it.
UNSTORABLE_COUNT = 2**40


def test_a_chunk_that_cannot_be_stored_fails_its_own_turn_at_once(
    system: Any, worker: Worker, eventually: Eventually
) -> None:
    """It shares its flushes with others; what they say is kept all the same."""
    turns = [accept(system.database, system.request(f"turn {n}")) for n in range(5)]
    keeps = "SELECT count(DISTINCT turn_id) AS n FROM chunks WHERE text LIKE '%secret%'"
    start = threading.Barrier(len(turns))

    def others_are_kept() -> None:
        eventually(lambda: system.database.run(keeps)[0].n == len(turns) - 1, 5)

    def answer(number: int) -> None:
        count = UNSTORABLE_COUNT if number == 2 else 1
        told = [start.wait, Chunk("secret ", count), others_are_kept, start.wait, Chunk("word", 1)]
        answer_with(worker, turns[number], [*told, Chunk("", finish_reason="stop")])

    with capture_logs() as logs, ThreadPoolExecutor(len(turns)) as pool:
        list(pool.map(answer, range(len(turns))))
    expected = ["completed", "completed", "failed", "completed", "completed"]
    assert [state(system, turn) for turn in turns] == expected
    assert system.read(turns[2]).error_code == "engine_failure"
    assert system.count("attempt > 1 OR crashes > 0") == 0
    assert [log["turn_id"] for log in logs if "unstorable" in log["event"]] == [
        turns[2].turn_id.hex
    ]
    assert "secret" not in str(logs)


def test_a_reply_that_cannot_be_stored_fails_its_own_turn_at_once(
    system: Any, worker: Worker
) -> None:
    turns = [accept(system.database, system.request(f"turn {n}")) for n in range(5)]
    start = threading.Barrier(len(turns))

    def answer(number: int) -> None:
        count = UNSTORABLE_COUNT if number == 2 else 1
        answer_with(worker, turns[number], [start.wait, Chunk("secret", count, "stop")])

    with capture_logs() as logs, ThreadPoolExecutor(len(turns)) as pool:
        list(pool.map(answer, range(len(turns))))
    assert [turn for turn in turns if state(system, turn) is not TurnState.COMPLETED] == [turns[2]]
    assert system.read(turns[2]).error_code == "engine_failure"
    assert worker.leases.held_count == 0
    assert "secret" not in str(logs)


def test_a_turn_that_cannot_be_settled_is_tried_again_and_counts_no_crash(
    system: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = accept(system.database, system.request("hello"))

    def fail(*_: Any) -> list[bool]:
        raise psycopg.errors.CheckViolation("no partition of relation")

    with monkeypatch.context() as patch:
        patch.setattr(settle_module, "end_turns", fail)
        answer_with(worker, turn)
    assert state(system, turn) is TurnState.QUEUED
    assert system.count("failures = 1 AND crashes = 0") == 1


def test_an_error_message_with_such_a_character_still_ends_its_turn(
    system: Any, worker: Worker
) -> None:
    failed, snoozed = [accept(system.database, system.request(text)) for text in ("a", "b")]
    answer_with(worker, failed, [EngineFailure("bad byte \0")])
    assert state(system, failed) is TurnState.FAILED
    answer_with(worker, snoozed, [EngineUnavailable("bad byte \0")])
    assert state(system, snoozed) is TurnState.QUEUED


def test_a_turn_whose_deadline_has_passed_is_not_generated(
    system: Any, worker: Worker, eventually: Eventually
) -> None:
    first, second = pair(system, timeout_s=0.01)
    eventually(lambda: system.count("deadline_at < clock_timestamp()") == 1)
    engine = answer_with(worker, first)
    assert engine.prompts == []
    assert system.read(first).error_code == "deadline_exceeded"
    assert state(system, second) is TurnState.QUEUED


@pytest.mark.parametrize("limit", ["deadline of the turn", "longest attempt"])
def test_a_turn_that_takes_too_long_is_stopped(
    system: Any, limit: str, eventually: Eventually
) -> None:
    by_turn = limit == "deadline of the turn"
    settings = with_settings(
        system, "worker", turn_timeout_s=300.0 if by_turn else 2.0, max_attempts=1
    )
    first, second = pair(system, "[[wait=60]]", timeout_s=0.3 if by_turn else None)
    with InlineWorker(settings):
        system.wait_until_settled(10)
    expected = ("failed", "deadline_exceeded") if by_turn else ("parked", "attempts_used_up")
    assert (state(system, first), system.read(first).error_code) == expected
    assert state(system, second) == "completed"


def test_a_reply_that_takes_longer_than_an_attempt_is_continued_by_the_next(system: Any) -> None:
    slow = system.settings.model_copy(
        update={
            "engine": system.settings.engine.model_copy(update={"echo_token_s": 0.1}),
            "worker": system.settings.worker.model_copy(
                update={"turn_timeout_s": 1.0, "max_attempts": 1}
            ),
        }
    )
    turn = accept(system.database, system.request("[[tokens=40]]"))
    with InlineWorker(slow):
        system.wait_until_settled(60)
    assert system.read(turn).reply.content == " ".join(f"w{n}" for n in range(1, 41))
    assert system.count("failures = 0 AND crashes = 0 AND attempt > 1") == 1


def test_a_turn_handed_back_at_a_drain_goes_on_elsewhere_without_counting(
    system: Any, eventually: Eventually
) -> None:
    settings = with_settings(system, "engine", echo_token_s=0.02)
    turn = accept(system.database, system.request("[[tokens=40]]"))
    with InlineWorker(settings) as inline:
        eventually(lambda: chunks(system))
        inline.worker.leases.stop_all(AbortReason.DRAIN)
        eventually(lambda: system.count("attempt = 2") == 1)
        seen = chunks(system)[0]
        system.wait_until_settled()
    assert seen.startswith("w1")
    assert system.read(turn).reply.content == " ".join(f"w{n}" for n in range(1, 41))
    assert system.read(turn).reply.usage.completion_tokens == 40
    assert system.count("failures = 0 AND crashes = 0") == 1
    assert outcomes(system, turn) == ["handed_back", "answered"]


def test_a_worker_survives_running_out_of_memory_and_tries_again(system: Any) -> None:
    settings = with_settings(system, "worker", max_attempts=2, concurrency=1)
    first, second = pair(system, "[[memory]]")
    with InlineWorker(settings):
        system.wait_until_settled(20)
    assert (state(system, first), state(system, second)) == ("parked", "completed")
    assert outcomes(system, first) == ["snoozed", "snoozed"]
    assert "MemoryError" in system.read(first).error_message


def test_a_lost_lease_stops_the_engine(system: Any, eventually: Eventually) -> None:
    """Nobody says a word: the worker finds out when it renews."""
    turn = accept(system.database, system.request("[[wait=60]]"))
    with InlineWorker(system.settings) as inline:
        eventually(lambda: inline.worker.leases.held_count == 1)
        system.database.run("UPDATE turns SET state = 'cancelled', settled_at = clock_timestamp()")
        eventually(lambda: inline.worker.leases.held_count == 0, 10)
    assert system.read(turn).reply is None


def test_an_attempt_that_the_same_worker_took_over_from_itself_stops(system: Any) -> None:
    leases = new_leases(system)
    turn = accept(system.database, system.request("hello"))
    with leases.hold(claimed(leases, turn)) as late:
        rescue(system)
        with leases.hold(claimed(leases, turn)) as current:
            assert (late.abort.is_set(), late.reason) == (True, AbortReason.LOST)
            assert not current.abort.is_set()
            assert leases.held_count == 2, "the late one still has its thread"
    assert leases.held_count == 0


def test_a_stray_notification_does_not_stop_the_heartbeat(
    system: Any, eventually: Eventually
) -> None:
    with InlineWorker(system.settings):
        system.database.run("SELECT pg_notify('turnmill_abort', 'not an id')")
        before = seen_at(system)
        eventually(lambda: seen_at(system) > before, 5)
        before = seen_at(system)
        eventually(lambda: seen_at(system) > before, 5)


# --- History


def converse(system: Any, texts: Sequence[str], **engine: Any) -> list[AcceptedTurn]:
    """A conversation that is answered to its end."""
    conversation = new_id()
    accepted = accept_many(
        system.database,
        [system.request(text, conversation_id=conversation) for text in texts],
    )
    with InlineWorker(with_settings(system, "engine", **engine)):
        system.wait_until_settled()
    return accepted


def prompt_of(system: Any, worker: Worker, last: str, **engine: Any) -> list[tuple[Role, str]]:
    """What the engine is given for one more turn of the only conversation."""
    conversation = system.database.run("SELECT id FROM conversations")[0].id
    turn = accept(system.database, system.request(last, conversation_id=conversation))
    scripted = Scripted([Chunk("yes", finish_reason="stop")])
    scripted.context_window = engine.get("context_window", 8192)
    assert answer_turn(replace(worker, engine=scripted), turn.turn_id)
    return [(message.role, message.content) for message in scripted.prompts[0].messages]


def test_a_prompt_holds_the_whole_conversation_in_order(system: Any, worker: Worker) -> None:
    converse(system, ["one", "two"])
    assert prompt_of(system, worker, "three") == [
        (Role.USER, "one"),
        (Role.ASSISTANT, "one"),
        (Role.USER, "two"),
        (Role.ASSISTANT, "two"),
        (Role.USER, "three"),
    ]


def test_turns_that_were_not_answered_are_not_part_of_what_was_said(
    system: Any, worker: Worker
) -> None:
    converse(system, ["one", "[[fail]] two", "three"])
    assert [text for _, text in prompt_of(system, worker, "four")] == [
        "one", "one", "three", "three", "four",
    ]  # fmt: skip


def test_a_long_conversation_loses_whole_turns_oldest_first(system: Any, worker: Worker) -> None:
    model = system.settings.engine.model_name
    params = GenerationParams(max_tokens=8)
    save_bot(system.database, system.tenant_id, model, model, "Be kind always.", params)
    converse(system, ["a a a", "b b b", "c c c"])
    # 3 words of instructions, 6 for each past turn, 3 for this one, 8 for the reply.
    for context_window, expected in [
        (32, ["a a a", "a a a", "b b b", "b b b", "c c c", "c c c"]),
        (31, ["b b b", "b b b", "c c c", "c c c"]),
        (26, ["b b b", "b b b", "c c c", "c c c"]),
        (25, ["c c c", "c c c"]),
        (20, ["c c c", "c c c"]),
        (19, []),
        (12, []),
    ]:
        prompt = prompt_of(system, worker, "d d d", context_window=context_window)
        assert [text for _, text in prompt] == ["Be kind always.", *expected, "d d d"]
        system.database.run("DELETE FROM replies USING turns WHERE id = turn_id AND seq > 3")


def test_the_past_that_is_looked_at_begins_with_the_same_turn_for_a_while(
    system: Any, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_module, "HISTORY_LIMIT", 6)
    monkeypatch.setattr(prompt_module, "HISTORY_STEP", 4)
    converse(system, [f"turn {number}" for number in range(1, 13)])
    firsts = [prompt_of(system, worker, f"turn {number}")[0][1] for number in range(13, 21)]
    assert firsts == [f"turn {number}" for number in (5, 5, 9, 9, 9, 9, 13, 13)]


def test_a_prompt_that_cannot_fit_fails_its_turn_and_not_the_next(system: Any) -> None:
    long = " ".join(["word"] * 40)
    accepted = converse(system, ["short", long, "short again"], context_window=20)
    assert [state(system, turn) for turn in accepted] == ["completed", "failed", "completed"]
    assert system.read(accepted[1]).error_code == "context_length_exceeded"
