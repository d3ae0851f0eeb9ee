"""On some platforms people decide who answers: what they do there is done here, quietly."""

from itertools import count
from typing import Any

import pytest

from tests.conversing import Replica, message, prompt_of, read_turns
from turnmill.producer.converse import Kind, Received
from turnmill.producer.handoff import resume
from turnmill.schemas.channels.events import Answering, Change, Side
from turnmill.schemas.channels.policies import Policies

TEXTS = Policies().texts
BOT, PEOPLE, NOBODY = Side.BOT, Side.PEOPLE, Side.NOBODY


class Desk:
    """A thread of a platform where people take conversations and give them back."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._clock = count(1)

    def user(self, text: str, by: Side = BOT, as_of: float | None = None) -> Received:
        return self._send(message(text, author="U1"), by, as_of, is_answer=False)

    def person(self, text: str, by: Side = PEOPLE) -> Received:
        return self._send(message(text, author="ADA"), by, None, is_answer=True, begins=False)

    def change(self, by: Side, as_of: float | None = None) -> Received:
        said = message("", author="desk")
        event = Change(
            event_id=said.event_id,
            address=said.address,
            author=said.author,
            answering=self._answering(by, as_of),
        )
        return self.replica.receive(event)

    def _send(self, said: Any, by: Side, as_of: float | None, **fields: Any) -> Received:
        answering = self._answering(by, as_of)
        return self.replica.receive(said.model_copy(update={"answering": answering, **fields}))

    def _answering(self, by: Side, as_of: float | None) -> Answering:
        return Answering(by=by, as_of=float(next(self._clock)) if as_of is None else as_of)


@pytest.fixture
def desk(replica: Replica) -> Desk:
    return Desk(replica)


def kinds(*received: Received) -> list[Kind]:
    return [each.kind for each in received]


def test_the_bot_answers_only_while_the_conversation_is_the_bots(desk: Desk) -> None:
    first = desk.user("My parcel is late.")
    assert first.kind is Kind.ACCEPTED
    assert kinds(
        desk.change(PEOPLE),
        desk.user("Hello?", PEOPLE),
        desk.person("It is found."),
        desk.user("Where?", PEOPLE),
        desk.user("Bot?", BOT),
    ) == [Kind.HANDED_OFF, Kind.HANDED_OFF, Kind.ANSWERED, Kind.HANDED_OFF, Kind.ACCEPTED]
    assert prompt_of(desk.replica.database, read_turns(desk.replica, first)[-1]) == [
        ("user", "My parcel is late.\nHello?"),
        ("assistant", "It is found."),
        ("user", "Where?\nBot?"),
    ]
    assert desk.replica.notices() == [""], "the platform is told, and the user is not"


def test_a_conversation_that_begins_with_people_is_kept_for_the_bot(desk: Desk) -> None:
    assert desk.person("How was it?").kind is Kind.IGNORED
    assert kinds(desk.user("Bad.", PEOPLE), desk.user("Why?", BOT)) == [
        Kind.HANDED_OFF, Kind.ACCEPTED,
    ]  # fmt: skip


def test_a_person_who_answers_while_the_bot_is_to_takes_the_conversation(desk: Desk) -> None:
    desk.user("My parcel is late.")
    assert kinds(desk.person("I am looking.", BOT), desk.user("Thanks.", BOT)) == [
        Kind.ANSWERED, Kind.HANDED_OFF,
    ]  # fmt: skip
    (notice,) = desk.replica.rows("SELECT content, target FROM deliveries WHERE kind = 'notice'")
    # So the adapter knows that the platform is to be told.
    known = Answering.of(notice.target)
    assert (notice.content, known and known.by) == ("", BOT)
    desk.change(PEOPLE)
    assert desk.user("And now?", BOT).kind is Kind.ACCEPTED


def test_what_the_user_says_before_the_platform_knows_of_a_hand_off_is_not_answered(
    desk: Desk,
) -> None:
    desk.user("Hi")
    assert kinds(desk.user("human"), desk.user("Anybody?")) == [Kind.HANDED_OFF] * 2
    desk.change(PEOPLE, as_of=100)
    late = desk.user("Please.", BOT, as_of=99)
    assert (late.kind, desk.user("Back?", BOT, as_of=101).kind) == (
        Kind.HANDED_OFF, Kind.ACCEPTED,
    )  # fmt: skip


def test_a_resume_here_holds_until_people_change_it_there(desk: Desk) -> None:
    first = desk.user("Hi")
    desk.change(PEOPLE)
    assert first.conversation_id is not None
    resume(desk.replica.database, desk.replica.tenant_id, first.conversation_id)
    assert desk.user("Bot?", PEOPLE).kind is Kind.ACCEPTED


def test_the_end_of_a_conversation_is_told_to_nobody_and_the_next_message_begins_another(
    desk: Desk,
) -> None:
    first = desk.user("Hi")
    assert kinds(desk.change(NOBODY), desk.change(NOBODY)) == [Kind.RESET, Kind.IGNORED]
    assert desk.person("One more thing.", NOBODY).kind is Kind.IGNORED
    after = desk.user("Hello again.")
    assert after.kind is Kind.ACCEPTED
    assert after.conversation_id != first.conversation_id
    assert desk.replica.notices() == []


def test_a_change_in_a_thread_that_nobody_knows_begins_nothing(desk: Desk) -> None:
    assert kinds(desk.change(PEOPLE), desk.change(NOBODY)) == [Kind.IGNORED] * 2
    assert desk.replica.rows("SELECT 1 FROM conversations") == []
