"""Events of platforms: each is received once and becomes what its policy says."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.conversing import Replica, message
from turnmill.producer import converse
from turnmill.producer.conversations import Standing, begin
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.events import Rating
from turnmill.schemas.errors import UnknownBot
from turnmill.schemas.ids import Prefix, new_id, show_id

_numbers = count(1)

_BLOCKED = """
SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def test_a_message_becomes_a_turn_with_a_pending_delivery(replica: Replica) -> None:
    received = replica.receive(message("Hello"))
    assert received.kind is Kind.ACCEPTED
    (turn,) = replica.rows("SELECT id, state, input, author FROM turns")
    assert (turn.id, turn.state, turn.author) == (received.turn_id, "queued", "U1")
    (delivery,) = replica.rows("SELECT turn_id, state, target, channel FROM deliveries")
    assert (delivery.turn_id, delivery.state, delivery.channel) == (turn.id, "pending", "slack")
    assert delivery.target == {"channel": "C1", "ts": "T1"}


def test_an_event_that_is_sent_again_is_the_same_turn_at_another_replica_too(
    make_replica: Callable[[], Replica],
) -> None:
    event = message("Hello")
    first, again = make_replica().receive(event), make_replica().receive(event)
    assert (again.kind, again.turn_id) == (Kind.DUPLICATE, first.turn_id)
    assert again.conversation_id == first.conversation_id


def test_an_event_that_reaches_two_replicas_at_once_is_one_turn(
    make_replica: Callable[[], Replica],
) -> None:
    replicas = [make_replica(), make_replica()]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            event = message("Hello", thread=f"T{next(_numbers)}")
            jobs = [pool.submit(each.receive, event) for each in replicas * 4]
            received = [job.result() for job in jobs]
            kinds = sorted(each.kind for each in received)
            assert kinds == [Kind.ACCEPTED, *[Kind.DUPLICATE] * 7]
            assert len({each.turn_id for each in received}) == 1
    assert replicas[0].rows("SELECT count(*) AS n FROM turns")[0].n == 20


def test_two_first_messages_of_a_thread_begin_one_conversation(
    make_replica: Callable[[], Replica],
) -> None:
    replicas = [make_replica(), make_replica()]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            thread = f"T{next(_numbers)}"
            jobs = [
                pool.submit(each.receive, message("Hi", thread=thread)) for each in replicas * 4
            ]
            assert len({job.result().conversation_id for job in jobs}) == 1


def test_threads_of_one_channel_are_conversations_of_their_own(replica: Replica) -> None:
    first = replica.receive(message("Hello", thread="A"))
    other = replica.receive(message("Hello", thread="B"))
    again = replica.receive(message("And?", thread="A"))
    assert first.conversation_id == again.conversation_id != other.conversation_id


def test_an_event_that_cannot_be_accepted_is_not_remembered(replica: Replica) -> None:
    event = message("Hello")
    bot, replica.bot = replica.bot, "nobody"
    with pytest.raises(UnknownBot):
        replica.receive(event)
    replica.bot = bot
    assert replica.receive(event).kind is Kind.ACCEPTED


def test_a_channel_that_is_given_another_bot_begins_its_threads_afresh(replica: Replica) -> None:
    first = replica.receive(message("Hello"))
    replica.rows(
        "INSERT INTO bots (id, tenant_id, name, model) "
        "SELECT gen_random_uuid(), tenant_id, 'other', model FROM bots RETURNING id"
    )
    replica.bot = "other"
    second = replica.receive(message("Hello"))
    assert second.kind is Kind.ACCEPTED
    assert second.conversation_id != first.conversation_id


def test_a_message_that_begins_nothing_counts_only_in_a_conversation(replica: Replica) -> None:
    aside = message("An aside", thread="T-aside").model_copy(update={"begins": False})
    assert replica.receive(aside).kind is Kind.IGNORED
    assert replica.rows("SELECT 1 FROM channel_threads UNION ALL SELECT 1 FROM conversations") == []
    replica.receive(message("Hello", thread="T-aside"))
    later = message("And now?", thread="T-aside").model_copy(update={"begins": False})
    assert replica.receive(later).kind in (Kind.ACCEPTED, Kind.COLLECTED)


def test_what_follows_a_mention_waits_until_the_mention_is_received(
    replica: Replica, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_begun, go_on = Event(), Event()

    def begin_slowly(*args: Any) -> Standing:
        is_begun.set()
        assert go_on.wait(30)
        return begin(*args)

    monkeypatch.setattr(converse, "begin", begin_slowly)
    follow_up = message("It is about my parcel.").model_copy(update={"begins": False})
    with ThreadPoolExecutor(2) as pool:
        mention = pool.submit(replica.receive, message("Hello"))
        assert is_begun.wait(30)
        later = pool.submit(replica.receive, follow_up)
        try:
            eventually(lambda: later.done() or replica.rows(_BLOCKED))
        finally:
            go_on.set()
        assert mention.result().kind is Kind.ACCEPTED
        assert later.result().kind is Kind.COLLECTED


def test_what_cannot_be_read_gets_a_notice_and_is_no_turn(replica: Replica) -> None:
    received = replica.receive(message("", thread="T-photo"))
    assert received.kind is Kind.UNREADABLE
    assert replica.rows("SELECT 1 FROM turns") == []
    (notice,) = replica.rows("SELECT kind, state FROM deliveries")
    assert (notice.kind, notice.state) == ("notice", "queued")


def _rating(score: int, *, author: str = "U1", turn: Received | None = None, **fields: Any) -> Any:
    said = message("")
    turn_id = None if turn is None or turn.turn_id is None else show_id(Prefix.TURN, turn.turn_id)
    given = {"event_id": said.event_id, "address": said.address, "author": author, "score": score}
    return Rating.model_validate(given | {"turn_id": turn_id} | fields)


def test_a_button_rates_the_turn_that_it_names(replica: Replica) -> None:
    turn = replica.say("Hello")
    received = replica.receive(_rating(1, turn=turn))
    assert (received.kind, received.turn_id) == (Kind.RATED, turn.turn_id)
    assert received.conversation_id == turn.conversation_id
    replica.receive(_rating(-1, turn=turn, comment="Wrong."))
    replica.receive(_rating(1, turn=turn, author="U2"))
    rows = replica.rows("SELECT source, author, score, comment FROM ratings ORDER BY author")
    assert [tuple(row) for row in rows] == [
        ("slack", "U1", -1, "Wrong."),
        ("slack", "U2", 1, None),
    ]
    replica.receive(_rating(0, turn=turn))
    assert [row.author for row in replica.rows("SELECT author FROM ratings")] == ["U2"]


@pytest.mark.parametrize("message_id", ["m.1", "m.2", "m.3"])
def test_a_reaction_at_any_message_of_a_reply_rates_it(replica: Replica, message_id: str) -> None:
    turn = replica.say("Hello")
    replica.say("Hello", thread="T2")
    parts = {"parts": {"0": "m.1", "1": "m.2", "10": "m.3"}, "status": {"text": "m.4"}}
    replica.rows(
        "UPDATE deliveries SET progress = %s WHERE turn_id = %s RETURNING id",
        Jsonb(parts), turn.turn_id,
    )  # fmt: skip
    received = replica.receive(_rating(1, message_id=message_id))
    assert (received.kind, received.turn_id) == (Kind.RATED, turn.turn_id)
    assert replica.receive(_rating(1, message_id="m.4")).kind is Kind.IGNORED
    replica.rows("UPDATE deliveries SET channel = 'another' RETURNING id")
    assert replica.receive(_rating(1, message_id=message_id)).kind is Kind.IGNORED


def test_a_rating_of_nothing_that_is_known_is_ignored(
    replica: Replica, make_replica: Callable[[], Replica]
) -> None:
    turn = replica.say("Hello")
    unknown = Received(Kind.RATED, None, new_id())
    assert replica.receive(_rating(1, turn=unknown)).kind is Kind.IGNORED
    assert replica.receive(_rating(1, turn_id="turn_nonsense")).kind is Kind.IGNORED
    assert replica.receive(_rating(1, message_id="1.2")).kind is Kind.IGNORED
    other = make_replica()
    other.tenant_id = new_id()
    assert other.receive(_rating(1, turn=turn)).kind is Kind.IGNORED
    assert replica.rows("SELECT 1 FROM ratings") == []


def test_a_rating_begins_no_conversation(replica: Replica) -> None:
    replica.receive(_rating(1, message_id="1.2"))
    assert replica.rows("SELECT 1 FROM channel_threads") == []
