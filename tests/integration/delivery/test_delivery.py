"""The delivery protocol on real brokers, with real processes that are killed and paused.

Every test ends in the same check: each accepted turn has exactly one reply, written by its
last attempt, in order within its conversation.
"""

import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID

from turnmill.producer.accept import accept, accept_many
from turnmill.producer.relay.publisher import Publisher
from turnmill.producer.turns import read_conversation, read_turn
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.fleet.deployment import DEPLOYMENT_ID
from turnmill.schemas.turns import AcceptedTurn, Lane

HINTS = f"""
SELECT turn_id, lane, model, NULL AS own_worker_id, {DEPLOYMENT_ID} AS deployment FROM outbox
"""
Eventually = Callable[..., None]


def accept_conversations(system: Any, count: int, length: int, text: str) -> list[AcceptedTurn]:
    conversations = [new_id() for _ in range(count)]
    return accept_many(
        system.database,
        [
            system.request(f"{text} turn {seq}", conversation_id=conversation, lane=Lane.BATCH)
            for seq in range(1, length + 1)
            for conversation in conversations
        ],
    )


def test_conversations_are_answered_in_order_and_in_parallel(system: Any) -> None:
    system.start("relay")
    system.start_worker()
    accepted = accept_conversations(system, count=20, length=4, text="hello")
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)
    turns = read_conversation(system.database, system.tenant_id, accepted[0].conversation_id)
    assert [turn.reply.content for turn in turns if turn.reply] == [
        f"hello turn {seq}" for seq in range(1, 5)
    ]
    # One more word of prompt for each word of history: the echo engine counts what it gets.
    assert [turn.reply.usage.prompt_tokens for turn in turns if turn.reply] == [3, 9, 15, 21]


def test_turns_of_a_killed_worker_are_answered_by_another(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    doomed = system.start_worker()
    accepted = accept_conversations(system, count=12, length=2, text="[[tokens=40]] [[wait=0.5]]")
    eventually(lambda: system.count("state = 'running'") >= 4)
    doomed.kill()
    system.start_worker()
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("crashes > 0") >= 4


def test_a_killed_workers_reader_never_sees_the_text_change(
    system: Any, eventually: Eventually
) -> None:
    slow = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.5"}
    system.start("relay")
    doomed = system.start_worker(**slow)
    turn = accept(system.database, system.request("[[tokens=60]]"))
    eventually(lambda: seen_text(system, turn.turn_id) != "")
    doomed.kill()
    seen = seen_text(system, turn.turn_id)
    system.start_worker()
    system.wait_until_settled()
    reply = read_turn(system.database, system.tenant_id, turn.turn_id).reply
    assert reply is not None
    assert reply.content == " ".join(f"w{n}" for n in range(1, 61))
    assert reply.content.startswith(seen)
    assert reply.usage.completion_tokens == 60
    system.assert_answered_once_and_in_order([turn])


def seen_text(system: Any, turn_id: UUID) -> str:
    rows = system.database.run(
        "SELECT string_agg(text, '' ORDER BY position) AS text FROM chunks WHERE turn_id = %s",
        (turn_id,),
    )
    return rows[0].text or ""


def test_a_hint_delivered_twice_is_answered_once(system: Any) -> None:
    accepted = accept_conversations(system, count=10, length=2, text="[[wait=0.2]] twice")
    publisher = Publisher(system.settings)
    hints = system.database.run(HINTS)
    for _ in range(3):
        publisher.publish(hints)
    publisher.close()
    system.start_worker()
    system.start_worker()
    system.start("relay")
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("attempt > 1") == 0


def test_a_worker_paused_past_its_lease_cannot_overwrite(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    paused = system.start_worker()
    accepted = accept_conversations(system, count=6, length=2, text="[[wait=3]] paused")
    eventually(lambda: system.count("state = 'running'") >= 4)
    paused.send(signal.SIGSTOP)
    system.start_worker()
    system.wait_until_settled()
    before = system.database.run("SELECT * FROM replies ORDER BY turn_id")
    paused.send(signal.SIGCONT)
    eventually(lambda: paused.says("turn.fenced"))
    assert system.database.run("SELECT * FROM replies ORDER BY turn_id") == before
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("attempt > 1") >= 4


def test_a_stopping_worker_hands_its_turns_back(system: Any, eventually: Eventually) -> None:
    system.start("relay")
    stopping = system.start_worker(TURNMILL_WORKER__DRAIN_S="0.5")
    accepted = accept_conversations(system, count=4, length=1, text="[[tokens=5]] [[wait=3]]")
    eventually(lambda: system.count("state = 'running'") == 4)
    stopping.send(signal.SIGTERM)
    assert stopping.wait(timeout_s=10) == 0
    assert system.count("state = 'queued'") == 4
    system.start_worker()
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("failures > 0 OR crashes > 0") == 0


def test_a_stopping_worker_finishes_what_it_can(system: Any, eventually: Eventually) -> None:
    system.start("relay")
    stopping = system.start_worker()
    accepted = accept_conversations(system, count=4, length=1, text="[[wait=3]] finish me")
    eventually(lambda: system.count("state = 'running'") == 4)
    stopping.send(signal.SIGTERM)
    assert stopping.wait(timeout_s=10) == 0
    system.assert_answered_once_and_in_order(accepted)
    assert system.count("attempt > 1") == 0


def test_lost_hints_are_published_again(system: Any) -> None:
    accepted = accept_conversations(system, count=8, length=1, text="lost")
    # As if a relay had marked the rows and died, or the broker had been wiped.
    system.database.run("UPDATE outbox SET published_at = clock_timestamp() - interval '1 minute'")
    system.start("relay")
    system.start_worker()
    system.wait_until_settled()
    system.assert_answered_once_and_in_order(accepted)


def test_a_backlog_leaves_interactive_turns_their_threads(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    system.start_worker("--concurrency", "2")
    accept_conversations(system, count=6, length=1, text="[[wait=60]] backlog")
    running = "state = 'running' AND lane = 'batch'"
    eventually(lambda: system.count(running) == 2)
    for user in range(4):
        accept(system.database, system.request(f"user {user}"))
    eventually(lambda: system.count("state = 'completed' AND lane = 'interactive'") == 4)
    assert system.count(running) == 2
