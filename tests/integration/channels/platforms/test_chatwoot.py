"""Replies in Chatwoot, against the mock that keeps its rules."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.adapting import Killed, Reply, long_text
from turnmill.infra.mocks.chatwoot import BOT_TOKEN, CONVERSATION, ChatwootAPI, render
from turnmill.producer.channels.chatwoot.check import check_chatwoot
from turnmill.producer.doctor.findings import Level
from turnmill.schemas.channels.events import Answering, Side
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.chatwoot.adapter import ChatwootDelivery
from turnmill.workers.delivery.chatwoot.texts import to_content


@pytest.fixture
def chatwoot() -> Iterator[ChatwootAPI]:
    with ChatwootAPI() as api:
        yield api


@pytest.fixture
def section(chatwoot: ChatwootAPI, monkeypatch: pytest.MonkeyPatch) -> ChatwootSection:
    monkeypatch.setenv("CHATWOOT_TOKEN", BOT_TOKEN)
    token = SecretReference(env="CHATWOOT_TOKEN")
    return ChatwootSection(
        kind="chatwoot",
        bot="b",
        account_id=1,
        bot_token=token,
        url_token=token,
        api_url=chatwoot.url,
    )


@pytest.fixture
def delivery(section: ChatwootSection) -> ChatwootDelivery:
    return ChatwootDelivery("c", section, DeliverySettings(timeout_s=1, lease_s=2))


def in_conversation(
    delivery: ChatwootDelivery, by: Side = Side.BOT, inbox: str = "Channel::WebWidget"
) -> Reply:
    known = Answering(by=by, as_of=1).stored
    return Reply(delivery, conversation=str(CONVERSATION), inbox=inbox, **known)


@pytest.fixture
def chat(delivery: ChatwootDelivery) -> Reply:
    return in_conversation(delivery)


def test_a_reply_is_a_message_of_the_bot_and_ends_the_typing(
    chatwoot: ChatwootAPI, chat: Reply
) -> None:
    assert chat.show() == 20.0
    assert chatwoot.held.typing == "on"
    assert chat.send("**Yes.**")
    assert (chatwoot.texts, chatwoot.held.typing) == (["**Yes.**"], "off")
    assert (chatwoot.held.status, chatwoot.count("toggle_status")) == ("pending", 0)


def test_releases_that_let_bots_not_type_are_asked_once(chatwoot: ChatwootAPI, chat: Reply) -> None:
    chatwoot.forbidden = {"toggle_typing_status"}
    assert (chat.show(), chat.show()) == (20.0, 20.0)
    assert chat.send("Yes.")
    assert chatwoot.count("toggle_typing_status") == 1


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_typing_that_cannot_be_ended_fails_no_reply(
    chatwoot: ChatwootAPI, chat: Reply, kind: str
) -> None:
    chatwoot.order("toggle_typing_status", kind)
    assert chat.send("Yes.")
    assert chatwoot.texts == ["Yes."]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Dear {{contact.name}}, {% raw %}", "Dear {{contact.name}}, {% raw %}"),
        ("`{{a}}` {{{b}}} ```\n{% if %}\n```", "`{{a}}` {{{b}}} ```\n{% if %}\n```"),
        ("`{% endraw %}{{a}}`", "`{\u200b% endraw %}{{a}}`"),
        ("`{%- endraw -%}`", "`{\u200b%- endraw -%}`"),
        ("an odd ` and {{b}}", "an odd ` and {{b}}"),
        ("![photo](https://a.example/b.png)", "[photo](https://a.example/b.png)"),
    ],
)
def test_what_a_model_writes_is_no_template_and_fetches_no_picture(text: str, shown: str) -> None:
    assert render(to_content(text)) == shown


@pytest.mark.parametrize(
    ("inbox", "limit"), [("Channel::WebWidget", 10_000), ("Channel::Whatsapp", 4096)]
)
def test_a_long_reply_comes_in_parts_that_the_inbox_takes(
    chatwoot: ChatwootAPI, delivery: ChatwootDelivery, inbox: str, limit: int
) -> None:
    assert in_conversation(delivery, inbox=inbox).send(long_text())
    assert len(chatwoot.texts) > 40_000 / limit
    assert all(len(each) <= limit and each.count("```") % 2 == 0 for each in chatwoot.texts)
    for n in range(800):
        assert any(f"\nx{n} = {n}\n" in each for each in chatwoot.texts)


def test_a_hand_off_opens_the_conversation_after_its_words(
    chatwoot: ChatwootAPI, chat: Reply
) -> None:
    chat.job = replace(chat.job, because="The user asked for a person.")
    assert chat.notify("I have asked a person.", is_handed_off=True)
    assert (chatwoot.texts, chatwoot.held.status) == (["I have asked a person."], "open")
    assert chatwoot.notes == ["The user asked for a person."], "the team alone is told why"
    assert [name for name, _ in chatwoot.calls] == ["messages", "messages", "toggle_status"]


@pytest.mark.parametrize("name", ["messages", "toggle_status"])
@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
def test_a_hand_off_in_doubt_is_completed_and_says_nothing_twice(
    chatwoot: ChatwootAPI, chat: Reply, name: str, kind: str
) -> None:
    chat.job = replace(chat.job, because="The bot failed to answer.")
    if name == "messages":
        chatwoot.order(name, "before").go.set()
    chatwoot.order(name, kind)
    with pytest.raises(ChannelUnavailable):
        chat.notify("I have asked a person.", is_handed_off=True)
    doubtful = replace(chat.job, is_doubtful=True, text="I have asked a person.")
    assert chat.delivery.send(doubtful, chat.notes)
    assert (len(chatwoot.texts), len(chatwoot.notes), chatwoot.held.status) == (1, 1, "open")


def test_people_who_took_a_conversation_by_an_answer_get_it_opened_in_silence(
    chatwoot: ChatwootAPI, chat: Reply
) -> None:
    chat.job = replace(chat.job, because="A person took it over on the platform.")
    assert chat.notify("", is_handed_off=True)
    assert (chatwoot.texts, chatwoot.notes, chatwoot.held.status) == ([], [], "open")


def test_what_chatwoot_knows_already_is_not_told_again(
    chatwoot: ChatwootAPI, delivery: ChatwootDelivery
) -> None:
    chatwoot.held.status = "open"
    assert not in_conversation(delivery, Side.PEOPLE).notify("", is_handed_off=True)
    assert in_conversation(delivery, Side.PEOPLE).notify("It is found.", is_handed_off=True)
    assert in_conversation(delivery, Side.BOT).notify("Stopped.")
    assert in_conversation(delivery, Side.NOBODY).notify("Stopped.")
    assert (chatwoot.held.status, chatwoot.count("toggle_status")) == ("open", 0)


def test_a_resume_gives_the_conversation_back(
    chatwoot: ChatwootAPI, delivery: ChatwootDelivery
) -> None:
    chatwoot.held.status = "open"
    assert in_conversation(delivery, Side.PEOPLE).notify("I am back.")
    assert (chatwoot.texts, chatwoot.held.status) == (["I am back."], "pending")


@pytest.mark.parametrize("kind", ["dies", "500", "silence"])
@pytest.mark.parametrize("is_forbidden", [False, True])
def test_a_part_in_doubt_is_looked_up_where_the_release_lets_bots_look(
    chatwoot: ChatwootAPI, chat: Reply, kind: str, is_forbidden: bool
) -> None:
    chatwoot.forbidden = {"read"} if is_forbidden else set()
    chatwoot.order("messages", kind)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert error.value.is_doubtful
    assert chat.send("Yes.", is_doubtful=True)
    assert len(chatwoot.texts) == (2 if kind == "dies" and is_forbidden else 1)


@pytest.mark.parametrize("steps", range(1, 5))
def test_nothing_is_there_twice_at_whatever_step_the_worker_is_killed(
    chatwoot: ChatwootAPI, delivery: ChatwootDelivery, steps: int
) -> None:
    chat = in_conversation(delivery, inbox="Channel::Whatsapp")
    text = "\n\n".join(f"{n}" + " is a sentence." * 250 for n in range(4))
    chat.notes.dies_after = steps - 1
    with suppress(Killed):
        chat.send(text)
    chatwoot.held.say("Are you there?" * 5000)
    chat.notes.dies_after = None
    assert chat.send(text, is_doubtful=True)
    assert [int(each[0]) for each in chatwoot.texts] == [0, 1, 2, 3]


def test_a_limit_is_a_pause_for_its_conversation(chatwoot: ChatwootAPI, chat: Reply) -> None:
    chatwoot.order("messages", "429", retry_after_s=7)
    with pytest.raises(ChannelUnavailable) as error:
        chat.send("Yes.")
    assert (error.value.retry_after_s, error.value.is_doubtful) == (7.0, False)
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        chat.send("Yes.")
    assert chatwoot.texts == []


@pytest.mark.parametrize(("status", "advice"), [(401, "underscores_in_headers"), (404, "Drop")])
def test_a_refusal_says_what_to_do(
    chatwoot: ChatwootAPI, chat: Reply, status: int, advice: str
) -> None:
    chatwoot.errors = [status]
    with pytest.raises(DeliveryRefused, match=advice) as error:
        chat.send("Yes.")
    assert error.value.reason == f"http_{status}"


def test_a_check_tells_a_good_token_from_a_bad_one(
    chatwoot: ChatwootAPI, section: ChatwootSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, unsigned = check_chatwoot(section)
    assert (first.level, unsigned.level) == (Level.OK, Level.WARNING)
    chatwoot.forbidden = {"read"}
    assert [each.level for each in check_chatwoot(section)][:2] == [Level.OK, Level.NOTE]
    monkeypatch.setenv("CHATWOOT_TOKEN", "another")
    assert next(check_chatwoot(section)).level is Level.BROKEN
    nobody = section.model_copy(update={"api_url": "http://127.0.0.1:9"})
    assert next(check_chatwoot(nobody)).level is Level.BROKEN


def test_a_cancelled_turn_leaves_no_message(chatwoot: ChatwootAPI, chat: Reply) -> None:
    assert not chat.send(None)
    assert chatwoot.calls == []
