"""What Chatwoot sends, in our words."""

import time
from dataclasses import replace
from typing import Any

import pytest

from turnmill.infra.mocks import chatwoot
from turnmill.infra.mocks.chatwoot import Payload
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.chatwoot.channel import ChatwootChannel
from turnmill.schemas.channels.events import Change, Side
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection
from turnmill.schemas.content import text_of
from turnmill.schemas.errors import BadSignature

SECRET, TOKEN = "made-up-secret", "made-up-url-token"


def _section(*names: str) -> ChatwootSection:
    secrets: Any = {name: SecretReference(env=f"CHATWOOT_{name.upper()}") for name in names}
    token = SecretReference(env="CHATWOOT_BOT_TOKEN")
    return ChatwootSection(kind="chatwoot", bot="b", account_id=1, bot_token=token, **secrets)


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWOOT_BOT_TOKEN", "made-up")
    monkeypatch.setenv("CHATWOOT_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("CHATWOOT_URL_TOKEN", TOKEN)


@pytest.fixture
def channel() -> ChatwootChannel:
    return ChatwootChannel("c", _section("webhook_secret"))


def request_of(payload: Payload, **query: str) -> Request:
    signed = chatwoot.sign(SECRET, chatwoot.encode(payload))
    headers = {name.lower(): value for name, value in signed.headers.items()}
    return Request("POST", headers, signed.body, time.time(), query)


def parse(channel: ChatwootChannel, payload: Payload) -> Parsed:
    request = request_of(payload)
    channel.verify(request)
    return channel.parse(request)


def event_of(channel: ChatwootChannel, payload: Payload) -> Any:
    (event,) = parse(channel, payload).events
    return event


def test_a_customers_message_asks_the_bot_while_the_conversation_is_pending(
    channel: ChatwootChannel,
) -> None:
    event = event_of(channel, chatwoot.message(" hi ", id=42))
    assert (event.content, event.author, event.event_id) == ("hi", "contact:5", "message:42")
    assert (event.address.thread, event.address.target["inbox"]) == ("12", "Channel::WebWidget")
    assert (event.is_answer, event.begins, event.answering.by) == (False, True, Side.BOT)


@pytest.mark.parametrize("status", ["open", "snoozed"])
def test_a_persons_answer_is_no_message_to_the_bot(channel: ChatwootChannel, status: str) -> None:
    event = event_of(channel, chatwoot.by_agent("I am looking.", status=status))
    assert (event.author, event.is_answer, event.begins) == ("user:3", True, False)
    assert event.answering.by is Side.PEOPLE


@pytest.mark.parametrize(("status", "by"), [("open", Side.PEOPLE), ("resolved", Side.NOBODY)])
def test_a_change_of_status_has_an_id_that_is_the_same_when_it_is_sent_again(
    channel: ChatwootChannel, status: str, by: Side
) -> None:
    payload = chatwoot.changed(status)
    first, again = event_of(channel, payload), event_of(channel, payload)
    assert isinstance(first, Change)
    assert first == again
    assert (first.address.thread, first.answering.by) == ("12", by)
    assert first.answering.as_of == payload["updated_at"]
    assert event_of(channel, chatwoot.changed(status)).event_id != first.event_id


def test_releases_without_a_time_of_change_are_read_by_the_last_activity(
    channel: ChatwootChannel,
) -> None:
    payload = chatwoot.message("hi")
    del payload["conversation"]["updated_at"]
    assert event_of(channel, payload).answering.as_of == payload["conversation"]["timestamp"]


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (chatwoot.by_agent("Mine.", sender=chatwoot.BOT), "own"),
        (chatwoot.by_agent("Look at this.", private=True), "note"),
        (chatwoot.by_agent("Hi.", sender={"id": 1, "type": "captain_assistant"}), "bot"),
        (chatwoot.by_agent("Hi.", sender=None), "bot"),
        (chatwoot.message("Rate us!", message_type="template", sender=None), "bot"),
        (chatwoot.message("hi", account={"id": 2}), "account"),
        (chatwoot.message("hi", event="message_updated"), "edit"),
        ({"event": "webwidget_triggered"}, "opened"),
        ({"event": "conversation_updated"}, "unknown"),
        ({"event": ["message_created"]}, "unknown"),
        (chatwoot.message("hi", id="nan"), "unknown"),
        (chatwoot.message("hi", conversation=chatwoot.conversation(updated_at=-1)), "unknown"),
    ],
)
def test_what_asks_for_no_reply_is_ignored_by_name(
    channel: ChatwootChannel, payload: Payload, word: str
) -> None:
    assert parse(channel, payload) == Parsed(ignored=word)


def test_files_are_named(channel: ChatwootChannel) -> None:
    file = {"file_type": "image", "data_url": "https://a.example/x/my%20photo.png?a=b"}
    event = event_of(channel, chatwoot.message("See:", attachments=[file]))
    assert text_of(event.content) == "See:\n[file: my photo.png, image]"


def test_a_section_needs_something_to_verify_by() -> None:
    with pytest.raises(ValueError, match="webhook_secret"):
        _section()


def test_the_token_in_the_address_serves_where_chatwoot_does_not_sign() -> None:
    channel = ChatwootChannel("c", _section("url_token"))
    unsigned = replace(request_of(chatwoot.message("hi")), headers={})
    channel.verify(replace(unsigned, query={"token": TOKEN}))
    for query in ({}, {"token": ""}, {"token": TOKEN + "x"}):
        with pytest.raises(BadSignature, match="token"):
            channel.verify(replace(unsigned, query=query))
    both = ChatwootChannel("c", _section("url_token", "webhook_secret"))
    with pytest.raises(BadSignature, match=r"4\.13"):
        both.verify(replace(unsigned, query={"token": TOKEN}))
