"""Hand-off: a person answers, nothing that the user says is lost, and the bot resumes with all."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.conversing import Replica, message, prompt_of, read_turns
from turnmill.producer.accept import accept
from turnmill.producer.converse import Kind, Received
from turnmill.producer.handoff import answer, hand_off, resume
from turnmill.producer.operations.handed_off import Place, list_handed_off
from turnmill.producer.parked.replay import replay
from turnmill.producer.tenants import save_bot
from turnmill.schemas.channels.policies import CommandName, Policies
from turnmill.schemas.errors import Conflict, HandedOff, InvalidInput, NotFound, NotHandedOff
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.turns import AcceptedTurn, GenerationParams, Message, Role, TurnRequest
from turnmill.workers.delivery.claims import Holder, claim_delivery
from turnmill.workers.testing import InlineWorker

Eventually = Callable[..., None]
TEXTS = Policies().texts


def _deliveries(replica: Replica) -> list[tuple[str, str]]:
    rows = replica.rows("SELECT kind, state FROM deliveries ORDER BY ordinal")
    return [(row.kind, row.state) for row in rows]


def _hand_off(replica: Replica, received: Received) -> None:
    assert received.conversation_id is not None
    hand_off(replica.database, replica.tenant_id, received.conversation_id, "Too hard.")


def _resume(replica: Replica, received: Received) -> bool:
    assert received.conversation_id is not None
    return resume(replica.database, replica.tenant_id, received.conversation_id)


def test_a_hand_off_ends_all_open_turns_and_drops_their_deliveries(replica: Replica) -> None:
    for text in ("one", "two"):
        received = replica.say(text, double_texting="enqueue")
    _hand_off(replica, received)
    assert replica.turns() == [("handed_off", "one"), ("handed_off", "two")]
    assert _deliveries(replica) == [
        ("reply", "dropped"), ("reply", "dropped"), ("notice", "queued"),
    ]  # fmt: skip
    assert replica.notices() == [TEXTS.handed_off]
    # Retention finds old deliveries by their ids, which begin with the time.
    assert {row.id.version for row in replica.rows("SELECT id FROM deliveries")} == {7}
    assert len(replica.rows("SELECT turn_id FROM outbox")) == 1, "the notice's hint"


def test_a_hand_off_fences_and_stops_the_running_turn(
    replica: Replica, eventually: Eventually
) -> None:
    with InlineWorker(replica.settings) as inline:
        received = replica.say("[[tokens=60000]]", quiet_s=0)
        eventually(lambda: replica.rows("SELECT 1 FROM chunks WHERE position >= 2"))
        _hand_off(replica, received)
        eventually(lambda: not inline.worker.leases.held_count)
    (turn,) = read_turns(replica, received)
    assert (turn.state, turn.reply) == ("handed_off", None)
    (attempt,) = replica.rows("SELECT outcome FROM attempts")
    assert attempt.outcome == "cancelled"


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        ({"status": {"text": "is thinking", "at": 0}}, None),
        ({"parts": {}, "stream": None}, None),
        ({"parts": {"0": "1.1"}}, "Hello"),
        ({"stream": {"ts": "1.1", "sent": 1, "digest": ""}}, "Hello"),
        ({"preview": {"text": "He", "at": 0}}, "Hello"),
    ],
)
def test_a_reply_of_which_nothing_was_shown_is_not_sent_once_a_person_answers(
    replica: Replica, eventually: Eventually, progress: dict[str, Any], text: str | None
) -> None:
    with InlineWorker(replica.settings):
        received = replica.say("Hello", quiet_s=0)
        eventually(lambda: replica.turns() == [("completed", "Hello")])
    (reply,) = replica.rows(
        "UPDATE deliveries SET progress = %s WHERE state = 'queued' RETURNING id", Jsonb(progress)
    )
    _hand_off(replica, received)
    claim = claim_delivery(Holder(replica.database, new_id(), 30), "slack", reply.id)
    assert claim is not None
    assert claim.job.text == text


def test_handing_off_twice_changes_nothing_more(replica: Replica) -> None:
    received = replica.say("Hello")
    _hand_off(replica, received)
    (before,) = replica.rows("SELECT handed_off_at, handed_off_because FROM conversations")
    _hand_off(replica, received)
    (after,) = replica.rows("SELECT handed_off_at, handed_off_because FROM conversations")
    assert before == after
    assert replica.notices() == [TEXTS.handed_off]


@pytest.mark.parametrize("word", ["human", "Talk to a person.", "转人工"])
def test_a_word_asks_for_a_person(replica: Replica, word: str) -> None:
    assert replica.say(word).kind is Kind.HANDED_OFF
    assert replica.notices() == [TEXTS.handed_off]
    assert replica.say("Are you there?").kind is Kind.HANDED_OFF


@pytest.mark.parametrize("by_button", [True, False])
def test_who_asks_for_a_person_is_the_user_though_another_one_began_the_thread(
    replica: Replica, by_button: bool
) -> None:
    replica.say("Hello", author="ALICE")
    if by_button:
        replica.command("hand_off", author="BOB")
    else:
        replica.say("human", author="BOB")
    replica.command("hand_off", author="ADA")
    assert replica.say("It is still broken.", author="BOB").kind is Kind.HANDED_OFF
    assert replica.say("This is Ada.", author="ADA").kind is Kind.ANSWERED


def test_a_button_hands_off_the_conversation_of_the_turn_that_it_names(replica: Replica) -> None:
    asked = replica.say("Hello", author="ALICE", thread="C1/@ALICE")
    assert asked.turn_id is not None
    turn_id = show_id(Prefix.TURN, asked.turn_id)
    pressed = replica.command("hand_off", author="BOB", thread="C1/@BOB", turn_id=turn_id)
    assert (pressed.kind, pressed.conversation_id) == (Kind.HANDED_OFF, asked.conversation_id)
    again = replica.say("And?", author="ALICE", thread="C1/@ALICE")
    assert again.kind is Kind.HANDED_OFF, "only she can write there"
    assert len(replica.rows("SELECT 1 FROM channel_threads")) == 1


def test_a_button_resumes_the_conversation_that_it_names(replica: Replica) -> None:
    asked = replica.say("human", author="ALICE", thread="C1/@ALICE")
    theirs = replica.say("human", author="BOB", thread="C1/@BOB")
    assert asked.conversation_id is not None
    shown = show_id(Prefix.CONVERSATION, asked.conversation_id)
    pressed = replica.command("resume", author="BOB", thread="C1/@BOB", conversation_id=shown)
    assert (pressed.kind, pressed.conversation_id) == (Kind.RESUMED, asked.conversation_id)
    rows = replica.rows("SELECT id FROM conversations WHERE handed_off_at IS NOT NULL")
    assert [row.id for row in rows] == [theirs.conversation_id]
    strange = replica.command("resume", author="BOB", thread="C1/@BOB", conversation_id="conv_?")
    assert strange.conversation_id == theirs.conversation_id


@pytest.mark.parametrize("turn_id", [f"turn_{0:032x}", "turn_?"])
def test_a_button_of_a_turn_that_is_unknown_counts_where_it_is_pressed(
    replica: Replica, turn_id: str
) -> None:
    asked = replica.say("Hello")
    pressed = replica.command("hand_off", turn_id=turn_id)
    assert pressed.conversation_id == asked.conversation_id


def test_what_is_said_meanwhile_is_kept_and_not_answered(replica: Replica) -> None:
    replica.command("hand_off")
    assert replica.say("Hello?", author="U1").kind is Kind.HANDED_OFF
    assert replica.say("Good day, this is Ada.", author="ADA").kind is Kind.ANSWERED
    assert replica.say("stop", author="U1").kind is Kind.HANDED_OFF
    rows = replica.rows("SELECT state, author, input->0->>'role' AS role FROM turns ORDER BY id")
    assert [(row.state, row.author, row.role) for row in rows] == [
        ("handed_off", "U1", "user"),
        ("handed_off", "ADA", "assistant"),
        ("handed_off", "U1", "user"),
    ]
    assert _deliveries(replica) == [("notice", "queued")]
    (conversation,) = replica.rows("SELECT next_seq, answered_seq FROM conversations")
    assert conversation == (4, 3)


def test_a_picture_is_kept_although_no_worker_can_look_at_it(replica: Replica) -> None:
    replica.command("hand_off")
    event = message("")
    picture = {"type": "image", "url": "https://example.com/cat.png"}
    event = type(event).model_validate({**event.model_dump(), "content": [picture]})
    assert replica.receive(event).kind is Kind.HANDED_OFF


def test_the_bot_resumes_with_all_that_was_said(replica: Replica, eventually: Eventually) -> None:
    with InlineWorker(replica.settings):
        first = replica.say("Hello there", quiet_s=0)
        eventually(lambda: replica.turns() == [("completed", "Hello there")])
        replica.say("human")
        replica.say("My parcel is late.")
        replica.say("Number 17.")
        replica.say("I am on it.", author="ADA")
        assert first.conversation_id is not None
        answer(replica.database, replica.tenant_id, first.conversation_id, "It is found.", "web")
        assert replica.command("resume").kind is Kind.RESUMED
        last = replica.say("Thanks!", quiet_s=0)
        eventually(lambda: replica.turns()[-1] == ("completed", "Thanks!"))
    turns = read_turns(replica, last)
    assert prompt_of(replica.database, turns[-1]) == [
        ("user", "Hello there"),
        ("assistant", "Hello there"),
        ("user", "My parcel is late.\nNumber 17."),
        ("assistant", "I am on it.\nIt is found."),
        ("user", "Thanks!"),
    ]
    assert replica.notices() == [TEXTS.handed_off, "It is found.", TEXTS.resumed]


def test_what_was_streamed_before_a_hand_off_is_part_of_what_was_said(
    replica: Replica, eventually: Eventually
) -> None:
    with InlineWorker(replica.settings) as inline:
        received = replica.say("[[tokens=60000]]", quiet_s=0)
        eventually(lambda: replica.rows("SELECT 1 FROM chunks WHERE position >= 2"))
        _hand_off(replica, received)
        eventually(lambda: not inline.worker.leases.held_count)
    _resume(replica, received)
    replica.say("And?")
    *_, (role, said), asked = prompt_of(replica.database, read_turns(replica, received)[-1])
    assert role == "assistant"
    assert said.startswith("w1 w2 w3")
    assert asked == ("user", "And?")


def test_the_user_who_said_something_unanswered_goes_on_in_the_same_message(
    replica: Replica,
) -> None:
    received = replica.say("My parcel is late.")
    _hand_off(replica, received)
    _resume(replica, received)
    replica.say("Hello?")
    turn = read_turns(replica, received)[-1]
    assert prompt_of(replica.database, turn) == [("user", "My parcel is late.\nHello?")]


def test_resuming_what_the_bot_answers_changes_nothing(replica: Replica) -> None:
    received = replica.say("Hello")
    assert not _resume(replica, received)
    assert replica.command("resume").kind is Kind.IGNORED
    assert replica.notices() == []


def test_an_answer_that_is_repeated_with_its_key_is_sent_once(replica: Replica) -> None:
    received = replica.say("human")
    assert received.conversation_id is not None

    def give(text: str, key: str | None) -> AcceptedTurn:
        place = (replica.database, replica.tenant_id, received.conversation_id)
        return answer(*place, text, "ada", key)

    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda _: give("It is found.", "k1"), range(4)))
    assert len({turn.turn_id for turn in turns}) == 1
    assert [turn.is_duplicate for turn in turns].count(False) == 1
    give("Really.", "k2")
    replica.command(CommandName.RESUME)
    assert give("It is found.", "k1").is_duplicate
    with pytest.raises(Conflict):
        give("It is lost.", "k1")
    with pytest.raises(NotHandedOff):
        give("It is found.", "k3")
    assert replica.notices()[1:-1] == ["It is found.", "Really."]


def test_a_person_cannot_answer_what_the_bot_answers(replica: Replica) -> None:
    received = replica.say("Hello")
    assert received.conversation_id is not None
    with pytest.raises(NotHandedOff, match="turnmill conversations hand-off conv_"):
        answer(replica.database, replica.tenant_id, received.conversation_id, "Hi", "ada")
    with pytest.raises(NotFound):
        answer(replica.database, new_id(), received.conversation_id, "Hi", "ada")


def test_a_turn_of_the_api_is_kept_for_the_person_too(replica: Replica) -> None:
    received = replica.command("hand_off")
    request = TurnRequest(
        tenant_id=replica.tenant_id, bot=replica.bot,
        messages=(Message(role=Role.USER, content="Hello?"),),
        conversation_id=received.conversation_id,
    )  # fmt: skip
    assert accept(replica.database, request).state == "handed_off"


def test_a_stop_button_says_nothing_while_a_person_answers(replica: Replica) -> None:
    replica.command("hand_off")
    assert replica.command("stop").kind is Kind.IGNORED
    assert replica.notices() == [TEXTS.handed_off]


def test_a_reset_ends_the_hand_off_with_a_fresh_conversation(replica: Replica) -> None:
    first = replica.command("hand_off")
    reset = replica.command("reset")
    assert reset.kind is Kind.RESET
    assert replica.say("Hello").kind is Kind.ACCEPTED
    assert reset.conversation_id != first.conversation_id
    assert list_handed_off(replica.database, replica.tenant_id).conversations == []


@pytest.mark.parametrize("fate", ["[[fail]]", "[[unavailable]]"])
def test_a_turn_that_fails_or_is_parked_hands_its_conversation_off_where_its_bot_wants_it(
    replica: Replica, eventually: Eventually, fate: str
) -> None:
    _save(replica, {"hands_off_failures": True, "texts": {"handed_off": "Ada will answer."}})
    replica.say(fate, double_texting="enqueue")
    replica.say("Hello?", double_texting="enqueue")
    worker = replica.settings.worker.model_copy(update={"max_attempts": 1})
    with InlineWorker(replica.settings.model_copy(update={"worker": worker})):
        eventually(lambda: replica.turns()[1] == ("handed_off", "Hello?"))
    assert replica.turns()[0][0] in ("failed", "parked")
    assert replica.notices() == ["Ada will answer."]
    (shown,) = list_handed_off(replica.database, replica.tenant_id).conversations
    assert shown.because == "The bot failed to answer."
    assert (shown.channel, shown.thread, shown.turn_count) == ("slack", "T1", 2)


def test_a_turn_that_fails_hands_nothing_off_where_nobody_wants_it(
    replica: Replica, eventually: Eventually
) -> None:
    replica.say("[[fail]]", quiet_s=0)
    with InlineWorker(replica.settings):
        eventually(lambda: replica.turns() == [("failed", "[[fail]]")])
    assert replica.notices() == []
    assert replica.say("Hello").kind is Kind.ACCEPTED


def test_a_parked_turn_is_not_replayed_while_a_person_answers(
    replica: Replica, eventually: Eventually
) -> None:
    received = replica.say("[[unavailable]]", quiet_s=0)
    worker = replica.settings.worker.model_copy(update={"max_attempts": 1})
    with InlineWorker(replica.settings.model_copy(update={"worker": worker})):
        eventually(lambda: replica.turns()[0][0] == "parked")
    _hand_off(replica, received)
    assert received.turn_id is not None
    (change,) = replay(replica.database, replica.tenant_id, [received.turn_id])
    assert isinstance(change.refusal, HandedOff)
    _resume(replica, received)
    (change,) = replay(replica.database, replica.tenant_id, [received.turn_id])
    assert change.refusal is None


def test_conversations_that_people_answer_are_listed_page_by_page(replica: Replica) -> None:
    for number in range(5):
        _hand_off(replica, replica.say("Hello", thread=f"T{number}"))
    first = list_handed_off(replica.database, replica.tenant_id, limit=3)
    assert first.next is not None
    after = Place.parse(first.next)
    rest = list_handed_off(replica.database, replica.tenant_id, limit=3, after=after)
    assert rest.next is None
    threads = [each.thread for each in (*first.conversations, *rest.conversations)]
    assert threads == ["T0", "T1", "T2", "T3", "T4"]
    assert list_handed_off(replica.database, new_id()).conversations == []


def test_the_next_page_is_the_same_when_the_last_one_of_the_page_before_was_resumed(
    replica: Replica,
) -> None:
    said = [replica.say("Hello", thread=f"T{number}") for number in range(4)]
    for received in said:
        _hand_off(replica, received)
    first = list_handed_off(replica.database, replica.tenant_id, limit=2)
    _resume(replica, said[1])
    assert first.next is not None
    rest = list_handed_off(replica.database, replica.tenant_id, after=Place.parse(first.next))
    assert [each.thread for each in rest.conversations] == ["T2", "T3"]

    named = show_id(Prefix.CONVERSATION, said[2].conversation_id)
    rest = list_handed_off(replica.database, replica.tenant_id, after=Place.parse(named))
    assert [each.thread for each in rest.conversations] == ["T3"]
    gone = show_id(Prefix.CONVERSATION, said[1].conversation_id)
    with pytest.raises(InvalidInput, match="begin again"):
        list_handed_off(replica.database, replica.tenant_id, after=Place.parse(gone))


@pytest.mark.parametrize("text", ["", "conv_1", f"turn_{'0' * 32}", f"conv_{'0' * 32}.x"])
def test_a_place_that_no_page_named_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Place.parse(text)


def _save(replica: Replica, policies: dict[str, Any]) -> None:
    save_bot(
        replica.database, replica.tenant_id, replica.bot, replica.bot, "", GenerationParams(),
        policies=Policies.model_validate(policies),
    )  # fmt: skip
