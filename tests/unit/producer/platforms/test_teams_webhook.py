"""What an outgoing webhook of Teams sends, in our words, and what it is answered."""

import json
import time
from typing import Any

import pytest

from turnmill.infra.mocks.teams import webhooks
from turnmill.infra.mocks.teams.activities import encode
from turnmill.infra.mocks.teams.webhooks import THREAD, TOKEN, Payload
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.teams.webhook import TeamsWebhookChannel
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.teams_webhook import TeamsWebhookSection
from turnmill.schemas.channels.teams import message_key
from turnmill.schemas.errors import SettingsError


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> TeamsWebhookChannel:
    return make(TOKEN, monkeypatch)


def make(token: str, monkeypatch: pytest.MonkeyPatch) -> TeamsWebhookChannel:
    monkeypatch.setenv("TEAMS_TOKEN", token)
    monkeypatch.setenv("TEAMS_URL", "https://a.example")
    section = TeamsWebhookSection(
        kind="teams-webhook",
        bot="b",
        token=SecretReference(env="TEAMS_TOKEN"),
        reply_url=SecretReference(env="TEAMS_URL"),
    )
    return TeamsWebhookChannel("t", section)


def parse(channel: TeamsWebhookChannel, payload: Payload) -> Parsed:
    signed = webhooks.sign(TOKEN, encode(payload))
    headers = {name.lower(): value for name, value in signed.headers.items()}
    request = Request("POST", headers, signed.body, time.time())
    channel.verify(request)
    return channel.parse(request)


def event_of(channel: TeamsWebhookChannel, payload: Payload) -> Any:
    (event,) = parse(channel, payload).events
    return event


def test_a_thread_is_one_conversation_and_the_mention_is_gone(
    channel: TeamsWebhookChannel,
) -> None:
    event = event_of(channel, webhooks.message("hi", id="17"))
    assert (event.content, event.author, event.address.thread) == ("hi", "29:1alice", THREAD)
    assert event.event_id == message_key(THREAD, "17")
    assert event.address.target == {"conversation": THREAD, "message": "17"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<at>Turnmill</at>&nbsp;hi\n", "hi"),
        ('<at id="0">Turnmill</at> `<at>Turnmill</at>`', "`<at>Turnmill</at>`"),
        ("hi", "hi"),
    ],
)
def test_only_the_mention_at_the_beginning_is_cut_out(
    channel: TeamsWebhookChannel, text: str, shown: str
) -> None:
    assert event_of(channel, webhooks.message("", text=text)).content == shown


def test_the_answer_says_that_a_reply_follows_only_if_one_does(
    channel: TeamsWebhookChannel,
) -> None:
    parsed = parse(channel, webhooks.message("hi"))
    answers = {}
    for kind in (Kind.ACCEPTED, Kind.COLLECTED, Kind.DUPLICATE, Kind.HANDED_OFF, Kind.STOPPED):
        answer = channel.acknowledge(parsed, [Received(kind)])
        assert answer.media_type == "application/json"
        answers[kind] = json.loads(answer.body)
    assert {answer["type"] for answer in answers.values()} == {"message"}
    follows = [kind for kind, answer in answers.items() if "follows" in answer["text"]]
    assert follows == [Kind.ACCEPTED, Kind.COLLECTED, Kind.DUPLICATE]


@pytest.mark.parametrize("token", ["not base64!", "c2hvcnQ=", "é"])
def test_a_token_that_is_none_of_teams_is_found_at_the_start(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="create the webhook anew"):
        make(token, monkeypatch)
