"""WhatsApp both ways: batches in our words, and replies against the mock that keeps its rules."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.adapting import Reply, long_text
from turnmill.infra.mocks.whatsapp import (
    NUMBER,
    TOKEN,
    USER,
    WhatsAppAPI,
    batch,
    change,
    encode,
    message,
    sign,
)
from turnmill.producer.channels.base import Parsed, Request
from turnmill.producer.channels.whatsapp import WhatsAppChannel
from turnmill.producer.channels.whatsapp_check import check_whatsapp
from turnmill.producer.doctor.findings import Level
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection
from turnmill.schemas.errors import BadSignature, ChannelUnavailable, DeliveryRefused
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.settings import DeliverySettings
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.whatsapp import WhatsAppDelivery, to_whatsapp


@pytest.fixture
def api() -> Iterator[WhatsAppAPI]:
    with WhatsAppAPI() as api:
        yield api


@pytest.fixture
def section(api: WhatsAppAPI, monkeypatch: pytest.MonkeyPatch) -> WhatsAppSection:
    monkeypatch.setenv("TOKEN", TOKEN)
    secret = SecretReference(env="TOKEN")
    return WhatsAppSection(
        kind="whatsapp", bot="bot", phone_number_id=NUMBER, app_secret=secret,
        verify_token=secret, access_token=secret, api_url=f"{api.url}/v26.0",
    )  # fmt: skip


@pytest.fixture
def channel(section: WhatsAppSection) -> WhatsAppChannel:
    return WhatsAppChannel("wa", section)


@pytest.fixture
def reply(section: WhatsAppSection) -> Reply:
    delivery = WhatsAppDelivery("wa", section, DeliverySettings(timeout_s=1, lease_s=2))
    return Reply(delivery, to=USER, message="wamid.1")


def parse(channel: WhatsAppChannel, *changes: dict[str, Any]) -> Parsed:
    signed = sign(TOKEN, encode(batch(*changes)))
    headers = {name.lower(): value for name, value in signed.headers.items()}
    request = Request("POST", headers, signed.body, time.time())
    channel.verify(request)
    return channel.parse(request)


def test_the_address_is_verified_by_the_token_of_our_making(channel: WhatsAppChannel) -> None:
    query = {"hub.mode": "subscribe", "hub.verify_token": TOKEN, "hub.challenge": "115820"}
    request = Request("GET", {}, b"", time.time(), query)
    channel.verify(request)
    assert channel.parse(request).answer.body == b"115820"
    for wrong in ({"hub.verify_token": "x"}, {"hub.mode": "unsubscribe"}):
        with pytest.raises(BadSignature):
            channel.verify(Request("GET", {}, b"", time.time(), query | wrong))


def test_every_message_of_a_batch_is_read_and_what_is_broken_holds_up_none(
    channel: WhatsAppChannel,
) -> None:
    changes = [
        change(messages=[message("one"), {"type": "text"}, message("two")]),
        change(statuses=[{"id": "wamid.1", "status": "delivered"}]),
        change(messages=[message("three")]),
    ]
    events = parse(channel, *changes).events
    assert [getattr(event, "content", None) for event in events] == ["one", "two", "three"]
    assert {event.address.thread for event in events} == {USER}


def test_reports_and_other_numbers_are_acknowledged(channel: WhatsAppChannel) -> None:
    assert parse(channel, change(statuses=[{"id": "1", "status": "read"}])).ignored == "status"
    other = change(messages=[message("hi")])
    other["value"]["metadata"]["phone_number_id"] = "1"
    assert (parse(channel, other).ignored, parse(channel, other).events) == ("other_number", ())


def test_buttons_and_reactions_are_ratings(channel: WhatsAppChannel) -> None:
    turn = show_id(Prefix.TURN, new_id())
    pressed = {"type": "button_reply", "button_reply": {"id": f"bad:{turn}", "title": "👎"}}
    by_button = message(None, type="interactive", interactive=pressed)
    reaction = {"message_id": "wamid.9", "emoji": "👍🏽"}
    by_emoji = message(None, type="reaction", reaction=reaction)
    first, second = parse(channel, change(messages=[by_button, by_emoji])).events
    assert (getattr(first, "turn_id", None), getattr(first, "score", None)) == (turn, -1)
    assert (getattr(second, "message_id", None), getattr(second, "score", None)) == ("wamid.9", 1)


def test_a_reply_is_formatted_with_three_buttons(api: WhatsAppAPI, reply: Reply) -> None:
    reply.send("**Yes**, [here](http://x)")
    ((text, buttons),) = api.messages
    assert text == "*Yes*, here (http://x)"
    assert [value.partition(":")[0] for value in buttons] == ["good", "bad", "hand_off"]


def test_a_long_reply_comes_in_parts(api: WhatsAppAPI, reply: Reply) -> None:
    reply.send(long_text())
    assert len(api.messages) >= 10
    assert "sentence number 899." in "".join(api.texts)


def test_typing_is_shown_and_nothing_of_the_text(api: WhatsAppAPI, reply: Reply) -> None:
    assert reply.show(state=TurnState.QUEUED) == 20.0
    assert reply.show("Once") == 20.0
    assert (api.typing, api.texts) == (["wamid.1"] * 2, [])
    assert not reply.send(None)


def test_limits_are_waited_for_and_silence_is_a_doubt(api: WhatsAppAPI, reply: Reply) -> None:
    for kind in ("500", "dies"):
        api.order("messages", kind)
        with pytest.raises(ChannelUnavailable) as lost:
            reply.send("hi")
        assert lost.value.is_doubtful
    reply.send("hi", is_doubtful=True)
    assert api.texts == ["hi", "hi"]
    other = Reply(reply.delivery, **reply.job.target)
    api.order("messages", "429")
    with pytest.raises(ChannelUnavailable) as limited:
        other.send("more")
    assert limited.value.retry_after_s == 6.0
    with pytest.raises(ChannelUnavailable, match="asked to wait"):
        other.send("more")


@pytest.mark.parametrize(("code", "advice"), [(131047, "24 hours"), (190, "access token")])
def test_a_refusal_says_what_to_do(api: WhatsAppAPI, reply: Reply, code: int, advice: str) -> None:
    api.error = code
    with pytest.raises(DeliveryRefused) as refused:
        reply.send("hi")
    assert (refused.value.reason, advice in refused.value.message) == (str(code), True)


def test_a_check_names_the_number_or_what_is_wrong(
    section: WhatsAppSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = check_whatsapp(section)
    assert (finding.level, "ACME" in finding.detail) == (Level.OK, True)
    monkeypatch.setenv("TOKEN", "wrong")
    (finding,) = check_whatsapp(section)
    assert (finding.level, "#190" in finding.detail) == (Level.BROKEN, True)


def test_code_keeps_its_marks_and_is_closed() -> None:
    assert to_whatsapp("```python\na*b*c") == "```\na*b*c\n```"
