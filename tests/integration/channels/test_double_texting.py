"""Double texting: what a message becomes while an earlier one of its thread is being answered."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from tests.conversing import Replica, prompt_of, read_turns
from turnmill.producer.cancel import _OPEN_TURNS
from turnmill.producer.conversations import set_policies
from turnmill.producer.converse import Kind
from turnmill.producer.texting import _HAS_OPEN
from turnmill.schemas.channels.events import MAX_TEXT
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.content import MAX_MESSAGE_CHARS
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.hand_off import _LOCK_OPEN
from turnmill.workers.delivery.claims import Holder, claim_delivery
from turnmill.workers.testing import InlineWorker

Eventually = Callable[..., None]
_threads = count(1)

#: A thousand turns before the open one, all of them answered.
_LENGTHEN = """
WITH c AS (UPDATE conversations SET next_seq = 1002, answered_seq = 1000 RETURNING id),
moved AS (UPDATE turns SET seq = 1001)
INSERT INTO turns (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params)
SELECT gen_random_uuid(), t.tenant_id, t.conversation_id, n, t.bot_id, t.model, t.lane, 'completed',
    t.input, t.params
FROM turns t CROSS JOIN generate_series(2, 1000) AS n
"""
_TURNS_READ = """
SELECT seq_tup_read + idx_tup_fetch AS n FROM pg_stat_xact_user_tables WHERE relname = 'turns'
"""


def _is_streaming(replica: Replica) -> bool:
    return bool(replica.rows("SELECT 1 FROM chunks WHERE position >= 2"))


def _ask_at_length(replica: Replica, eventually: Eventually, **policies: Any) -> None:
    """A turn of whose reply something has been streamed, and much is still to come."""
    replica.say("[[tokens=60000]]", **policies)
    eventually(lambda: _is_streaming(replica))


def test_three_quick_messages_are_one_turn_under_collect(replica: Replica) -> None:
    kinds = [replica.say(text).kind for text in ("Hello", "are you there?", "I have a question")]
    assert kinds == [Kind.ACCEPTED, Kind.COLLECTED, Kind.COLLECTED]
    assert replica.turns() == [("queued", "Hello\nare you there?\nI have a question")]
    assert len(replica.rows("SELECT 1 FROM deliveries")) == 1


def test_quick_messages_at_two_replicas_are_one_turn_under_collect(
    make_replica: Callable[[], Replica],
) -> None:
    replicas = [make_replica(), make_replica()]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            thread = f"T{next(_threads)}"
            jobs = [pool.submit(each.say, "Hi", thread=thread) for each in replicas * 2]
            received = [job.result() for job in jobs]
            assert len({each.turn_id for each in received}) == 1
            assert [each.kind for each in received].count(Kind.ACCEPTED) == 1
    assert {said for _, said in replicas[0].turns()} == {"Hi\nHi\nHi\nHi"}


def test_three_quick_messages_are_three_ordered_turns_under_enqueue(
    replica: Replica, eventually: Eventually
) -> None:
    for text in ("one", "two", "three"):
        assert replica.say(text, double_texting="enqueue").kind is Kind.ACCEPTED
    assert replica.turns() == [("queued", "one"), ("waiting", "two"), ("waiting", "three")]
    with InlineWorker(replica.settings):
        eventually(lambda: replica.turns()[2][0] == "completed")
    assert [state for state, _ in replica.turns()] == ["completed"] * 3


def test_a_collected_turn_begins_when_nothing_more_came_for_a_while(
    replica: Replica, eventually: Eventually
) -> None:
    replica.say("Hello", quiet_s=1.0)
    (first,) = replica.rows("SELECT is_immediate, due_at FROM outbox")
    replica.say("again", quiet_s=1.0)
    (later,) = replica.rows("SELECT is_immediate, due_at FROM outbox")
    assert not first.is_immediate
    assert later.due_at > first.due_at
    with InlineWorker(replica.settings):
        eventually(lambda: replica.turns() == [("completed", "Hello\nagain")])
    (turn,) = replica.rows("SELECT started_at - accepted_at AS waited FROM turns")
    assert turn.waited.total_seconds() >= 1


def test_somebody_who_goes_on_writing_is_answered_all_the_same(replica: Replica) -> None:
    replica.say("Hello", quiet_s=2.0)
    replica.rows("UPDATE turns SET accepted_at = accepted_at - interval '9 s' RETURNING id")
    replica.say("and", quiet_s=2.0)
    (row,) = replica.rows(
        "SELECT due_at - accepted_at AS waits FROM outbox JOIN turns ON id = turn_id"
    )
    assert row.waits.total_seconds() == 10


def test_what_arrives_while_a_turn_runs_becomes_one_turn_under_collect(
    replica: Replica, eventually: Eventually
) -> None:
    with InlineWorker(replica.settings):
        _ask_at_length(replica, eventually, quiet_s=0)
        assert replica.say("wait").kind is Kind.ACCEPTED
        assert replica.say("I meant").kind is Kind.COLLECTED
        assert replica.turns()[1] == ("waiting", "wait\nI meant")


def test_messages_of_two_people_are_not_collected_into_one_turn(replica: Replica) -> None:
    replica.say("Hello", author="U1")
    assert replica.say("Me too", author="U2").kind is Kind.ACCEPTED
    assert replica.say("Hello?", author="U1").kind is Kind.ACCEPTED
    assert [said for _, said in replica.turns()] == ["Hello", "Me too", "Hello?"]


def test_a_turn_that_a_worker_has_begun_collects_nothing(replica: Replica) -> None:
    replica.say("Hello")
    replica.rows("UPDATE turns SET attempt = 1 RETURNING id")
    assert replica.say("again").kind is Kind.ACCEPTED


def test_a_collected_turn_stays_within_the_size_of_a_message(replica: Replica) -> None:
    whole, rest = divmod(MAX_MESSAGE_CHARS - 100, MAX_TEXT)
    for length in [MAX_TEXT] * whole:
        replica.say("a" * length)
    assert replica.say("b" * rest).kind is Kind.COLLECTED
    assert replica.say("c" * 200).kind is Kind.ACCEPTED


def test_pictures_and_texts_are_collected_into_one_message(replica: Replica) -> None:
    # No worker lives, so nobody can look at pictures: the turn is written by hand.
    replica.say("Look:")
    replica.rows(
        """UPDATE turns SET input = '[{"role": "user", "content":
        [{"type": "image", "url": "https://example.com/cat.png"}]}]' RETURNING id"""
    )
    assert replica.say("What is it?").kind is Kind.COLLECTED
    (turn,) = replica.rows("SELECT input FROM turns")
    (said,) = turn.input
    assert [part["type"] for part in said["content"]] == ["image", "text"]


def test_interrupt_ends_the_running_reply_and_what_was_streamed_stays(
    replica: Replica, eventually: Eventually
) -> None:
    with InlineWorker(replica.settings) as inline:
        _ask_at_length(replica, eventually, double_texting="interrupt")
        received = replica.say("Stop that", double_texting="interrupt")
        assert received.kind is Kind.ACCEPTED
        eventually(lambda: replica.turns()[1][0] == "completed")
        eventually(lambda: not inline.worker.leases.held_count)
    first, second = read_turns(replica, received)
    assert first.state == "completed"
    assert first.reply is not None
    assert first.reply.content.startswith("w1 w2")
    assert first.reply.finish_reason == "length"
    assert first.reply.usage.completion_tokens == len(first.reply.content.split())
    assert prompt_of(replica.database, second) == [
        ("user", "[[tokens=60000]]"),
        ("assistant", first.reply.content),
        ("user", "Stop that"),
    ]
    states = replica.rows("SELECT state FROM deliveries ORDER BY ordinal")
    assert [row.state for row in states] == ["queued", "queued"]


def test_interrupt_answers_what_earlier_turns_asked_and_nobody_began_to_answer(
    replica: Replica,
) -> None:
    for text in ("one", "two"):
        replica.say(text, double_texting="enqueue")
    replica.say("three", double_texting="interrupt")
    assert replica.turns() == [
        ("cancelled", "one"),
        ("cancelled", "two"),
        ("queued", "one\ntwo\nthree"),
    ]


def test_rollback_leaves_nothing_of_what_was_being_answered(
    replica: Replica, eventually: Eventually
) -> None:
    with InlineWorker(replica.settings):
        _ask_at_length(replica, eventually)
        received = replica.say("Something else", double_texting="rollback")
        eventually(lambda: [state for state, _ in replica.turns()] == ["cancelled", "completed"])
    _, second = read_turns(replica, received)
    assert prompt_of(replica.database, second) == [("user", "Something else")]


def test_reject_refuses_a_message_while_another_is_answered_and_says_so(replica: Replica) -> None:
    replica.say("Hello", double_texting="reject")
    received = replica.say("Hello?", double_texting="reject", texts={"rejected": "One at a time."})
    assert received.kind is Kind.REJECTED
    assert replica.turns() == [("queued", "Hello")]
    assert replica.notices() == ["One at a time."]


def test_the_conversations_policy_goes_before_its_bots_and_that_before_the_channels(
    replica: Replica,
) -> None:
    replica.say("one", double_texting="enqueue")
    replica.rows("""UPDATE bots SET policies = '{"double_texting": "reject"}' RETURNING 1""")
    received = replica.say("two", double_texting="enqueue")
    assert received.kind is Kind.REJECTED
    assert received.conversation_id is not None
    override = Policies.model_validate({"double_texting": "collect"})
    set_policies(replica.database, replica.tenant_id, received.conversation_id, override)
    assert replica.say("three", double_texting="enqueue").kind is Kind.COLLECTED
    set_policies(replica.database, replica.tenant_id, received.conversation_id, None)
    assert replica.say("four", double_texting="enqueue").kind is Kind.REJECTED


@pytest.mark.parametrize("word", ["stop", "STOP!", " Stop. ", "ＳＴＯＰ", "停止", "stoP\n"])
def test_a_stop_word_ends_the_running_reply_where_it_is(
    replica: Replica, eventually: Eventually, word: str
) -> None:
    with InlineWorker(replica.settings):
        _ask_at_length(replica, eventually)
        replica.say("And then?")
        assert replica.say(word).kind is Kind.STOPPED
        eventually(lambda: [state for state, _ in replica.turns()] == ["completed", "cancelled"])
    assert replica.notices() == [Policies().texts.stopped]


def test_a_word_within_a_sentence_is_part_of_what_is_said(replica: Replica) -> None:
    assert replica.say("Where does the bus stop?").kind is Kind.ACCEPTED
    assert replica.say("stop it please").kind is Kind.COLLECTED


def test_reset_gives_the_thread_a_fresh_conversation(replica: Replica) -> None:
    first = replica.say("Hello")
    reset = replica.say("reset")
    assert reset.kind is Kind.RESET
    second = replica.say("Hello again")
    assert second.conversation_id == reset.conversation_id != first.conversation_id
    assert replica.turns() == [("cancelled", "Hello"), ("queued", "Hello again")]
    assert replica.notices() == [Policies().texts.reset]


@pytest.mark.parametrize(
    ("progress", "left"), [("{}", ["dropped"]), ('{"draft": {"message": "1"}}', ["queued"])]
)
def test_a_reset_leaves_no_reply_behind_of_which_nothing_was_sent(
    replica: Replica, progress: str, left: list[str]
) -> None:
    first = replica.say("Hello")
    replica.database.run("UPDATE deliveries SET progress = %s::jsonb", (progress,))
    replica.say("reset")
    old = "conversation_id = %s"
    states = replica.rows(f"SELECT state FROM deliveries WHERE {old}", first.conversation_id)
    assert [row.state for row in states] == left
    hints = replica.rows(
        f"SELECT 1 FROM outbox JOIN deliveries d ON d.id = outbox.turn_id WHERE d.{old}",
        first.conversation_id,
    )
    assert len(hints) == left.count("queued")


@pytest.mark.parametrize("command", ["reset", "hand_off", "stop"])
def test_a_sign_that_awaits_a_reply_is_ended_with_its_turn(replica: Replica, command: str) -> None:
    replica.ask("Hello")
    replica.command(command)
    owed = replica.rows("SELECT id, channel, state FROM deliveries WHERE kind = 'reply'")
    assert [row.state for row in owed] == ["queued"]
    assert replica.rows("SELECT 1 FROM outbox WHERE turn_id = %s", owed[0].id)
    claim = claim_delivery(Holder(replica.database, new_id(), 30.0), owed[0].channel, owed[0].id)
    assert claim is not None
    assert claim.job.text is None, "an adapter ends what it shows, and sends nothing"


def test_commands_of_buttons_do_what_the_words_do(replica: Replica) -> None:
    assert replica.command("stop").kind is Kind.STOPPED
    assert replica.command("reset").kind is Kind.RESET


def test_a_bots_words_take_the_place_of_the_defaults(replica: Replica) -> None:
    assert replica.say("Basta", stop_words=["basta"]).kind is Kind.STOPPED
    assert replica.say("stop", stop_words=["basta"]).kind is Kind.ACCEPTED


@pytest.mark.parametrize("statement", [_HAS_OPEN, _OPEN_TURNS, _LOCK_OPEN])
def test_of_a_long_conversation_only_what_is_not_answered_is_read(
    replica: Replica, statement: str
) -> None:
    conversation = replica.say("Hello").conversation_id
    replica.rows(_LENGTHEN)
    replica.rows("ANALYZE turns, conversations")
    given = [conversation] if "ANY(" in statement else conversation
    with replica.database.cursor() as cursor:
        cursor.execute(statement, (given,))
        found = cursor.rowcount
        read = cursor.execute(_TURNS_READ).fetchone()
    assert found == 1
    assert read is not None
    assert read.n < 10
