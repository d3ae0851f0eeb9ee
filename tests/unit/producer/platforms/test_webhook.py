"""What another system's webhooks become."""

import json
import time
from typing import Any

import pytest

from turnmill.infra.mocks import webhook
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.webhook import WebhookChannel
from turnmill.producer.converse import Kind, Received
from turnmill.schemas.channels.events import Command, Rating, UserMessage
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.webhook import WebhookSection
from turnmill.schemas.errors import BadSignature, InvalidInput, SettingsError
from turnmill.schemas.ids import new_id

KEY = b"0123456789abcdef01234567"
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"  # noqa: S105 - the same in base64
TURN = "turn_" + "0" * 32


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> WebhookChannel:
    return make(monkeypatch, SECRET)


def make(monkeypatch: pytest.MonkeyPatch, secret: str) -> WebhookChannel:
    monkeypatch.setenv("HOOK_SECRET", secret)
    reference = SecretReference(env="HOOK_SECRET")
    section = WebhookSection(kind="webhook", bot="b", secret=reference, url="https://a.example")
    return WebhookChannel("desk", section)


def request(body: bytes, event_id: str = "msg_1") -> Request:
    return Request("POST", webhook.sign(KEY, body, event_id).headers, body, time.time())


def parse(channel: WebhookChannel, **payload: Any) -> Parsed:
    return channel.parse(request(json.dumps({"thread": "7", "author": "al", **payload}).encode()))


def test_a_message_keeps_its_thread_author_and_context(channel: WebhookChannel) -> None:
    (message,) = parse(channel, text=" Where? ", context={"ticket": "7"}).events
    assert isinstance(message, UserMessage)
    assert (message.content, message.author, message.event_id) == ("Where?", "al", "msg_1")
    assert message.address.thread == "7"
    assert message.address.target == {"thread": "7", "ticket": "7"}


def test_commands_and_ratings_have_their_types(channel: WebhookChannel) -> None:
    (command,) = parse(channel, type="command", name="hand_off").events
    assert isinstance(command, Command)
    (rating,) = parse(channel, type="rating", turn_id=TURN, score=-1, comment="no").events
    assert isinstance(rating, Rating)
    assert (rating.turn_id, rating.score, rating.comment) == (TURN, -1, "no")


def test_programs_are_not_answered(channel: WebhookChannel) -> None:
    assert parse(channel, text="hi", is_bot=True).ignored == "bot"
    assert parse(channel, type="turnmill.reply").ignored == "own"
    assert parse(channel, type="ticket.created").ignored == "unknown"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "text"),
        ({"text": "hi", "thread": ""}, "thread"),
        ({"text": "x" * 40_001}, "text"),
        ({"text": "hi", "context": {"a": 1}}, "context.a"),
        ({"type": "command", "name": "dance"}, "name"),
        ({"type": "rating", "turn_id": "7", "score": 1}, "turn_id"),
    ],
)
def test_a_mistake_is_named_without_its_value(
    channel: WebhookChannel, payload: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(channel, **payload)
    assert refused.value.param == field
    assert "dance" not in refused.value.message


def test_one_right_signature_of_several_is_enough(channel: WebhookChannel) -> None:
    good = request(b"{}")
    signature = good.headers["webhook-signature"]
    headers = {**good.headers, "webhook-signature": f"v1,AAAA v1a,BBBB {signature}"}
    channel.verify(Request("POST", headers, b"{}", good.arrived_at))
    wrong = {**headers, "webhook-signature": signature.replace("v1,", "v2,")}
    with pytest.raises(BadSignature):
        channel.verify(Request("POST", wrong, b"{}", good.arrived_at))
    with pytest.raises(BadSignature):
        channel.verify(Request("POST", {**headers, "webhook-id": "msg_2"}, b"{}", good.arrived_at))


def test_the_answer_says_what_became_of_the_event(channel: WebhookChannel) -> None:
    parsed = parse(channel, text="hi")
    turn_id = new_id()
    shown = json.loads(
        channel.acknowledge(parsed, [Received(Kind.ACCEPTED, turn_id, turn_id)]).body
    )
    assert shown["outcome"] == "accepted"
    assert shown["turn_id"] == f"turn_{turn_id.hex}"


@pytest.mark.parametrize("secret", ["whsec_", "whsec_short", "whsec_!!!", "x" * 200])
def test_a_secret_of_another_form_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    with pytest.raises(SettingsError, match="24 to 64 bytes in base64") as refused:
        make(monkeypatch, secret)
    assert secret == "whsec_" or secret not in refused.value.message  # noqa: S105
