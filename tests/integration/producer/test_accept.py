"""Accept and cancel: what is accepted is a promise, kept or withdrawn, and never half.

Against a real Postgres; no broker and, unless a test says so, no worker.
"""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.invariants import assert_invariants
from turnmill.producer.accept import accept, accept_many
from turnmill.producer.cancel import cancel
from turnmill.producer.tenants import list_bots, save_bot
from turnmill.producer.turns import read_conversation, read_turn
from turnmill.schemas.errors import Conflict, InvalidInput, NotFound, UnknownBot
from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import ABORT_CHANNEL, OUTBOX_CHANNEL
from turnmill.schemas.turns import AcceptedTurn, GenerationParams, Lane, TurnState
from turnmill.workers.testing import InlineWorker

Eventually = Callable[..., None]


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    """A database; whoever needs a worker runs it inline."""
    return make_system(database_url, "amqp://nobody")


def conversation_of(system: Any, length: int, text: str = "hello") -> list[AcceptedTurn]:
    conversation = new_id()
    return accept_many(
        system.database,
        [system.request(f"{text} {n}", conversation_id=conversation) for n in range(1, length + 1)],
    )


def states(system: Any, accepted: Sequence[AcceptedTurn]) -> list[str]:
    return [read_turn(system.database, system.tenant_id, turn.turn_id).state for turn in accepted]


# --- What is accepted


def test_a_turn_is_due_at_once_and_the_next_one_waits_for_it(system: Any) -> None:
    first, second, third = conversation_of(system, 3)
    assert [turn.seq for turn in (first, second, third)] == [1, 2, 3]
    assert states(system, [first, second, third]) == ["queued", "waiting", "waiting"]
    assert [row.turn_id for row in system.database.run("SELECT turn_id FROM outbox")] == [
        first.turn_id
    ]
    assert_invariants(system.database)


def test_what_was_asked_is_kept_word_for_word(system: Any) -> None:
    save_bot(
        system.database,
        system.tenant_id,
        "poet",
        "some-model",
        "Rhyme.",
        GenerationParams(temperature=0.5, max_tokens=99),
    )
    text = 'ünïcödé 🦜 "quoted" \\u0041 \t\r\n %s {} \x7f\u2028'
    turn = accept(
        system.database,
        system.request(text, params=GenerationParams(max_tokens=3)).model_copy(
            update={"bot": "poet"}
        ),
    )
    stored = read_turn(system.database, system.tenant_id, turn.turn_id)
    assert stored.messages[0].content == text
    assert (stored.bot, stored.model, stored.lane) == ("poet", "some-model", Lane.INTERACTIVE)
    params = system.database.run("SELECT params FROM turns")[0].params
    assert (params["temperature"], params["max_tokens"], params["top_p"]) == (0.5, 3, 1.0)


def test_the_relay_is_told_when_something_is_due_and_only_then(system: Any) -> None:
    with system.database.connect() as listener:
        listener.execute(f"LISTEN {OUTBOX_CHANNEL}")
        first = accept(system.database, system.request("first"))
        assert len(list(listener.notifies(timeout=20, stop_after=1))) == 1
        accept(system.database, system.request("2", conversation_id=first.conversation_id))
        accept(system.database, system.request("other"))
        system.database.run("SELECT pg_notify(%s, 'last')", (OUTBOX_CHANNEL,))
        # A notification of the waiting turn would have come before that of the other one.
        told = [each.payload for each in listener.notifies(timeout=20, stop_after=2)]
        assert told == ["", "last"]


def test_a_turn_of_a_model_that_no_bot_names_is_refused(system: Any) -> None:
    request = system.request("hello").model_copy(update={"bot": "nobody"})
    with pytest.raises(UnknownBot, match="nobody"):
        accept(system.database, request)
    assert system.count("true") == 0


def test_a_name_that_no_bot_can_have_is_an_unknown_bot(system: Any) -> None:
    request = system.request("hello").model_copy(update={"bot": "no\0body"})
    with pytest.raises(UnknownBot):
        accept(system.database, request)


def test_another_tenants_bot_is_as_good_as_none(system: Any) -> None:
    request = system.request("hello").model_copy(update={"tenant_id": new_id()})
    with pytest.raises(UnknownBot):
        accept(system.database, request)


def other_tenant(system: Any) -> UUID:
    tenant_id = new_id()
    system.database.run("INSERT INTO tenants (id, name) VALUES (%s, 'other')", (tenant_id,))
    model = system.settings.engine.model_name
    save_bot(system.database, tenant_id, model, model, "", GenerationParams())
    return tenant_id


def test_a_turn_keeps_the_version_of_its_bot_which_only_changes_count_up(system: Any) -> None:
    bot = system.settings.engine.model_name
    versions = []
    for instructions in ("Be brief.", "Be brief.", "Be kind."):
        save_bot(system.database, system.tenant_id, bot, bot, instructions, GenerationParams())
        turn = accept(system.database, system.request("hello"))
        versions.append(read_turn(system.database, system.tenant_id, turn.turn_id).bot_version)
    assert versions == [2, 2, 3]
    (listed,) = list_bots(system.database, system.tenant_id)
    assert listed.version == 3
    save_bot(system.database, system.tenant_id, "new", bot, "", GenerationParams())
    bots = {each.name: each.version for each in list_bots(system.database, system.tenant_id)}
    assert bots == {bot: 3, "new": 1}


def test_a_turn_of_a_release_before_versions_is_read(system: Any) -> None:
    turn = accept(system.database, system.request("hello"))
    system.database.run("UPDATE turns SET bot_version = NULL")
    assert read_turn(system.database, system.tenant_id, turn.turn_id).bot_version is None


def test_a_conversation_of_another_tenant_is_not_found(system: Any) -> None:
    (turn,) = conversation_of(system, 1)
    stranger = other_tenant(system)
    request = system.request("mine?", conversation_id=turn.conversation_id)
    with pytest.raises(NotFound):
        accept(system.database, request.model_copy(update={"tenant_id": stranger}))
    with pytest.raises(NotFound):
        read_conversation(system.database, stranger, turn.conversation_id)
    with pytest.raises(NotFound):
        read_turn(system.database, stranger, turn.turn_id)
    with pytest.raises(NotFound):
        cancel(system.database, stranger, turn.turn_id)
    assert_invariants(system.database)
    assert system.count("true") == 1


def test_a_conversation_stays_with_its_bot(system: Any) -> None:
    (turn,) = conversation_of(system, 1)
    save_bot(system.database, system.tenant_id, "second", "m", "", GenerationParams())
    request = system.request("hello", conversation_id=turn.conversation_id)
    with pytest.raises(InvalidInput) as refused:
        accept(system.database, request.model_copy(update={"bot": "second"}))
    assert refused.value.param == "model"
    assert_invariants(system.database)


def test_many_are_accepted_all_or_none(system: Any) -> None:
    good = [system.request(f"turn {n}") for n in range(5)]
    bad = system.request("bad").model_copy(update={"bot": "nobody"})
    with pytest.raises(UnknownBot):
        accept_many(system.database, [*good, bad])
    stranger = system.request("x", conversation_id=conversation_of(system, 1)[0].conversation_id)
    stranger = stranger.model_copy(update={"tenant_id": other_tenant(system)})
    with pytest.raises(NotFound):
        accept_many(system.database, [*good, stranger])
    assert system.count("true") == 1
    assert system.database.run("SELECT count(*) AS n FROM conversations")[0].n == 1
    assert_invariants(system.database)


def test_accepting_nothing_is_nothing(system: Any) -> None:
    assert accept_many(system.database, []) == []


def test_many_turns_of_mixed_conversations_keep_their_order(system: Any) -> None:
    conversations = [new_id() for _ in range(10)]
    requests = [
        system.request(f"{n}", conversation_id=conversation)
        for n in range(1, 6)
        for conversation in conversations
    ]
    random.Random(3).shuffle(conversations)
    accepted = accept_many(system.database, requests)
    for conversation in conversations:
        turns = read_conversation(system.database, system.tenant_id, conversation)
        assert [(turn.seq, turn.messages[0].content) for turn in turns] == [
            (n, f"{n}") for n in range(1, 6)
        ]
    assert [turn.seq for turn in accepted[:10]] == [1] * 10
    assert_invariants(system.database)


# --- Idempotency


def test_the_same_key_is_the_same_turn(system: Any) -> None:
    request = system.request("hello", idempotency_key="k")
    first = accept(system.database, request)
    again = accept(system.database, request)
    assert (first.is_duplicate, again.is_duplicate) == (False, True)
    assert again.model_copy(update={"is_duplicate": False}) == first
    assert system.count("true") == 1
    assert_invariants(system.database)


@pytest.mark.parametrize(
    "change",
    [
        {"lane": Lane.BATCH},
        {"params": GenerationParams(max_tokens=1)},
        {"timeout_s": 5.0},
        {"conversation_id": UUID(int=7)},
        {"author": "bob"},
        {"author": None},
    ],
)
def test_the_same_key_for_something_else_is_a_conflict(system: Any, change: dict[str, Any]) -> None:
    request = system.request("hello", idempotency_key="k", author="ada")
    accept(system.database, request)
    with pytest.raises(Conflict):
        accept(system.database, request.model_copy(update=change))
    assert system.count("true") == 1


def test_keys_of_different_tenants_do_not_meet(system: Any) -> None:
    request = system.request("hello", idempotency_key="k")
    first = accept(system.database, request)
    theirs = request.model_copy(update={"tenant_id": other_tenant(system)})
    second = accept(system.database, theirs)
    assert first.turn_id != second.turn_id
    assert not second.is_duplicate


def test_one_key_twice_in_one_call_is_one_turn(system: Any) -> None:
    request = system.request("hello", idempotency_key="k")
    accepted = accept_many(system.database, [request, system.request("other"), request])
    assert accepted[0].turn_id == accepted[2].turn_id != accepted[1].turn_id
    assert system.count("true") == 2
    with pytest.raises(Conflict):
        accept_many(
            system.database,
            [
                system.request("one body", idempotency_key="new"),
                system.request("another body", idempotency_key="new"),
            ],
        )
    with pytest.raises(Conflict):
        accept_many(
            system.database,
            [system.request("hi", idempotency_key="new", author=each) for each in ("ada", "bob")],
        )
    assert_invariants(system.database)


@pytest.mark.parametrize("in_one_conversation", [False, True])
def test_eight_callers_with_one_key_get_one_turn(system: Any, in_one_conversation: bool) -> None:
    conversation = new_id() if in_one_conversation else None
    for round_number in range(10):
        request = system.request(
            "hello", idempotency_key=f"k{round_number}", conversation_id=conversation
        )
        accepted = at_once(8, lambda _, request=request: accept(system.database, request))
        assert len({turn.turn_id for turn in accepted}) == 1
        assert [turn.is_duplicate for turn in accepted].count(False) == 1
    assert system.count("true") == 10
    assert_invariants(system.database)


def test_of_eight_different_bodies_with_one_key_one_is_accepted(system: Any) -> None:
    def ask(number: int) -> str:
        try:
            accept(system.database, system.request(f"body {number}", idempotency_key="k"))
        except Conflict:
            return "conflict"
        return "accepted"

    outcomes = at_once(8, ask)
    assert outcomes.count("accepted") == 1
    assert outcomes.count("conflict") == 7
    assert_invariants(system.database)


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run the work in threads that start together."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(60) for future in [pool.submit(run, n) for n in range(count)]]


def test_accepts_of_the_same_conversations_in_any_order_do_not_block_each_other(
    system: Any,
) -> None:
    conversations = [new_id() for _ in range(12)]

    def ask(number: int) -> None:
        chance = random.Random(number)
        for _ in range(10):
            order = chance.sample(conversations, 8)
            accept_many(system.database, [system.request("x", conversation_id=c) for c in order])

    at_once(8, ask)
    assert system.count("true") == 8 * 10 * 8
    assert_invariants(system.database)


def test_turns_accepted_while_others_settle_are_never_stranded(system: Any) -> None:
    """The race between "is an earlier turn open?" and "is a later turn waiting?"."""
    conversations = [new_id() for _ in range(3)]
    system.settings = system.settings.model_copy(
        update={"worker": system.settings.worker.model_copy(update={"hint_lost_after_s": 60})}
    )

    def ask(number: int) -> list[AcceptedTurn]:
        chance = random.Random(number)
        accepted = []
        for n in range(40):
            request = system.request(f"{number}/{n}", conversation_id=chance.choice(conversations))
            accepted.append(accept(system.database, request))
            if chance.random() < 0.2:
                cancel(system.database, system.tenant_id, accepted[-1].turn_id)
        return accepted

    with InlineWorker(system.settings):
        accepted = [turn for turns in at_once(6, ask) for turn in turns]
        system.wait_until_settled(30)
    assert_invariants(system.database)
    assert system.count("state IN ('completed', 'cancelled')") == len(accepted) == 240
    late = system.database.run("""
        SELECT 1 FROM turns earlier JOIN turns later USING (conversation_id)
        WHERE earlier.seq < later.seq AND earlier.settled_at > later.started_at
    """)
    assert late == []


# --- Cancel


def test_a_waiting_turn_is_cancelled_and_its_neighbours_do_not_notice(system: Any) -> None:
    first, second, third = conversation_of(system, 3)
    assert cancel(system.database, system.tenant_id, second.turn_id)
    assert states(system, [first, second, third]) == ["queued", "cancelled", "waiting"]
    assert_invariants(system.database)
    with InlineWorker(system.settings):
        system.wait_until_settled()
    assert states(system, [first, second, third]) == ["completed", "cancelled", "completed"]
    assert_invariants(system.database)


def test_a_queued_turn_is_cancelled_and_the_next_one_is_due(system: Any) -> None:
    first, second, third = conversation_of(system, 3)
    assert cancel(system.database, system.tenant_id, first.turn_id)
    assert states(system, [first, second, third]) == ["cancelled", "queued", "waiting"]
    assert [row.turn_id for row in system.database.run("SELECT turn_id FROM outbox")] == [
        second.turn_id
    ]
    assert_invariants(system.database)


def test_a_running_turn_is_cancelled_its_worker_stops_and_the_conversation_goes_on(
    system: Any, eventually: Eventually
) -> None:
    conversation = new_id()
    accepted = accept_many(
        system.database,
        [
            system.request("[[wait=60]] never", conversation_id=conversation),
            system.request("next", conversation_id=conversation),
        ],
    )
    with InlineWorker(system.settings) as inline:
        eventually(lambda: inline.worker.leases.held_count == 1)
        assert cancel(system.database, system.tenant_id, accepted[0].turn_id)
        system.wait_until_settled(10)
        eventually(lambda: inline.worker.leases.held_count == 0, 10)
    assert states(system, accepted) == ["cancelled", "completed"]
    cancelled = read_turn(system.database, system.tenant_id, accepted[0].turn_id)
    assert (cancelled.reply, cancelled.error_code) == (None, "cancelled")
    outcomes = system.database.run("SELECT outcome FROM attempts ORDER BY started_at")
    assert [row.outcome for row in outcomes] == ["cancelled", "answered"]
    assert_invariants(system.database)


def test_the_worker_is_told_of_a_cancelled_turn(system: Any) -> None:
    (turn,) = conversation_of(system, 1)
    with system.database.connect() as listener:
        listener.execute(f"LISTEN {ABORT_CHANNEL}")
        cancel(system.database, system.tenant_id, turn.turn_id)
        heard = [n.payload for n in listener.notifies(timeout=20, stop_after=1)]
    assert heard == [turn.turn_id.hex]


def test_what_has_ended_cannot_be_cancelled(system: Any) -> None:
    (turn,) = conversation_of(system, 1)
    with InlineWorker(system.settings):
        system.wait_until_settled()
    assert not cancel(system.database, system.tenant_id, turn.turn_id)
    assert states(system, [turn]) == ["completed"]
    (other,) = conversation_of(system, 1)
    assert cancel(system.database, system.tenant_id, other.turn_id)
    assert not cancel(system.database, system.tenant_id, other.turn_id)
    with pytest.raises(NotFound):
        cancel(system.database, system.tenant_id, new_id())
    assert_invariants(system.database)


def test_a_whole_conversation_cancelled_from_all_sides_ends_and_can_go_on(system: Any) -> None:
    accepted = conversation_of(system, 16)
    at_once(8, lambda n: [
        cancel(system.database, system.tenant_id, turn.turn_id) for turn in accepted[n::8]
    ])  # fmt: skip
    assert states(system, accepted) == ["cancelled"] * 16
    assert_invariants(system.database)
    request = system.request("again", conversation_id=accepted[0].conversation_id)
    assert accept(system.database, request).state is TurnState.QUEUED
    assert_invariants(system.database)


def test_a_turn_cancelled_while_it_is_handed_back_leaves_no_hint_behind(
    system: Any, eventually: Eventually
) -> None:
    """The hand-back's new hint is not in the snapshot of a cancel that waits for it."""
    first, second = conversation_of(system, 2)
    with psycopg.connect(system.settings.database.url.get_secret_value()) as handing_back:
        make_running(system, first)
        handing_back.execute("UPDATE turns SET state = 'queued' WHERE id = %s", (first.turn_id,))
        handing_back.execute(
            "INSERT INTO outbox (turn_id, model, lane) SELECT id, model, lane FROM turns "
            "WHERE id = %s",
            (first.turn_id,),
        )
        with ThreadPoolExecutor(1) as pool:
            cancelling = pool.submit(cancel, system.database, system.tenant_id, first.turn_id)
            eventually(lambda: is_somebody_blocked(system))
            handing_back.commit()
            assert cancelling.result(20)
    assert states(system, [first, second]) == ["cancelled", "queued"]
    assert [row.turn_id for row in system.database.run("SELECT turn_id FROM outbox")] == [
        second.turn_id
    ]


def make_running(system: Any, turn: AcceptedTurn) -> None:
    system.database.run("DELETE FROM outbox WHERE turn_id = %s", (turn.turn_id,))
    system.database.run(
        "UPDATE turns SET state = 'running', attempt = 1 WHERE id = %s", (turn.turn_id,)
    )


def is_somebody_blocked(system: Any) -> bool:
    return bool(
        system.database.run(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        )
    )
